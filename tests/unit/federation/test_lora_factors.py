"""LoRA's factors: who trains which, what of a sum counts, and an A made anew that leaves the product as it is."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.lora_factors import Pair, orthogonal, places, trains, without_untrained
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.messages import PlainUpdate
from fedtalk_ray.model import adapters
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig

PAIRS: tuple[Pair, ...] = ((5, 2, 3), (4, 2, 6))
LENGTH = 2 * (5 + 3) + 2 * (4 + 6)
A = np.r_[0:6, 16:28]
"""Where A lies in a vector of `PAIRS`: its 2 x 3 values come first, then B's 5 x 2, then the next A's 2 x 6."""


def vector(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=LENGTH).astype(np.float32)


def products(values: np.ndarray) -> list[np.ndarray]:
    first = values[6:16].reshape(5, 2) @ values[:6].reshape(2, 3)
    return [first, values[28:].reshape(4, 2) @ values[16:28].reshape(2, 6)]


def test_who_trains_what() -> None:
    said = {
        factors: [("A" if trains("A", factors, index) else "") + ("B" if trains("B", factors, index) else "")
                  for index in range(4)]
        for factors in ("ab", "ffa", "svd", "alternate")
    }  # fmt: skip
    assert said == {"ab": ["AB"] * 4, "ffa": ["B"] * 4, "svd": ["B"] * 4, "alternate": ["B", "A", "B", "A"]}


@pytest.mark.parametrize(
    ("factors", "index", "dropped"), [("svd", 1, "A"), ("alternate", 0, "A"), ("alternate", 1, "B")]
)
def test_noise_on_what_nobody_trained_is_dropped(factors: str, index: int, dropped: str) -> None:
    update = vector()
    kept = without_untrained(update, PAIRS, factors, index)
    zero = np.isin(np.arange(LENGTH), A) if dropped == "A" else ~np.isin(np.arange(LENGTH), A)
    assert (kept[zero] == 0).all() and (kept[~zero] == update[~zero]).all()
    assert (update == vector()).all(), "the sum itself stays as it is"


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from(["", "a", "b", "rank"]),
)
def test_a_new_a_is_orthonormal_and_the_product_stays(
    outputs: int, rank: int, inputs: int, seed: int, lost: str
) -> None:
    """Whatever is zero or of lower rank, as B is before the first round."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, inputs)).astype(np.float32), rng.normal(size=(outputs, rank)).astype(np.float32)
    if lost == "b":
        b[:] = 0
    if lost == "rank":
        b[:, 0] = 0
    if lost == "a":
        a[-1] = a[0]
    new_a, new_b = orthogonal(a, b)
    np.testing.assert_allclose(new_b @ new_a, b @ a, atol=1e-5)
    there = np.arange(rank) < inputs
    np.testing.assert_allclose(new_a @ new_a.T, np.diag(there).astype(float), atol=1e-5)
    assert new_a.dtype == new_b.dtype == np.float32 and new_b.shape == b.shape
    sizes = np.linalg.norm(new_b, axis=0)[: min(rank, outputs, inputs)]
    assert (np.diff(sizes) <= 1e-5).all(), "largest first"
    np.testing.assert_allclose(sizes, np.linalg.svd(b.astype(float) @ a)[1][: len(sizes)], atol=1e-4)


def test_the_models_pairs_are_where_its_vector_has_them(make_pipeline, make_config) -> None:
    from fedtalk_ray.training.local import LocalTrainer

    trainer = LocalTrainer(make_pipeline(), make_config(lora_aggregation="svd"))
    pairs = adapters.lora_pairs(trainer.shared())
    values = adapters.to_vector(trainer.shared())
    named = dict(trainer.shared())
    names = [name for name in named if ".lora_A." in name]
    assert len(pairs) == len(names) > 10
    for name, (a, b), (outputs, rank, inputs) in zip(names, places(len(values), pairs), pairs, strict=True):
        assert (values[a] == named[name].detach().numpy().ravel()).all()
        other = named[name.replace(".lora_A.", ".lora_B.")]
        assert (values[b] == other.detach().numpy().ravel()).all() and len(other) == outputs and rank == 2
        assert named[name].numel() == rank * inputs


def config(factors: str, **more: object) -> TrainConfig:
    tree = {"run": "r", "shards": "s", "pretrained": "p", "phases": ["faces"], "aggregation": "plain"}
    return parse_config(tree | {"lora_aggregation": factors} | more, "test")


@pytest.mark.parametrize("factors", ["svd", "alternate"])
def test_a_server_that_came_back_knows_its_factors(tmp_path: Path, factors: str) -> None:
    chosen, run = config(factors), RunFolder(tmp_path)
    save_checkpoint(run.checkpoints, Checkpoint(0, vector(), {}, pairs=PAIRS), config_fingerprint(chosen))
    expected = vector()
    for number in (1, 2, 3):
        server = ParameterServer(str(tmp_path), chosen)  # as after a crash
        server.apply(number, PlainUpdate(number, 2 * vector(number), 2.0))
        expected = expected + without_untrained(vector(number), PAIRS, factors, number - 1)
        found = server.shared()
        for new, old in zip(products(found), products(expected), strict=True):
            np.testing.assert_allclose(new, old, atol=1e-4)
        if factors == "svd":
            first = found[:6].reshape(2, 3)
            np.testing.assert_allclose(first @ first.T, np.eye(2), atol=1e-5)
            expected = found
    if factors == "alternate":
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("server", [{"momentum": 0.5}, {"average": 2}, {"optimizer": "adam"}])
def test_factors_that_turn_are_not_averaged_over_rounds(server: dict) -> None:
    with pytest.raises(ConfigError, match="lora_aggregation: svd turns the factors"):
        config("svd", server=server)
    config("alternate", server=server)
    with pytest.raises(ConfigError, match="lora_aggregation is of shared: adapter"):
        config("ffa", shared="backbone")
    with pytest.raises(ValueError, match="LoRA pairs of 36 values do not fit a vector of 35"):
        list(places(35, PAIRS))
