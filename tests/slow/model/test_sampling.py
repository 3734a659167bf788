"""Clips of any length: equal to the whole clip computed at once, in constant memory, without a seam."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter1d

from fedtalk_ray.model.pipeline import frame_count
from fedtalk_ray.model.sampling import sample_stream
from fedtalk_ray.model.schedule import make_scheduler


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(denoiser, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A reference and as many frames of speech."""
    speech = np.random.default_rng(0).normal(size=(frames, denoiser.config.speech_hops, denoiser.config.mel_bins))
    return torch.randn(4, 8, 8, generator=seeded(5)), torch.from_numpy(speech).float()


@torch.no_grad()
def whole_clip(denoiser, kind, reference, speech, steps, guidance, generator) -> torch.Tensor:
    """The same by the definition: every step predicts all windows of the clip and blends them, then the next begins."""
    scheduler, window, total = make_scheduler(kind), denoiser.config.window, len(speech)
    speech = torch.cat([speech, speech[-1:].expand(max(0, window - total), -1, -1)])
    length = len(speech)
    noise = torch.randn((length, *reference.shape), generator=generator)
    noisy = noise if kind == "epsilon" else torch.zeros_like(noise)
    begins = sorted({*range(0, length - window + 1, window // 2), length - window})
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        sums, weights = torch.zeros_like(noisy), torch.zeros(length, 1, 1, 1)
        for begin in begins:
            arguments = (
                noisy[None, begin : begin + window],
                timestep[None],
                speech[None, begin : begin + window],
                reference[None],
            )
            predicted = denoiser(*arguments)[0]
            if guidance != 1:
                silent = denoiser(*arguments, torch.tensor([False]))[0]
                predicted = silent + guidance * (predicted - silent)
            for place in range(window):
                weight = min(place + 1, window - place)
                sums[begin + place] += weight * predicted[place]
                weights[begin + place] += weight
        step = scheduler.step(sums / weights, timestep, noisy)
        if timestep == scheduler.timesteps[0]:
            mean = step.pred_original_sample
        noisy = step.prev_sample
        if kind != "epsilon" and timestep == scheduler.timesteps[0] and steps > 1:
            # The zeros were no noise that could be found again in the clip; it is added now.
            level = scheduler.alphas_cumprod[scheduler.timesteps[1]]
            noisy = level.sqrt() * mean + (1 - level).sqrt() * noise
    # Of 8 cells the mouth covers rows 4 to 6 and columns 2 to 5; each edge is softened over its neighbours.
    inside = np.zeros((10, 10))
    inside[5:8, 3:7] = 1
    share = np.mean([inside[row : row + 8, column : column + 8] for row in range(3) for column in range(3)], axis=0)
    share = torch.from_numpy(share).float()
    mean, sample = mean[:total], noisy[:total]
    slow = torch.from_numpy(uniform_filter1d((sample - mean).numpy(), 7, axis=0, mode="nearest"))
    shown = sample if kind == "epsilon" else share * mean + (1 - share) * (sample - slow)
    return denoiser.from_residual(shown[None], reference[None])[0]


@pytest.mark.parametrize(
    ("kind", "frames"), [("sample", frames) for frames in (1, 4, 5, 17)] + [("v_prediction", 15), ("epsilon", 15)]
)
def test_what_flows_past_equals_the_whole_clip_at_once(make_denoiser, kind: str, frames: int) -> None:
    denoiser = make_denoiser(prediction_type=kind)
    reference, speech = clip(denoiser, frames)
    for steps, guidance, batch in ((3, 1.0, 2), (2, 1.5, 3)):
        expected = whole_clip(denoiser, kind, reference, speech, steps, guidance, seeded())
        pieces = list(
            sample_stream(denoiser, make_scheduler(kind), reference, speech, steps, guidance, seeded(), batch)
        )
        made = torch.cat(pieces)
        assert made.shape == expected.shape and made.dtype == torch.float32
        scale = float(expected.abs().max())
        assert torch.allclose(made, expected, atol=1e-5 * max(1.0, scale))
        longest = batch * 2 + 4 + 3
        assert max(len(piece) for piece in pieces) <= longest, "whole groups of windows, never the whole clip"


@pytest.mark.parametrize("block", [7, 1000])
def test_the_pipelines_blocks_are_its_clip_cut_anew(make_pipeline, block: int) -> None:
    pipeline = make_pipeline()
    rng = np.random.default_rng(0)
    face, audio = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), rng.normal(0, 0.1, 49_500).astype(np.float32)
    whole = pipeline(face, audio, generator=seeded()).frames
    blocks = list(pipeline.stream(face, audio, generator=seeded(), block=block))
    assert len(whole) == 78 == frame_count(len(audio)), "77.3 frames of sound; no multiple of the window"
    assert (np.concatenate(blocks) == whole).all()
    assert [len(part) for part in blocks] == [block] * (78 // block) + [78 % block] * bool(78 % block)
    with pytest.raises(ValueError, match="block is 0; it must be at least 1 frame"):
        pipeline.stream(face, audio, block=0)
