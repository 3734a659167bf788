"""The parameter server: one step a round, none twice, none wrong, and as good as new after a restart."""

from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation import server as server_module
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.messages import PlainUpdate
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig


def plain(**server: object) -> TrainConfig:
    tree = {"run": "r", "shards": "s", "pretrained": "p", "aggregation": "plain", "server": server}
    return parse_config(tree, "test")


CONFIGS = [plain(), plain(learning_rate=0.5, momentum=0.9), plain(optimizer="adam", momentum=0.9)]
DIMENSION = 6


def start(folder: Path, config: TrainConfig = CONFIGS[0]) -> ParameterServer:
    """A server at round 0, or wherever the folder's newest checkpoint is."""
    run = RunFolder(folder)
    if run.checkpoint() is None:
        first = Checkpoint(0, np.arange(DIMENSION, dtype=np.float32), {})
        save_checkpoint(run.checkpoints, first, config_fingerprint(config))
    return ParameterServer(str(folder), config)


def updates(number: int, slots: int = 2) -> list[PlainUpdate]:
    rng = np.random.default_rng(number)
    return [PlainUpdate(number, rng.standard_normal(DIMENSION).astype(np.float32), 2.0 + slot) for slot in range(slots)]


def test_a_round_adds_the_weighted_mean_and_returns_its_norm(tmp_path: Path) -> None:
    server = start(tmp_path)
    first = PlainUpdate(1, np.array([3, 0, 0, 0, 0, 0], np.float32), 1.0)
    second = PlainUpdate(1, np.array([3, 12, 0, 0, 0, 0], np.float32), 2.0)
    assert server.apply(1, first, second) == pytest.approx(np.hypot(2, 4))
    assert server.shared().tolist() == [2, 5, 2, 3, 4, 5]
    assert server.round() == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_a_server_that_dies_after_every_round_and_is_asked_again_ends_like_one_that_never_did(
    tmp_path: Path, config: TrainConfig
) -> None:
    steady = start(tmp_path / "steady", config)
    for number in range(1, 6):
        assert steady.apply(number, *updates(number)) > 0
        mortal = start(tmp_path / "mortal", config)
        assert mortal.round() == number - 1
        mortal.apply(number, *updates(number))
        assert mortal.apply(number, *updates(number)) == mortal.apply(1, *updates(99)) == 0.0
    again = start(tmp_path / "mortal", config)
    assert again.round() == 5
    assert again.shared().tobytes() == steady.shared().tobytes()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_refused_update_leaves_no_trace(tmp_path: Path, config: TrainConfig) -> None:
    refusing, undisturbed = start(tmp_path / "a", config), start(tmp_path / "b", config)
    for server in (refusing, undisturbed):
        server.apply(1, *updates(1))
    before = refusing.shared().tobytes()
    wrong: list[tuple[int, list[PlainUpdate], str]] = [
        (3, updates(3), r"updates of rounds \[3\] cannot follow round 1"),
        (2, updates(3), r"updates of rounds \[2, 3\] cannot follow round 1"),
        (2, [*updates(2), *updates(1)], r"updates of rounds \[1, 2\] cannot follow round 1"),
        (2, [PlainUpdate(2, np.zeros(DIMENSION + 1, np.float32), 1.0)], r"shape \(7,\)"),
        (2, [*updates(2), PlainUpdate(2, np.full(DIMENSION, np.nan, np.float32), 1.0)], "not finite"),
        (2, [], "without updates"),
    ]
    for number, messages, says in wrong:
        with pytest.raises(ValueError, match=says):
            refusing.apply(number, *messages)
        assert refusing.round() == 1 and refusing.shared().tobytes() == before
    for server in (refusing, undisturbed):
        server.apply(2, *updates(2))
    assert refusing.shared().tobytes() == undisturbed.shared().tobytes(), "nor in the optimiser's memory"


@pytest.mark.parametrize("config", CONFIGS[1:])
def test_a_round_whose_checkpoint_cannot_be_written_did_not_happen(tmp_path: Path, monkeypatch, config) -> None:
    """A full disk: once there is room, the caller applies the round again and nothing is lost or done twice."""

    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    failing, undisturbed = start(tmp_path / "a", config), start(tmp_path / "b", config)
    failing.apply(1, *updates(1))
    undisturbed.apply(1, *updates(1))
    with monkeypatch.context() as patch:
        patch.setattr(server_module, "save_checkpoint", full)
        with pytest.raises(OSError, match="No space"):
            failing.apply(2, *updates(2))
    assert failing.round() == 1
    failing.apply(2, *updates(2))
    undisturbed.apply(2, *updates(2))
    assert failing.shared().tobytes() == undisturbed.shared().tobytes()
    assert start(tmp_path / "a", config).round() == 2


def test_a_server_needs_a_checkpoint_of_its_own_configuration(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no checkpoint to start from"):
        ParameterServer(str(tmp_path), CONFIGS[0])
    start(tmp_path)
    with pytest.raises(RunError, match="belongs to another configuration"):
        ParameterServer(str(tmp_path), CONFIGS[1])


def test_a_round_with_nobody_there_goes_by_without_a_trace_in_the_model(tmp_path: Path) -> None:
    server = start(tmp_path)
    before = server.shared().tobytes()
    for _ in range(2):  # asked again, by a caller that was restarted
        assert server.skip(1) == {"survivors": 0, "aborted": "too few"}
    assert server.round() == 1 and server.shared().tobytes() == before
    assert start(tmp_path).round() == 1
    assert server.apply(2, *updates(2)) > 0


def test_what_is_released_is_the_mean_of_the_last_rounds_though_a_server_died_between_them(tmp_path: Path) -> None:
    alone, averaging = start(tmp_path / "alone"), start(tmp_path / "averaging", plain(average=3))
    assert averaging.released().tolist() == averaging.shared().tolist() == list(range(DIMENSION))
    after = []
    for number in range(1, 6):
        alone.apply(number, *updates(number))
        averaging = start(tmp_path / "averaging", plain(average=3))
        averaging.apply(number, *updates(number))
        after.append(alone.shared().astype(np.float64))
        assert averaging.shared().tobytes() == alone.shared().tobytes() == alone.released().tobytes()
        np.testing.assert_allclose(averaging.released(), np.mean(after[-3:], axis=0), rtol=1e-6)


def test_a_phase_begins_where_the_one_before_ended_and_nowhere_else(tmp_path: Path) -> None:
    config = plain(average=3)
    run = RunFolder(tmp_path)
    begun = Checkpoint(0, np.zeros(DIMENSION, np.float32), {}, phase="units")
    save_checkpoint(run.checkpoints, begun, config_fingerprint(config))
    server = ParameterServer(str(tmp_path), config)
    with pytest.raises(RunError, match="begins after round 1, and the server is at round 0"):
        server.begin_phase("speech", np.ones(4, np.float32), 1)
    server.apply(1, PlainUpdate(1, np.full(DIMENSION, 3, np.float32), 1.0))
    for _ in range(2):  # asked again, by a caller that was restarted
        server.begin_phase("speech", np.ones(4, np.float32), 1)
    server = ParameterServer(str(tmp_path), config)
    assert server.phase() == "speech" and server.round() == 1 and server.shared().tolist() == [1] * 4
    assert server.results()["units"].tolist() == [3] * DIMENSION
    server.apply(2, PlainUpdate(2, np.full(4, 2, np.float32), 1.0))
    assert server.released().tolist() == [3] * 4, "the mean leaves out what the phase began with"
    with pytest.raises(RunError, match="the phase units begins after round 2"):
        server.begin_phase("units", np.zeros(DIMENSION, np.float32), 2)
