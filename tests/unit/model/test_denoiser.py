"""The denoiser: shapes, what starts at zero, what may depend on what, units, and its own format on disk."""

import numpy as np
import pytest
import torch

from fedtalk_ray.model.denoiser import FrameBlock, TalkingHeadDenoiser

STEP = torch.tensor([300, 700])


def run(denoiser: TalkingHeadDenoiser, batch, heard: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(batch.latents, STEP[: len(batch)], batch.speech, batch.reference, heard)


@pytest.mark.parametrize("frames", [1, 7])
def test_a_window_of_any_length_is_predicted_by_itself(make_denoiser, make_windows, frames: int) -> None:
    denoiser, batch = make_denoiser(), make_windows(2, frames=frames)
    output = run(denoiser, batch)
    with torch.no_grad():
        alone = denoiser(batch.latents[1:], STEP[1:], batch.speech[1:], batch.reference[1:])
    assert output.shape == batch.latents.shape and torch.isfinite(output).all()
    assert torch.allclose(output[1:], alone, atol=1e-5)
    with pytest.raises(ValueError, match="prediction_type is 'score'; known: sample, v_prediction, epsilon"):
        TalkingHeadDenoiser(prediction_type="score")


def test_untrained_it_predicts_what_the_sound_suggests_or_nothing(make_denoiser, make_windows) -> None:
    batch = make_windows()
    untrained = make_denoiser(awake=False)
    assert torch.equal(run(untrained, batch), untrained.speech_motion(batch.speech))
    for kind in ("v_prediction", "epsilon"):
        assert not run(make_denoiser(awake=False, prediction_type=kind), batch).any()


@pytest.mark.parametrize("changed", ["sound", "picture"])
def test_frames_are_independent_until_the_convolutions_over_time_have_learned(
    make_denoiser, make_windows, wake_zeros, changed: str
) -> None:
    denoiser = make_denoiser(awake=False)
    denoiser.conv_out.weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    before, after = make_windows(), make_windows()
    (after.speech if changed == "sound" else after.latents)[:, 2] += 1
    moved = (run(denoiser, after) - run(denoiser, before)).abs().amax((0, 2, 3, 4))
    assert moved[2] > 1e-3 and moved[[0, 1, 3]].max() < 1e-6
    wake_zeros(denoiser)
    moved = (run(denoiser, after) - run(denoiser, before)).abs().amax((0, 2, 3, 4))
    assert moved.min() > 1e-4


def test_a_block_convolves_over_time_as_a_loop_would() -> None:
    torch.manual_seed(0)
    block = FrameBlock(8, 8, 6, dropout=0.1).eval()
    torch.nn.init.normal_(block.temporal.weight)
    torch.nn.init.normal_(block.temporal.bias)
    windows, frames = 2, 5
    hidden, embedding = torch.randn(windows * frames, 8, 3, 2), torch.randn(windows * frames, 6)
    with torch.no_grad():
        spatial = block.spatial(hidden, embedding).unflatten(0, (windows, frames)).numpy()
        output = block(hidden, embedding, frames).unflatten(0, (windows, frames)).numpy()
    kernel, bias = block.temporal.weight.detach().numpy()[..., 0], block.temporal.bias.detach().numpy()
    active = spatial / (1 + np.exp(-spatial))
    expected = spatial + bias[None, None, :, None, None]
    for t in range(frames):
        for tap in range(3):
            if 0 <= t + tap - 1 < frames:
                expected[:, t] += np.einsum("oi,bihw->bohw", kernel[..., tap], active[:, t + tap - 1])
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_residuals_by_hand_and_back(make_denoiser) -> None:
    denoiser = make_denoiser()
    denoiser.residual_std.copy_(torch.tensor([1.0, 2.0, 4.0, 0.5]))
    latents, reference = torch.full((1, 2, 4, 8, 8), 5.0), torch.full((1, 4, 8, 8), 3.0)
    residual = denoiser.to_residual(latents, reference)
    assert residual[0, 1, :, 0, 0].tolist() == [2.0, 1.0, 0.5, 4.0]
    assert torch.equal(denoiser.from_residual(residual, reference), latents)


def test_without_hearing_the_sound_does_not_matter(make_denoiser, make_windows) -> None:
    denoiser, batch, other = make_denoiser(), make_windows(), make_windows()
    other.speech.add_(1)
    deaf, hearing = torch.tensor([False, False]), torch.tensor([True, True])
    assert torch.equal(run(denoiser, batch, deaf), run(denoiser, other, deaf))
    assert torch.equal(run(denoiser, batch, hearing), run(denoiser, batch))
    mixed = run(denoiser, batch, torch.tensor([True, False]))
    assert torch.allclose(mixed[0], run(denoiser, batch)[0], atol=1e-6)
    assert torch.allclose(mixed[1], run(denoiser, batch, deaf)[1], atol=1e-6)
    assert (run(denoiser, batch) - run(denoiser, batch, deaf)).abs().max() > 1e-3


def test_a_lip_shape_by_hand(make_denoiser) -> None:
    """The aperture, then displacements along the axes, each in its own units."""
    denoiser = make_denoiser(lip_numbers=3)
    assert not denoiser.knows_lips()
    denoiser.lip_axes[0, 0], denoiser.lip_axes[1, 39] = 1, -1
    denoiser.lip_mean.copy_(torch.tensor([0.1, 0, 0]))
    denoiser.lip_std.copy_(torch.tensor([0.05, 0.01, 0.02]))
    motion = torch.zeros(2, 41)
    motion[:, 0] = 0.2
    motion[1, 1], motion[1, 40] = 0.03, 0.04
    assert torch.allclose(denoiser.lip_shape(motion), torch.tensor([[2.0, 0, 0], [2, 3, -2]]), atol=1e-5)
    assert denoiser.knows_lips()
