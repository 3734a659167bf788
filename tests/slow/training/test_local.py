"""One client's fit, against a plain training loop written out here: what it changes, what it leaves, what repeats."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.model import adapters
from fedtalk_ray.recipe import Pace
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.local import LocalTrainer, batches_needed
from fedtalk_ray.training.losses import window_loss
from fedtalk_ray.training.phases.phase import Fitted

UNITS_AND_CALIBRATION = {"reference_mean", "reference_std", "residual_std", "lip_axes", "lip_mean", "lip_std"}
UNITS_AND_CALIBRATION |= {"certainty", "detail", "liveliness"}
KINDS = {"adapter": {}, "backbone": {"shared": "backbone", "aggregation": "plain"}}


@pytest.fixture
def make_trainer(make_pipeline, make_config):
    def make(local: dict[str, Any] | None = None, prediction: str = "sample", **config: Any) -> LocalTrainer:
        pipeline = make_pipeline(prediction_type=prediction)
        return LocalTrainer(pipeline, make_config(local={"steps": 2, "identity_steps": 1} | (local or {}), **config))

    return make


@pytest.fixture
def fit(make_windows):
    """Fits one client whose windows come from `client`, from the trainer's first parameters unless given others."""

    def run(trainer: LocalTrainer, client: int = 0, shared: np.ndarray | None = None, **options: Any) -> Fitted:
        batches = [make_windows(2, 100 * client + number) for number in range(batches_needed(trainer._config.local))]
        start = first_parameters(trainer) if shared is None else shared
        return trainer.fit(start, options.pop("identity", None), batches, **({"seed": 7} | options))

    return run


def first_parameters(trainer: LocalTrainer) -> np.ndarray:
    """Some shared parameters, always the same, with effect."""
    vector = adapters.to_vector(trainer.shared())
    return vector + np.random.default_rng(0).normal(0, 0.02, vector.shape).astype(np.float32)


def same(one: Fitted, other: Fitted) -> bool:
    return (
        one.update.tobytes() == other.update.tobytes()
        and one.identity.tobytes() == other.identity.tobytes()
        and one.losses == other.losses
    )


def backbone_of(trainer: LocalTrainer) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in adapters.backbone_state(trainer.model).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_is_the_trained_minus_the_received_parameters(make_trainer, fit, kind: str) -> None:
    trainer = make_trainer(**KINDS[kind])
    start = first_parameters(trainer)
    start.flags.writeable = False  # as it comes out of Ray's object store
    before, frozen = start.copy(), backbone_of(trainer)
    result = fit(trainer, shared=start)
    assert result.update.dtype == np.float32 and result.update.shape == start.shape
    assert (np.abs(result.update) > 0).mean() > 0.9
    np.testing.assert_array_equal(adapters.to_vector(trainer.shared()) - start, result.update)
    assert adapters.to_vector(trainer.identity()).tobytes() == result.identity.tobytes()
    assert start.tobytes() == before.tobytes()
    stayed = {name for name, value in backbone_of(trainer).items() if frozen[name] == value}
    assert stayed == (UNITS_AND_CALIBRATION if kind == "backbone" else frozen.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_phase_of_its_own_taught_about_sound_stays_as_it_is(make_trainer, fit, kind: str) -> None:
    """With the phase `speech` the speech encoder and its map are neither shared nor trained."""
    trainer = make_trainer(**KINDS[kind], phases=["speech", "faces"])
    names = {name for name, _ in trainer.shared()}
    everything = {name for name, _ in make_trainer(**KINDS[kind]).shared()}
    speech = {name for name in everything if "speech_encoder." in name or "speech_map." in name}
    assert speech and names == everything - speech
    before = backbone_of(trainer)
    fit(trainer)
    after = backbone_of(trainer)
    assert all(before[name] == after[name] for name in before if name.startswith(("speech_encoder", "speech_map")))


def test_the_rate_follows_the_pace_it_is_given(make_trainer, fit) -> None:
    """Plain steps go as far as their rate: at a rate of nothing nowhere, at half the rate half as far at first."""
    local = {"optimizer": "sgd", "steps": 1, "identity_steps": 0}
    full, half, none = (fit(make_trainer(local), pace=Pace(peak)).update for peak in (0.2, 0.1, 0.0))
    np.testing.assert_allclose(half, full / 2, atol=1e-6)
    assert np.abs(full).max() > 1e-4 and not none.any()
    over = Pace(0.2, before=10, total=10)
    assert np.abs(fit(make_trainer(local), pace=over).update).max() < 1e-6, "a phase's last step is at its end"


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_adapter_trains_after_the_shared_part_and_apart_from_it(make_trainer, fit, kind: str) -> None:
    without, with_identity = (fit(make_trainer({"identity_steps": steps}, **KINDS[kind])) for steps in (0, 2))
    assert without.update.tobytes() == with_identity.update.tobytes()
    assert (without.identity != with_identity.identity).mean() > 0.4


def test_the_identity_adapter_has_a_rate_of_its_own_where_one_is_given(make_trainer, fit, make_windows) -> None:
    """The shared part's where none is; in rounds, and where somebody personalises."""
    sgd = {"optimizer": "sgd", "steps": 1, "identity_steps": 1, "learning_rate": 0.2}

    def moved(local: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """How far B, which starts at nothing, went in a round and in a step of personalising."""
        trainer = make_trainer(local)
        fit(trainer)
        found = []
        for _ in range(2):
            b = [part.detach().flatten() for name, part in trainer.identity() if ".lora_B." in name]
            found.append(torch.cat(b).numpy())
            trainer.load(first_parameters(trainer), None, seed=3)
            trainer.personalize(iter([make_windows(2, 5)]), 1, seed=3)
        return found[0], found[1]

    same, half = (moved(sgd | {"identity_learning_rate": rate}) for rate in (0.2, 0.1))
    for one, two, none in zip(same, half, moved(sgd), strict=True):
        assert np.abs(one).max() > 1e-5
        np.testing.assert_allclose(two, one / 2, atol=1e-6)
        np.testing.assert_array_equal(none, one)


def test_a_new_client_starts_from_an_adapter_without_effect(make_trainer, fit) -> None:
    result = fit(trainer := make_trainer({"identity_steps": 0}))
    for name, parameter in trainer.identity():
        assert bool(parameter.any()) == (".lora_A." in name)
    other = fit(trainer, seed=8).identity
    assert other.tobytes() != result.identity.tobytes()
    assert fit(trainer, identity=other).identity.tobytes() == other.tobytes(), "a known client goes on from its own"


@pytest.mark.parametrize("kind", KINDS)
def test_the_own_adapter_of_a_known_client_acts_while_the_shared_part_is_trained(make_trainer, fit, kind) -> None:
    trainer = make_trainer({"identity_steps": 2}, **KINDS[kind])
    start = first_parameters(trainer)
    new = fit(trainer, shared=start)
    known = fit(trainer, shared=start, identity=new.identity)
    assert known.update.tobytes() != new.update.tobytes() and known.losses != new.losses
    assert same(fit(trainer, shared=start), new)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_leaves_nothing_behind_for_the_next(make_trainer, fit, kind: str) -> None:
    """Whoever a slot worked for before, the next client's update, adapter, losses and score are the same to the bit."""
    alone = fit(make_trainer(**KINDS[kind]), client=2, seed=9)
    torch.manual_seed(1)
    used = make_trainer(**KINDS[kind])
    start = first_parameters(used)
    fit(used, client=1, shared=start, seed=3, proximal=0.5)
    used.held_out_loss(
        WindowBatch(*(torch.randn(shape) for shape in ((1, 4, 4, 8, 8), (1, 4, 44, 40), (1, 4, 8, 8)))), 0
    )
    assert same(alone, fit(used, client=2, shared=start, seed=9))
    assert not same(alone, fit(used, client=2, shared=start, seed=8))


def plain_loop(trainer: LocalTrainer, batches: list[WindowBatch], seed: int, mu: float) -> tuple[np.ndarray, dict]:
    """The same work as a reader of the papers would write it: explicit losses, autograd, clipping by hand, AdamW."""
    local, generator = trainer._config.local, torch.Generator().manual_seed(seed)
    parameters = [parameter for _, parameter in trainer.shared()]
    for parameter in trainer.model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    start = [parameter.detach().clone() for parameter in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=local.learning_rate, weight_decay=local.weight_decay)
    if local.optimizer == "sgd":
        optimiser = torch.optim.SGD(parameters, lr=local.learning_rate)
    source, history = iter(batches), []
    trainer.model.train()
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # dropout
    for _ in range(local.steps):
        terms = [
            window_loss(trainer.model, trainer.scheduler, batch, local.loss, generator, trainer.critic)
            for batch in itertools.islice(source, local.accumulate)
        ]
        loss = torch.stack([each.total for each in terms]).mean()
        drift = sum((p - anchor).square().sum() for p, anchor in zip(parameters, start, strict=True))
        gradients = torch.autograd.grad(loss + mu / 2 * drift, parameters, allow_unused=True)
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient * min(1.0, local.clip_norm / (float(norm) + 1e-6))
        optimiser.step()
        history.append({name: np.mean([each.floats()[name] for each in terms]) for name in terms[0].floats()})
    after = np.concatenate([parameter.detach().numpy().ravel() for parameter in parameters])
    losses = {name: float(np.mean([step[name] for step in history])) for name in history[0]}
    return after - np.concatenate([anchor.numpy().ravel() for anchor in start]), losses


@pytest.mark.parametrize(
    ("kind", "mu", "local"),
    [
        pytest.param("adapter", 0.0, {}, id="adapter"),
        pytest.param("backbone", 20.0, {}, id="fedprox-backbone"),
        pytest.param("adapter", 0.0, {"accumulate": 2, "weight_decay": 0.5}, id="accumulate"),
        pytest.param("adapter", 0.0, {"clip_norm": 1e-3}, id="clip"),
        pytest.param("adapter", 0.0, {"optimizer": "sgd", "learning_rate": 1.0}, id="sgd"),
        pytest.param("adapter", 0.0, {"loss": {"identity": 0.5, "perceptual": 0.5, "tdc": 0.0}}, id="critic"),
    ],
)
def test_a_fit_is_the_plain_training_loop(make_trainer, make_windows, fit, kind: str, mu: float, local: dict) -> None:
    trainer = make_trainer({"identity_steps": 0, "steps": 3} | local, **KINDS[kind])
    result = fit(trainer, proximal=mu)
    start = first_parameters(other := make_trainer({"identity_steps": 0, "steps": 3} | local, **KINDS[kind]))
    other.load(start, None, 7)
    batches = [make_windows(2, number) for number in range(batches_needed(other._config.local))]
    update, losses = plain_loop(other, batches, 7, mu)
    # AdamW divides by the gradient's own size: rounding grows where a gradient is almost 0.
    assert np.abs(result.update - update).max() < 0.05 * np.abs(update).max()
    assert np.abs(result.update - update).mean() < 2e-3 * np.abs(update).mean()
    assert result.losses == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_the_held_out_loss_is_the_mean_diffusion_loss_of_fixed_draws_with_sound(
    make_trainer, make_windows, prediction: str
) -> None:
    trainer, windows = make_trainer({"loss": {"speech_dropout": 1.0}}, prediction), make_windows(2)
    state = torch.get_rng_state()
    values = [trainer.held_out_loss(windows, seed=0) for _ in range(2)]
    assert values[0] == values[1] != trainer.held_out_loss(windows, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    config = trainer._config.local.loss.model_copy(update={"speech_dropout": 0.0, "tdc": 0.0, "motion": 0.0})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = [
            window_loss(trainer.model, trainer.scheduler, windows, config, generator).diffusion.item() for _ in range(4)
        ]
    assert values[0] == pytest.approx(np.mean(draws), rel=1e-5)


def test_personalising_changes_the_identity_adapter_alone(make_trainer, make_windows) -> None:
    trainer = make_trainer()
    trainer.load(first_parameters(trainer), None)
    backbone, shared = backbone_of(trainer), adapters.to_vector(trainer.shared())
    identity, ticks = adapters.to_vector(trainer.identity()), []
    trainer.personalize(iter([make_windows(2, n) for n in range(5)]), 5, seed=0, tick=ticks.append)
    assert backbone_of(trainer) == backbone
    assert adapters.to_vector(trainer.shared()).tobytes() == shared.tobytes()
    assert (adapters.to_vector(trainer.identity()) != identity).mean() > 0.9
    assert len(ticks) == 5 and all("total" in terms for terms in ticks)


def test_what_is_not_finite_or_cut_short_does_not_leave_the_client(make_trainer, make_windows, fit) -> None:
    """Nor is an identity adapter kept: written down, it would spoil this client's every later round."""
    with pytest.raises(ValueError, match=r"update holds values that are not finite; lower local\.learning_rate"):
        fit(make_trainer({"learning_rate": 1e30}))
    trainer, good, broken = make_trainer(), [make_windows(2, number) for number in range(2)], make_windows(2, 9)
    broken.latents.fill_(torch.nan)
    for batches, message in (
        ([*good, broken], "adapter .* not finite"),
        (good[:1], "ended after 1 of 2 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.fit(first_parameters(trainer), None, batches, seed=0)
    assert batches_needed(make_trainer({"accumulate": 4})._config.local) == 12


@pytest.mark.parametrize(("factors", "index", "moved"), [("svd", 1, "B"), ("alternate", 0, "B"), ("alternate", 3, "A")])
def test_only_the_rounds_own_factors_are_trained(make_trainer, fit, factors: str, index: int, moved: str) -> None:
    trainer = make_trainer(lora_aggregation=factors)
    update = fit(trainer, index=index).update
    begin = 0
    for name, parameter in trainer.shared():
        part = update[begin : begin + parameter.numel()]
        assert bool(part.any()) == (f".lora_{moved}." in name), name
        begin += parameter.numel()
    assert begin == len(update)
