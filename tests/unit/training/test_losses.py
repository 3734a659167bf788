"""The loss: TDC against a loop and its published equivalents, every term by its formula, seeds, weights of 0."""

import numpy as np
import pytest
import torch

from fedtalk_ray.media.face_template import MOUTH_BOX
from fedtalk_ray.model.denoiser import PREDICTION_TYPES
from fedtalk_ray.model.schedule import make_scheduler, noise_levels
from fedtalk_ray.recipe import LossConfig
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.losses import (
    SNR_RANGE,
    cell_weights,
    draw_timesteps,
    temporal_denoising_consistency,
    to_clean,
    window_loss,
)

TERMS = ("diffusion", "tdc", "motion", "identity", "perceptual", "sync")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    predicted, target = torch.randn(2, 2, 5, 3, 4, 4, generator=seeded(seed), dtype=torch.double)
    return predicted, target


def tdc_by_loops(predicted: torch.Tensor, target: torch.Tensor) -> float:
    p, y = predicted.numpy(), target.numpy()
    steps = []
    for window in range(p.shape[0]):
        for t in range(p.shape[1] - 1):
            steps.append(np.abs((p[window, t + 1] - p[window, t]) - (y[window, t + 1] - y[window, t])).mean())
    return float(np.mean(steps))


def test_tdc_by_hand() -> None:
    """One cell over three frames: p = 1, 4, 2 and y = 0, 1, 1 move by (3, -2) and (1, 0): (|2| + |-2|) / 2."""
    predicted, target = (torch.tensor(v)[None, :, None, None, None] for v in ([1.0, 4.0, 2.0], [0.0, 1.0, 1.0]))
    assert temporal_denoising_consistency(predicted, target).item() == 2.0
    assert temporal_denoising_consistency(*pair()).item() == pytest.approx(tdc_by_loops(*pair()), rel=1e-12)


@pytest.mark.parametrize("timestep", [50, 500, 950])
def test_tdc_of_noise_and_of_v_are_rescaled_tdc_of_x0(timestep: int) -> None:
    """TDC_eps = (alpha / sigma) TDC_x0 and TDC_v = (1 / sigma) TDC_x0, for one network said in three ways."""
    x0_hat, x0 = pair()
    noise = torch.randn(x0.shape, generator=seeded(1), dtype=torch.double)
    alpha, sigma = (level.double() for level in noise_levels(make_scheduler("sample"), torch.tensor(timestep)))
    noisy = alpha * x0 + sigma * noise
    eps_hat = (noisy - alpha * x0_hat) / sigma
    v_hat, v = alpha * eps_hat - sigma * x0_hat, alpha * noise - sigma * x0
    of_x0 = tdc_by_loops(x0_hat, x0)
    assert temporal_denoising_consistency(eps_hat, noise).item() == pytest.approx(alpha.item() / sigma.item() * of_x0)
    # sigma and alpha come in float32, so that alpha^2 + sigma^2 is 1 to seven digits.
    assert temporal_denoising_consistency(v_hat, v).item() == pytest.approx(of_x0 / sigma.item(), rel=1e-5)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_x0_is_found_again_from_the_true_target(kind: str) -> None:
    clean, noise = pair()
    alpha, sigma = torch.tensor(0.6).double(), torch.tensor(0.8).double()
    target = {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[kind]
    assert torch.allclose(to_clean(target, alpha * clean + sigma * noise, alpha, sigma, kind), clean)


def test_x0_from_noise_is_bounded_where_there_is_no_signal() -> None:
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    found = to_clean(torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]), zero, one, "epsilon")
    assert found.tolist() == [6, -6]


@pytest.mark.parametrize("side", [8, 16, 64])
@pytest.mark.parametrize("weight", [1.0, 2.5, 5.0])
def test_cells_weigh_1_on_average_and_the_mouth_so_many_times_more(side: int, weight: float) -> None:
    weights = cell_weights(side, weight)
    left, top, right, bottom = (round(edge * side) for edge in MOUTH_BOX)
    mouth = torch.zeros(side, side, dtype=torch.bool)
    mouth[top:bottom, left:right] = True
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(weights[mouth], weight * weights[0, 0]) and torch.allclose(weights[~mouth], weights[0, 0])


@pytest.mark.parametrize("bias", [1.0, 2.0, 4.0])
def test_timesteps_lean_to_the_noisy_end_as_the_bias_says(bias: float) -> None:
    """t = T (1 - u^b), so P(t < T x) = 1 - (1 - x)^(1/b)."""
    drawn = draw_timesteps(make_scheduler("sample"), 20_000, bias, seeded()).numpy()
    assert drawn.dtype == np.int64 and drawn.min() >= 0 and drawn.max() == 999
    for share in (0.1, 0.5, 0.9, 0.99):
        expected = 1 - (1 - share) ** (1 / bias)
        assert (drawn < 1000 * share).mean() == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 20_000))


class NoCritic:
    """A critic that must not be asked."""

    def __call__(self, *_: object) -> None:
        raise AssertionError("terms of weight 0 were computed")


class Distances:
    """A critic whose distances are known: mean squared and mean absolute difference of latents."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, generated: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append((generated.detach(), truth))
        return (generated - truth).square().mean(), (generated - truth).abs().mean()


def out_of_step(latents: torch.Tensor, speech: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Stands for a sync network's loss: something of all three."""
    return (latents.mean((2, 3, 4)) - speech.mean((2, 3)) + reference.mean()).square().mean()


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_term_by_its_formula(make_denoiser, make_windows, kind: str) -> None:
    denoiser, scheduler, batch = make_denoiser(prediction_type=kind), make_scheduler(kind), make_windows(3)
    config = LossConfig(tdc=0.5, motion=0.7, identity=0.3, perceptual=0.2, sync=0.1, mouth_weight=3, noise_bias=2)
    critic = Distances()
    with torch.no_grad():
        terms = window_loss(denoiser, scheduler, batch, config, seeded(4), critic, out_of_step)

    draws = seeded(4)
    timestep = draw_timesteps(scheduler, 3, 2, draws)
    noise = torch.randn(batch.latents.shape, generator=draws)
    heard = torch.rand(3, generator=draws) >= config.speech_dropout
    clean = (batch.latents - batch.reference[:, None]) / denoiser.residual_std[:, None, None]
    cumulative = scheduler.alphas_cumprod[timestep][:, None, None, None, None]
    alpha, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
    if kind != "epsilon":
        noise = torch.where((timestep == 999)[:, None, None, None, None], 0, noise)
    noisy = alpha * clean + sigma * noise
    with torch.no_grad():
        predicted = denoiser(noisy, timestep, batch.speech, batch.reference, heard)
        suggested = denoiser.speech_motion(batch.speech)
    target = {"sample": clean, "epsilon": noise, "v_prediction": alpha * noise - sigma * clean}[kind]
    # Signal to noise, clamped, where the network predicts x0; even weights where it does not.
    weight = (cumulative / (1 - cumulative)).clamp(*SNR_RANGE) if kind == "sample" else torch.ones(3, 1, 1, 1, 1)
    spread = denoiser.residual_std
    mask = cell_weights(8, 3.0) * (spread / spread.mean())[:, None, None]
    error = predicted - target
    expected = {
        "diffusion": (weight * mask * error**2).mean(),
        "tdc": (weight * mask * (error[:, 1:] - error[:, :-1]).abs()).mean(),
        "motion": (mask * (suggested - clean) ** 2).mean(),
    }
    ((generated, truth),) = critic.seen
    frame = next(k for k in range(4) if torch.equal(truth, batch.latents[:, k]))
    x0 = {"sample": predicted, "epsilon": (noisy - sigma * predicted) / alpha, "v_prediction": None}[kind]
    x0 = alpha * noisy - sigma * predicted if x0 is None else x0
    x0 = x0.clamp(-6, 6) if kind == "epsilon" else x0
    frames = x0 * denoiser.residual_std[:, None, None] + batch.reference[:, None]
    assert torch.allclose(generated, frames[:, frame], atol=1e-3)
    expected["sync"] = out_of_step(frames, batch.speech, batch.reference)
    found = terms.floats()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-4), name
    total = found["diffusion"] + sum(getattr(config, name) * found[name] for name in TERMS[1:])
    assert found["total"] == pytest.approx(total, rel=1e-6) and all(value > 0 for value in found.values())


def test_terms_of_weight_0_are_not_computed(make_denoiser, make_windows) -> None:
    denoiser = make_denoiser()
    denoiser.speech_motion = NoCritic()
    config = LossConfig(tdc=0, motion=0)
    terms = window_loss(
        denoiser, make_scheduler("sample"), make_windows(), config, seeded(), NoCritic(), NoCritic()
    ).floats()
    assert [terms[name] for name in TERMS[1:]] == [0, 0, 0, 0, 0] and terms["total"] == terms["diffusion"] > 0


def test_a_seed_means_the_same_loss_and_torchs_own_generator_is_left_alone(make_denoiser, make_windows) -> None:
    denoiser, scheduler, state = make_denoiser(), make_scheduler("sample"), torch.get_rng_state()
    losses = [
        window_loss(denoiser, scheduler, make_windows(), LossConfig(), seeded(seed)).floats() for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] and losses[0]["diffusion"] != losses[2]["diffusion"]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_window_that_lost_its_sound_is_trained_without_it(make_denoiser, make_windows) -> None:
    batch = make_windows()
    other = WindowBatch(batch.latents, batch.speech + 1, batch.reference)
    for dropout, equal in ((1.0, True), (0.0, False)):
        config = LossConfig(motion=0, speech_dropout=dropout)
        one, two = (
            window_loss(make_denoiser(), make_scheduler("sample"), windows, config, seeded()).floats()
            for windows in (batch, other)
        )
        assert (one == two) == equal


def test_the_critics_terms_train_the_denoiser(make_pipeline, make_windows) -> None:
    from fedtalk_ray.model.pipeline import make_critic

    pipeline = make_pipeline()
    config = LossConfig(tdc=0, motion=0, identity=1, perceptual=1)
    terms = window_loss(pipeline.denoiser, pipeline.scheduler, make_windows(), config, seeded(), make_critic(pipeline))
    (terms.identity + terms.perceptual).backward()
    assert pipeline.denoiser.conv_out.weight.grad.abs().sum() > 0
