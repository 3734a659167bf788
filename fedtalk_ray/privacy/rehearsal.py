"""A whole exchange in one process, to read, to try and to time: what the slots and the server do through Ray.

>>> total, survivors = run({"a": 1, "b": 2, "c": 4}, absent={"mask": {"b"}}, limits=Limits(floor=2))
Traceback (most recent call last):
...
fedtalk_ray.privacy.protocol.Aborted: too few: 2 clients after mask, 3 are needed
>>> total, survivors = run({name: 1 for name in "abcdefgh"}, absent={"mask": {"b"}, "unmask": {"c"}})
>>> int(total[0]), "b" in survivors, "c" in survivors
(7, False, True)
"""

from collections.abc import Mapping

import numpy as np

from fedtalk_ray.messages import Plan
from fedtalk_ray.privacy.keys import Roster, SigningKey
from fedtalk_ray.privacy.protocol import STAGES, Limits
from fedtalk_ray.privacy.secure_client import SecureClient
from fedtalk_ray.privacy.secure_server import SecureServer


def plan_for(cohort: tuple[str, ...], exchange: int = 1) -> Plan:
    """A plan of hashes that stand for nothing."""
    return Plan("rehearsal", exchange, 1, bytes(32), bytes(32), bytes(32), 1.0, cohort)


def run(
    values: Mapping[str, int | np.ndarray],
    absent: Mapping[str, set[str]] | None = None,
    limits: Limits | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The opened sum, uint32 [L], and whose it is.

    values: a client's vector, uint32 [L], or one number. absent: for each stage who does not answer it (nor any later
    one). limits: as in production, but with a floor of 1 survivor, where None. Raises `protocol.Aborted`.
    """
    limits = limits or Limits(floor=1)
    vectors = {name: np.atleast_1d(np.asarray(value, np.uint32)) for name, value in values.items()}
    keys = {name: SigningKey.generate() for name in vectors}
    server_key = SigningKey.generate()
    roster = Roster({name: key.public for name, key in keys.items()}, server_key.public)
    plan = plan_for(tuple(sorted(vectors)))
    server = SecureServer(plan, server_key, roster, limits, len(next(iter(vectors.values()))))
    clients = {name: SecureClient(name, keys[name], roster, plan, limits) for name in vectors}
    frames: dict[str, bytes] = dict.fromkeys(vectors, b"")
    for stage in STAGES:
        for name in sorted(frames.keys() - (absent or {}).get(stage, set())):
            arguments = {"advertise": (), "mask": (frames[name], vectors[name])}.get(stage, (frames[name],))
            server.receive(getattr(clients[name], stage)(*arguments))
        frames = server.close()
    return server.total(), server.survivors
