"""A client of Flower's that trains nothing: its update is random, and SecAgg+ masks it."""

import numpy as np
from flwr.client import Client, NumPyClient  # type: ignore[import-not-found]
from flwr.client.mod import secaggplus_mod  # type: ignore[import-not-found]
from flwr.clientapp import ClientApp  # type: ignore[import-not-found]
from flwr.common import Context  # type: ignore[import-not-found]


class Light(NumPyClient):
    """What SecAgg+ asks of a client."""

    def __init__(self, values: int) -> None:
        self._values = values

    def fit(self, parameters: list[np.ndarray], config: object) -> tuple[list[np.ndarray], int, dict[str, float]]:
        return [np.random.default_rng().normal(0, 1e-3, self._values).astype(np.float32)], 1, {}


def make_client(context: Context) -> Client:
    return Light(int(context.run_config["values"])).to_client()


app = ClientApp(client_fn=make_client, mods=[secaggplus_mod])
