"""Pretraining: all phases in turn as a federation of one, repeated by a seed, for as long as it was told to."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.commands.cli import main
from fedtalk_ray.errors import ShardError
from fedtalk_ray.model.autoencoder import encoder_fingerprint
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.model.presets import PresetError
from fedtalk_ray.recipe import PhaseName, PhaseRounds
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import Piece, load_manifest
from fedtalk_ray.shards.people import People, people_of
from fedtalk_ray.training import pretrain as pretraining
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.phases import calibration
from fedtalk_ray.training.phases.phase import Fitted, Task
from fedtalk_ray.training.pretrain import Pretrained, federation_of_one, pretrain, run_phase, until
from fedtalk_ray.training.resident import ResidentModel


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Networks of a size that no preset has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "sizes", lambda _: {"widths": (16, 32), "window": 4})
        yield


@pytest.fixture(scope="module")
def shards(make_shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain") / "shards"
    make_shards(folder, {"s1": [30, 30], "s2": [30, 30], "s3": [30, 30]})
    return folder


@pytest.fixture(scope="module")
def made(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pretrained, Path]:
    """What two steps reach, and the pipeline."""
    out = tmp_path_factory.mktemp("made") / "pipeline"
    return pretrain(shards, out, minutes=9, steps=2, seed=3), out


def weights(folder: Path, *names: str) -> torch.Tensor:
    state = TalkingHeadPipeline.from_pretrained(str(folder)).denoiser.state_dict()
    return torch.cat([value.flatten() for name, value in state.items() if all(part in name for part in names)])


def test_all_parts_together_are_repeatable_and_load_by_diffusers_alone(shards, made, tmp_path) -> None:
    first, folder = made
    assert pretrain(shards, tmp_path / "other", minutes=9, steps=2, seed=3) == first
    assert torch.equal(weights(tmp_path / "other"), weights(folder))
    assert first.steps == 2 and first.psnr_after > 28 and np.isfinite(first.loss)
    loaded = TalkingHeadPipeline.from_pretrained(str(folder))
    assert encoder_fingerprint(loaded.autoencoder) == load_manifest(shards).autoencoder_fingerprint
    assert loaded.identity_encoder is not None


def test_it_goes_on_from_another_pipeline(shards: Path, made: tuple[Pretrained, Path], tmp_path: Path) -> None:
    """One step from given weights leaves most of them near where they were; from random ones it cannot."""
    pretrain(shards, tmp_path / "next", minutes=9, steps=1, seed=4, start=str(made[1]))
    both = [weights(folder, "block", "conv1.weight") for folder in (made[1], tmp_path / "next")]
    assert torch.corrcoef(torch.stack(both))[0, 1] > 0.99 and not torch.equal(*both)
    assert "--from" in (tmp_path / "next" / "README.md").read_text()


@pytest.fixture(scope="module")
def bent_shards(make_shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bent") / "shards"
    make_shards(folder, {"s1": [30] * 4, "s2": [30] * 4}, 48, encoder="lower-face")
    return folder


@pytest.fixture(scope="module")
def taught(bent_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline that bends its reference, after one step."""
    out = tmp_path_factory.mktemp("taught") / "pipeline"
    pretrain(bent_shards, out, minutes=9, steps=1)
    return str(out)


def test_a_phase_alone_changes_what_it_fits_and_nothing_else(bent_shards: Path, taught: str, tmp_path: Path) -> None:
    before, maps = load_pipeline(taught).denoiser.state_dict(), {}
    for shown in (1.0, 0.25):
        out = tmp_path / f"{shown}"
        done = pretrain(bent_shards, out, minutes=9, seed=5, start=taught, only=["calibration"], shown=shown)
        after = TalkingHeadPipeline.from_pretrained(str(out)).denoiser.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert before.keys() == after.keys() and "certainty" in changed
        assert changed <= {"certainty", "liveliness"}
        assert done.steps == 0 and np.isnan(done.loss)
        maps[shown] = after["certainty"]
        assert f"--minutes 9 --phase calibration --shown {shown:g} --seed 5" in (out / "README.md").read_text()
    torch.testing.assert_close(maps[0.25], maps[1.0] / 4)
    assert float(maps[1.0].max()) > 0


def test_what_cannot_be_is_refused_and_nothing_is_written(
    shards: Path, bent_shards: Path, taught: str, make_shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, out, start = tmp_path / "few", tmp_path / "out", {"start": taught}
    make_shards(few, {"s1": [30], "s2": [30]})
    for where, error, message, asked in (
        (shards, PresetError, "'base' cannot be chosen beside a start: x has", {"size": "base", "start": "x"}),
        (bent_shards, PresetError, "phase 'calibration' alone needs a network", {"only": ["calibration"]}),
        (bent_shards, ShardError, "phase 'hearing' has nothing to teach .* from", {"only": ["hearing"]} | start),
        (bent_shards, PresetError, "dropout 0 is .*'speech'", {"only": ["faces"], "dropout": 0.0} | start),
        (bent_shards, PresetError, "shown 0.5 is .*'calibration'", {"only": ["speech"], "shown": 0.5} | start),
        (few, ShardError, "hold no training clip; an identity needs two clips", {}),
        (shards, ShardError, r"reaches \d+\.\d dB .* at least 70 dB are needed", {}),
    ):
        if "dB" in message:
            monkeypatch.setattr(pretraining, "MIN_PSNR", 70.0)
        with pytest.raises(error, match=message):
            pretrain(where, out, minutes=1, steps=1, **asked)
        assert not out.exists()


def test_the_command_sets_dropout_and_time(bent_shards, taught, tmp_path, monkeypatch) -> None:
    seen: dict[str, float | None] = {}
    dropouts: set[float] = set()

    def record(
        model: ResidentModel, people: People, config: TrainConfig, phase: PhaseRounds, given: float | None
    ) -> Iterator[tuple[int, dict[str, float]]]:
        seen[phase.name] = given
        dropouts.add(config.speech.dropout)
        yield 1, {"diffusion": 0.5}

    monkeypatch.setattr(pretraining, "run_phase", record)
    given = ["--shards", str(bent_shards), "--from", taught, "--out", str(tmp_path / "out"), "--minutes", "5"]
    with pytest.raises(SystemExit) as end:
        main(["pretrain", *given, "--dropout", "0", "--phase", "speech", "--phase", "faces"])
    assert not end.value.code and dropouts == {0}
    assert seen == {"speech": pytest.approx(39), "faces": 300}


def test_clips_are_kept_aside_where_the_shards_keep_none(make_shards, tmp_path, monkeypatch) -> None:
    """Of 13 clips the twelfth judges and calibrates, in all three rounds; nothing trains on it."""
    calibrated, predict = [], calibration.predict

    def watched(pipeline: TalkingHeadPipeline, piece: Piece, seed: int) -> calibration.Prediction:
        calibrated.append(piece.client)
        return predict(pipeline, piece, seed)

    monkeypatch.setattr(calibration, "predict", watched)
    folder = tmp_path / "shards"
    make_shards(folder, {f"s{n:02}": [16] for n in range(13)}, unseen=())
    people = people_of(federation_of_one(load_manifest(folder), folder, tmp_path / "out"))
    trained = [piece.client for piece in people.pieces("everybody", "train", ("latents",))]
    assert trained == [f"s{n:02}" for n in range(13) if n != 11]
    assert pretrain(folder, tmp_path / "out", minutes=9, steps=1).steps == 1
    assert calibrated == ["s11"] * 3


def test_rounds_and_steps_are_shared_out_among_the_phases(shards: Path, tmp_path: Path) -> None:
    """60 steps are three rounds of 25, and 30 for each phase before two of 25; fewer are one round of so many."""
    manifest = load_manifest(shards)
    for steps, rounds, each, before, each_before in ((60, 3, 25, 2, 25), (2, 1, 2, 1, 1), (None, 1, 25, 1, 13)):
        config = federation_of_one(manifest, shards, tmp_path, steps=steps)
        assert (config.rounds, config.local.steps) == (rounds, each), steps
        for part in (config.decoder, config.identity, config.sync, config.speech):
            assert (part.rounds, part.steps) == (before, each_before), steps
        assert list(config.phases) == ["units", "decoder", "identity", "sync", "speech", "faces", "calibration"]


def test_phases_that_cannot_be_are_left_out(shards: Path, make_shards, tmp_path: Path) -> None:
    """The decoder of an autoencoder that was published, and who is who of one person."""
    manifest = load_manifest(shards)
    assert "decoder" not in federation_of_one(manifest, shards, tmp_path, patch=False).phases
    # However large its only client, no cluster is looked for; only where reads wait for a network Ray Data reads ahead.
    assert federation_of_one(manifest, shards, tmp_path).stream.reader == "direct"
    assert federation_of_one(manifest, "s3://bucket/shards", tmp_path).stream.reader == "auto"
    make_shards(tmp_path / "few", {f"s{n}": [16] for n in range(3)}, unseen=())
    few = federation_of_one(load_manifest(tmp_path / "few"), tmp_path / "few", tmp_path)
    assert "calibration" not in few.phases and "calibration" in federation_of_one(manifest, shards, tmp_path).phases
    make_shards(tmp_path / "one", {"s1": [16, 16]})
    assert "identity" not in federation_of_one(load_manifest(tmp_path / "one"), tmp_path / "one", tmp_path).phases


class Clock:
    """A clock that stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pretraining, "monotonic", clock)
    return clock


def test_even_rounds_fill_their_time_and_know_their_count(clock: Clock) -> None:
    """Of 4 seconds each, 40 seconds hold ten; one does not know before the first is over."""
    seen = []
    for index, count in until(40.0, "test"):
        seen.append((index, count))
        clock.now += 4.0
    assert [index for index, _ in seen] == list(range(10))
    assert seen[0][1] == pretraining.GUESS and {count for _, count in seen[1:]} == {10}
    assert clock.now == 140.0


class Climbing:
    """A phase whose every round adds the round's number to the first number, and counts what it is told."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.end: list[float] = []

    def initial(self) -> np.ndarray:
        return np.array([10.0, 0.0], np.float32)

    def fit(self, task: Task) -> Fitted:
        self.tasks.append(task)
        return Fitted(np.array([task.index + 1, 0], np.float32), {"total": float(task.shared[0])})

    def finish(self, vector: np.ndarray) -> None:
        self.end = vector.tolist()


Run = Callable[..., tuple[Climbing, list[tuple[int, dict[str, float]]]]]


@pytest.fixture
def climb(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """All rounds of a phase that climbs, with these settings of the server."""

    def run(
        server: dict[str, Any], rounds: int, seconds: float | None = None, name: PhaseName = "faces"
    ) -> tuple[Climbing, list[tuple[int, dict[str, float]]]]:
        config = federation_of_one(load_manifest(shards), shards, tmp_path)
        config = TrainConfig.model_validate(config.model_dump() | {"server": server, "rounds": rounds})
        phase: Any = Climbing()
        model = ResidentModel(untrained_pipeline(load_manifest(shards), widths=(16, 32), window=4), config)
        model.name = name
        monkeypatch.setattr(model, "_made", lambda _: phase)
        plan = next(each for each in config.plan if each.name == name)
        return phase, list(run_phase(model, people_of(config), config, plan, seconds))

    return run


@pytest.mark.parametrize(
    ("server", "rounds", "end"),
    [({}, 3, 16), ({"average": 3}, 4, 49 / 3), ({"average": 5}, 2, 12), ({"learning_rate": 0.5}, 3, 13)],
)
def test_a_phase_ends_with_the_servers_step_and_the_mean_of_its_last_rounds(climb, server, rounds, end) -> None:
    """From 10 to 11, 13, 16, 20, and at rate 0.5 to 10.5, 11.5, 13: each round begins where the one before ended, and
    tells its losses. What a phase began with is no round to average."""
    phase, told = climb(server, rounds)
    assert phase.end == pytest.approx([end, 0])
    if not server:
        assert told == [(1, {"total": 10}), (2, {"total": 11}), (3, {"total": 13})]
    assert [(task.client, task.index, task.phase.count) for task in phase.tasks] == [
        ("everybody", index, rounds) for index in range(rounds)
    ]
    assert len({task.seed for task in phase.tasks}) == rounds


def test_statistics_are_added_as_they_are_in_all_their_rounds(climb: Run, clock: Clock) -> None:
    """Whatever the server's settings, and however little time there is."""
    phase, told = climb({"learning_rate": 0.5, "average": 3}, 4, seconds=0.0, name="calibration")
    assert phase.end == [16, 0] and len(told) == 3


def test_rounds_by_time_tell_the_phase_how_many_there_will_be(climb: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by half a second whenever it is asked: twelve seconds, at the first round and after each."""
    ticks = itertools.count()
    monkeypatch.setattr(pretraining, "monotonic", lambda: next(ticks) / 2)
    phase, told = climb({}, 1, seconds=3.0)
    assert [task.index for task in phase.tasks] == list(range(6)) and len(told) == 6
    assert [task.phase.count for task in phase.tasks] == [pretraining.GUESS, 6, 6, 6, 6, 6]
    assert isinstance(phase.tasks[0].phase, PhaseRounds) and phase.end == [10 + 21, 0]
