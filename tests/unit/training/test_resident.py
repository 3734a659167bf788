"""The resident model: results are taken on once and in order, and every slot begins each phase with the same vector."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import RunError
from fedtalk_ray.media.lips import LIP_MOTION
from fedtalk_ray.recipe import PHASES as EVERY_PHASE
from fedtalk_ray.recipe import PhaseName, PhaseRounds
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import People
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.phases.phase import task_of
from fedtalk_ray.training.resident import ResidentModel

PHASES: tuple[PhaseName, ...] = tuple(name for name in EVERY_PHASE if name not in ("hearing", "mouths", "sharpness"))
"""All that a pipeline around the autoencoder "patch" goes through."""


@pytest.fixture(scope="module")
def people(make_shards: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> People:
    folder: Path = tmp_path_factory.mktemp("resident") / "shards"
    return People(folder, make_shards(folder, {"s1": [30] * 4, "s2": [30] * 3}))


def config_of(make_config: Callable[..., TrainConfig], **more: Any) -> TrainConfig:
    steps = {"rounds": 1, "steps": 1}
    settings: dict[str, Any] = dict.fromkeys(("speech", "decoder", "identity", "sync"), steps)
    settings |= {"phases": list(PHASES), "local": {"steps": 1, "identity_steps": 0}, "rounds": 1}
    return make_config(**settings | {"aggregation": "plain"} | more)


def new_model(people: People, config: TrainConfig, outside: int = 0) -> ResidentModel:
    """As a slot makes it; outside: what torch's own generator was left at in this process."""
    torch.manual_seed(5)
    pipeline = untrained_pipeline(people.manifest, widths=(16, 32), window=4)
    torch.manual_seed(outside)
    return ResidentModel(pipeline, config)


def some_result(name: PhaseName, start: np.ndarray) -> np.ndarray:
    """What a phase may have ended with."""
    if name == "units":
        rng, sides = np.random.default_rng(0), np.triu_indices(LIP_MOTION - 1)
        channels = (len(start) - 3 - len(sides[0])) // 3
        moved = rng.normal(size=(100, LIP_MOTION - 1))
        parts = [1.0], rng.uniform(0, 0.5, channels), rng.uniform(0.5, 1.5, 2 * channels), [0.5, 1.0]
        return np.concatenate([*parts, (moved.T @ moved / 100)[sides]]).astype(np.float32)
    if name == "calibration":
        return np.ones_like(start)
    return (start + np.random.default_rng(0).normal(0, 0.01, len(start))).astype(np.float32)


Walked = tuple[list[np.ndarray], dict[PhaseName, np.ndarray], ResidentModel, bytes]


@pytest.fixture(scope="module")
def walked(people: People, make_config) -> Walked:
    """A slot that was there from the first phase to the last: initial vectors, results, the model, and what of it was
    frozen before the calibration."""
    model = new_model(people, config_of(make_config))
    starts: list[np.ndarray] = []
    results: dict[PhaseName, np.ndarray] = {}
    for name in PHASES:
        model.enter(name, results)
        starts.append(model.phase.initial())
        results[name] = some_result(name, starts[-1])
    frozen = model.phase.frozen()
    model.finish(results["calibration"])
    return starts, results, model, frozen


def state_of(model: ResidentModel) -> dict[str, torch.Tensor]:
    parts = ("denoiser", "autoencoder", "identity_encoder", "sync_network")
    return {
        f"{part}.{name}": value
        for part in parts
        for name, value in (getattr(model.pipeline, part).state_dict() if getattr(model.pipeline, part) else {}).items()
    }


def test_two_slots_begin_every_phase_with_the_same_vector(walked, people: People, make_config) -> None:
    """Whatever torch's global generator stands at, which is left alone too."""
    starts, results, *_ = walked
    other = new_model(people, config_of(make_config), outside=77)
    before: dict[PhaseName, np.ndarray] = {}
    for name, start in zip(PHASES, starts, strict=True):
        state = torch.get_rng_state()
        other.enter(name, before)
        vector = other.phase.initial()
        assert torch.equal(torch.get_rng_state(), state), name
        assert vector.dtype == np.float32 and vector.tobytes() == start.tobytes(), name
        before[name] = results[name]


def test_networks_of_their_own_come_from_the_runs_seed(walked, people: People, make_config) -> None:
    starts, results, *_ = walked
    other = new_model(people, config_of(make_config, seed=1))
    for place in (2, 3):
        other.enter(PHASES[place], {earlier: results[earlier] for earlier in PHASES[:place]})
        assert other.phase.initial().tobytes() != starts[place].tobytes()


def test_a_slot_that_comes_later_takes_on_all_results_at_once(walked, people: People, make_config) -> None:
    starts, results, model, frozen = walked
    late = new_model(people, config_of(make_config), outside=3)
    late.enter("calibration", {name: results[name] for name in PHASES[:-1]})
    assert late.phase.initial().tobytes() == starts[-1].tobytes()
    assert late.phase.frozen() == frozen
    late.finish(results["calibration"])
    here, there = state_of(model), state_of(late)
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []


def test_results_are_taken_on_once_and_in_order(people: People, make_config, monkeypatch) -> None:
    model, taken = new_model(people, config_of(make_config)), []

    class Noted:
        """A phase that only notes what it is told."""

        def __init__(self, name: PhaseName) -> None:
            self.name = name

        def initial(self) -> np.ndarray:
            return np.zeros(1, np.float32)

        def finish(self, vector: np.ndarray) -> None:
            taken.append((self.name, vector.tolist()))

    monkeypatch.setattr(model, "_made", Noted)
    results = {name: np.array([place]) for place, name in enumerate(PHASES)}
    model.enter("identity", {name: results[name] for name in ("units", "decoder")})
    assert taken == [("units", [0]), ("decoder", [1])] and model.name == "identity"
    assert model.phase is model.phase, "it is made once for all its rounds"
    model.finish(results["identity"])
    model.finish(results["identity"])
    model.enter("speech", {name: results[name] for name in ("units", "decoder", "identity", "sync")})
    model.enter("speech", {name: results[name] for name in ("units", "decoder", "identity", "sync")})
    assert taken == [("units", [0]), ("decoder", [1]), ("identity", [2]), ("sync", [3])]


def test_there_is_no_trainer_before_the_phase_faces(people: People, make_config) -> None:
    model = new_model(people, config_of(make_config))
    for name in PHASES[: PHASES.index("faces")]:
        model.enter(name, {})
        with pytest.raises(RunError, match=f"the model is in the phase {name} and has no adapters yet"):
            _ = model.trainer
    model.enter("faces", {})
    assert model.phase.initial().size and model.trainer.model is model.pipeline.denoiser
    trainer = model.trainer
    model.enter("calibration", {})
    assert model.trainer is trainer, "it stays for who samples and exports"


def test_the_sync_network_hears_in_the_units_that_the_clients_fixed(people: People, make_config) -> None:
    model = new_model(people, config_of(make_config))
    units = some_result("units", model.phase.initial())
    model.enter("sync", {"units": units})
    assert model.phase.initial().size
    base, network = model.pipeline.denoiser, model.pipeline.sync_network
    assert network is not None and torch.equal(network.residual_std, base.residual_std)
    assert not (base.residual_std == 1).all()


def test_the_decoder_of_a_published_autoencoder_is_not_trained(people: People, make_config) -> None:
    model = new_model(people, config_of(make_config))
    model.pipeline.autoencoder = torch.nn.Identity()
    model.enter("decoder", {})
    with pytest.raises(RunError, match="decoder trains the project's own autoencoder, and this pipeline has another"):
        _ = model.phase


def test_a_task_knows_its_place_in_its_phase_and_its_seed_is_the_rounds(people: People, make_config) -> None:
    """units 1, decoder 2, identity 3, sync 4, speech 5 to 8: round 7 is the third of four."""
    config = config_of(make_config, speech={"rounds": 4, "steps": 5})
    task = task_of(config, people, "s1", 7, np.zeros(0))
    assert task.phase == PhaseRounds("speech", 5, 8) and task.index == 2 and task.phase.count == 4
    pace = task.pace(0.1, 5)
    assert (pace.before, pace.total) == (10, 20)
    others = [
        task_of(config, people, who, number, np.zeros(0)).seed for who, number in (("s1", 7), ("s2", 7), ("s1", 8))
    ]
    assert task.seed == others[0] and len(set(others)) == 3


def test_no_way_out_of_a_phase_takes_what_a_client_left_along(people: People, make_config) -> None:
    """Back, on without the phase's result, or on in a phase that is over: each would show one client's training."""
    config = config_of(make_config)
    model = new_model(people, config)
    frames = people.frames("s1")
    units = model.initial + model.fit(task_of(config, people, "s1", 1, model.initial), frames)[1].update
    with pytest.raises(RunError, match="has no result yet: it does not go to faces"):
        model.enter("faces", {})
    model.enter("decoder", {"units": units})
    with pytest.raises(RunError, match="does not go back to units"):
        model.enter("units", {})
    model.enter("faces", {"units": units, "decoder": model.initial})
    vector = model.initial
    model.enter("faces", {"faces": vector})
    with pytest.raises(RunError, match="the phase faces is over, and nobody trains in it"):
        model.fit(task_of(config, people, "s1", 2, vector), frames)


def test_isfa_weighs_where_it_matters_whether_lips_follow_the_sound(people: People, make_config) -> None:
    """From the phase speech on by a score; before, and where no strategy asks, by clips alone."""
    weighed: dict[str, list[PhaseName]] = {}
    for strategy in ("isfa", "fedavg"):
        config = config_of(make_config, strategy={"name": strategy}, phases=["units", "speech", "faces", "calibration"])
        model, results = new_model(people, config), {}
        weighed[strategy] = []
        for number, name in enumerate(config.phases, 1):
            model.enter(name, results)
            report, fitted = model.fit(task_of(config, people, "s1", number, model.initial), 120)
            assert (report.client, report.samples, report.losses) == ("s1", 120, fitted.losses)
            if report.score is None:
                assert report.weight == 120 and fitted.reliability is None
            else:
                judged = report.id_sim, report.temp_stab, report.score
                assert fitted.reliability is not None and judged == tuple(vars(fitted.reliability).values())
                assert report.weight == pytest.approx(120 * np.exp(8 * (report.score - 1)))
                weighed[strategy].append(name)
            results[name] = some_result(name, model.initial)
    assert weighed == {"isfa": ["speech", "faces", "calibration"], "fedavg": []}


def test_under_noise_only_faces_are_weighed_by_a_score(people: People, make_config) -> None:
    """There sums are divided by one public number, and a weight of a fiftieth would be a step of a fiftieth."""
    privacy = {"mechanism": "gaussian", "noise_multiplier": 1.0, "clip_norm": 1.0, "samples_cap": 120}
    privacy |= {"simulated_cohort": 1000, "simulated_population": 10_000}
    more = {"strategy": {"name": "isfa"}, "phases": ["units", "speech", "faces"], "privacy": privacy}
    config = config_of(make_config, **more)
    model, results, scored = new_model(people, config), {}, {}
    for number, name in enumerate(config.phases, 1):
        model.enter(name, results)
        report, _ = model.fit(task_of(config, people, "s1", number, model.initial), 120)
        scored[name] = report.score is not None
        assert scored[name] or report.weight == 1
        results[name] = some_result(name, model.initial)
    assert scored == {"units": False, "speech": False, "faces": True}


@pytest.mark.parametrize(
    ("loss", "phase"), [({"sync": 0.05}, "sync"), ({"identity": 0.1}, "identity"), ({"perceptual": 0.1}, "identity")]
)
def test_a_loss_whose_network_nobody_has_and_nobody_teaches_is_refused(people, make_config, loss, phase) -> None:
    local = {"steps": 1, "identity_steps": 0, "loss": loss}
    without = [name for name in PHASES if name != phase]
    with pytest.raises(RunError, match=f"is 0.*nor does a phase {phase} teach one: set it to 0, name that") as caught:
        new_model(people, config_of(make_config, local=local, phases=without))
    assert f"loss {next(iter(loss))} is" in str(caught.value) and "\n" not in str(caught.value)
    assert new_model(people, config_of(make_config, local=local)).name == PHASES[0], "a phase teaches it"
