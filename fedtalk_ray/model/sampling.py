"""Sampling: the denoising steps as a chain of filters that a clip flows through, so that any length fits in memory.

Each step predicts windows that overlap by half and blends them (triangular weights), so that no seam between windows
can form. A frame leaves a step as soon as every window over it was predicted, and the next step takes it up. So each
step holds one group of windows, no window is predicted twice, and where blocks of output end changes nothing.

What the first step predicts, from pure noise, is the mean of all that may be seen; what comes after the last step is a
sample of it. `TalkingHeadDenoiser.shown` makes one face of the two: the mean around the mouth, where the sound decides,
and elsewhere a sample, or a face would be too still. On held-out GRID clips (seen, unseen speakers) lip correlation is
so 0.56, 0.64 rather than a sample's 0.53, 0.62, and the mouth 0.2 dB better.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from diffusers import DDIMScheduler

from fedtalk_ray.model.denoiser import bare_denoiser

DEFAULT_STEPS = 2
"""DDIM steps; 1 shows the mean everywhere. On four unseen GRID speakers 2 / 3 / 8 steps gave a jitter of 1.17 / 1.28 /
1.51 times the truth's: more only add noise."""
DEFAULT_GUIDANCE = 1.0
"""How far the sound's effect is exaggerated; 1 is not at all. On five unseen GRID speakers 2 opened the lips 1.6
times too far and cost 1.2 dB in the mouth for 0.02 of lip correlation."""
DEFAULT_DRAWS = 2
"""Noises over which the mean is averaged when a video is made. On seven unseen GRID clips 1 / 2 / 4 / 6 of them gave
the mouth 29.30 / 29.40 / 29.45 / 29.47 dB, when each was drawn by itself; each costs one denoising step. On eight clips
a second one of its own gave 28.52 dB, the negative of the first 28.55."""
STEADIED_FRAMES = 7
"""A sample's motion is shown without the mean of so many frames around. On 15 and 8 held-out GRID clips (seen, unseen
speakers) that gave the whole face 0.23 and 0.21 dB and its likeness 0.004 and 0.007, for as much motion."""
DEFAULT_BATCH = 8
"""Windows that the denoiser predicts at once. On a CPU core 2 to 32 are about equally fast, 8 a little the fastest."""


def sample_clip(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    reference: torch.Tensor,
    speech: torch.Tensor,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    generator: torch.Generator | None = None,
    batch: int = DEFAULT_BATCH,
    identity: torch.Tensor | None = None,
    draws: int = 1,
) -> torch.Tensor:
    """All of `sample_stream` in one tensor: latents float32 [T, C, h, w] on the CPU."""
    return torch.cat(
        list(sample_stream(denoiser, scheduler, reference, speech, steps, guidance, generator, batch, identity, draws))
    )


def sample_stream(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    reference: torch.Tensor,
    speech: torch.Tensor,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    generator: torch.Generator | None = None,
    batch: int = DEFAULT_BATCH,
    identity: torch.Tensor | None = None,
    draws: int = 1,
) -> Iterator[torch.Tensor]:
    """Yields a clip in order, latents float32 [n, C, h, w] on the CPU, T frames in all: what `denoiser.shown` makes of
    `sample_parts`, which says what the arguments are."""
    base = bare_denoiser(denoiser)
    parts = sample_parts(denoiser, scheduler, reference, speech, steps, guidance, generator, batch, identity, draws)
    face = reference.to(base.device)
    for mean, sample in parts:
        yield base.from_residual(base.shown(mean, sample)[None], face[None])[0].float().cpu()


@torch.no_grad()
def sample_parts(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    reference: torch.Tensor,
    speech: torch.Tensor,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    generator: torch.Generator | None = None,
    batch: int = DEFAULT_BATCH,
    identity: torch.Tensor | None = None,
    draws: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the first step's mean and the last step's sample, residuals [n, C, h, w] in order, T frames in all.

    reference: latents [C, h, w]. speech: [T, hops, mel], T >= 1; it may be a view that overlaps itself, only what a
    group of windows needs is copied. identity: the face's embedding [D], for a denoiser that takes one. draws: noises
    over which the mean is averaged, every second one the negative of the one before (what errors are odd in the noise
    cancels); the sample is that of the first, steadied (`_steadied`). Memory does not depend on T. Noise is drawn on
    the CPU, frame after frame: a seeded `generator` means the same clip on every device.
    """
    base = bare_denoiser(denoiser)
    device, window = base.device, base.config.window
    total = len(speech)
    length = max(total, window)  # a clip shorter than a window goes on hearing its last frame
    begins = [*range(0, length - window, max(1, window // 2)), length - window]
    groups = [begins[at : at + batch] for at in range(0, len(begins), batch)]
    reference = reference.to(device)
    # `set_timesteps` changes the scheduler: two clips that are made in turn must not share one.
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(steps, device=device)

    def predict(timestep: torch.Tensor, windows: torch.Tensor, group: list[int]) -> torch.Tensor:
        places = torch.tensor(group)[:, None] + torch.arange(window)
        sounds = speech[places.clamp(max=total - 1)].to(device)
        return _predict(denoiser, windows, timestep, sounds, reference, identity, guidance)

    channels = len(reference)

    def update(timestep: torch.Tensor, predicted: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """The next step's noisy frames; the first step's mean rides along in further channels."""
        noisy, mean = held[:, :channels], held[:, channels:]
        step = scheduler.step(predicted, timestep, noisy)
        return torch.cat([step.prev_sample, mean if mean.shape[1] else step.pred_original_sample], dim=1)

    def step(timestep: torch.Tensor, frames: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        return _denoised(frames, channels, groups, window, partial(predict, timestep), partial(update, timestep))

    shape, first = tuple(reference.shape), scheduler.timesteps[0]
    # Draws flow past side by side: a generator for each pair, or their order would depend on how windows are grouped.
    seeds = torch.randint(2**62, ((draws - 1) // 2,), generator=generator)
    noises: list[Iterator[torch.Tensor]] = []
    for source in (generator, *(torch.Generator().manual_seed(int(seed)) for seed in seeds)):
        noise = _noise(length, shape, source, device)
        noises += _with_negative(noise) if len(noises) + 2 <= draws else [noise]
    drawn = [step(first, noise) for noise in noises]
    frames: Iterator[torch.Tensor] = (_averaged(pieces, channels) for pieces in zip(*drawn, strict=True))
    for timestep in scheduler.timesteps[1:]:
        frames = step(timestep, frames)
    parts = _first(total, frames, channels)
    # A network that predicts noise has no mean that a sample could stray from.
    yield from parts if base.config.prediction_type == "epsilon" else _steadied(parts)


def _first(total: int, frames: Iterator[torch.Tensor], channels: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(mean, sample) of the first `total` frames of pieces [n, 2 * channels, h, w]."""
    made = 0
    for piece in frames:
        sample, mean = piece[: total - made].split(channels, dim=1)
        made += len(mean)
        if len(mean):
            yield mean, sample


def _steadied(parts: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(mean, sample) [n, C, h, w] again, the sample without the slow part of what it adds to the mean.

    What it adds is less its own average over `STEADIED_FRAMES` frames, the ends repeated. From frame to frame the face
    moves as before, but it no longer looks for half a second like somebody a little different.
    """
    reach = STEADIED_FRAMES // 2

    def quick(added: torch.Tensor) -> torch.Tensor:
        return added[reach : len(added) - reach] - added.unfold(0, STEADIED_FRAMES, 1).mean(-1)

    means = added = torch.empty(0)
    for mean, sample in parts:
        fresh = sample - mean
        if not len(added):
            means, added = mean[:0], fresh[:1].expand(reach, *fresh.shape[1:])
        means, added = torch.cat([means, mean]), torch.cat([added, fresh])
        ready = len(means) - reach
        if ready > 0:
            yield means[:ready], means[:ready] + quick(added[: ready + 2 * reach])
            means, added = means[ready:], added[ready:]
    yield means, means + quick(torch.cat([added, added[-1:].expand(reach, *added.shape[1:])]))


def _noise(
    length: int, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Iterator[torch.Tensor]:
    """`length` frames of noise, one at a time: torch draws other numbers for other shapes."""
    for _ in range(length):
        yield torch.randn((1, *shape), generator=generator).to(device)


def _with_negative(noise: Iterator[torch.Tensor]) -> tuple[Iterator[torch.Tensor], Iterator[torch.Tensor]]:
    """The noise twice, once with the other sign. Both must flow past together: what one is ahead by is held."""
    same, other = itertools.tee(noise)
    return same, (-frame for frame in other)


def _averaged(pieces: tuple[torch.Tensor, ...], channels: int) -> torch.Tensor:
    """The first draw's noisy frames with the mean of all draws' means, [n, 2 * channels, h, w]."""
    mean = torch.stack([piece[:, channels:] for piece in pieces]).mean(0)
    return torch.cat([pieces[0][:, :channels], mean], dim=1)


def _denoised(
    frames: Iterator[torch.Tensor],
    channels: int,
    groups: list[list[int]],
    window: int,
    predict: Callable[[torch.Tensor, list[int]], torch.Tensor],
    update: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Iterator[torch.Tensor]:
    """One denoising step over a clip that flows past, pieces [n, C, h, w] in and out; the first `channels` are noisy.

    groups: where windows begin, those that are predicted together in one list.
    """
    held = total = weight = torch.empty(0)
    first = 0  # number of the frame that is held[0]
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        pieces, last = [held] if len(held) else [], first + len(held)
        while last < group[-1] + window:
            pieces.append(next(frames))
            last += len(pieces[-1])
        held = torch.cat(pieces)
        if not len(total):
            total, weight = held[:0, :channels], held[:0, :1, :1, :1]
            ramp = torch.arange(1, window + 1, device=held.device, dtype=torch.float32)
            blend = torch.minimum(ramp, ramp.flip(0))[:, None, None, None]
        total = torch.cat([total, torch.zeros_like(held[len(total) :, :channels])])
        weight = torch.cat([weight, torch.zeros_like(held[len(weight) :, :1, :1, :1])])
        places = [slice(begin - first, begin - first + window) for begin in group]
        predictions = predict(torch.stack([held[place, :channels] for place in places]), group)
        for place, prediction in zip(places, predictions, strict=True):
            total[place] += blend * prediction
            weight[place] += blend
        # Frames before the next window will not be predicted again.
        done = (following[0] if following else last) - first
        yield update(total[:done] / weight[:done], held[:done])
        held, total, weight, first = held[done:], total[done:], weight[done:], first + done


def _predict(
    denoiser: torch.nn.Module,
    windows: torch.Tensor,
    timestep: torch.Tensor,
    sounds: torch.Tensor,
    reference: torch.Tensor,
    identity: torch.Tensor | None,
    guidance: float,
) -> torch.Tensor:
    """The one call of the denoiser: windows [B, T, C, h, w] with their sounds [B, T, hops, mel], guided if asked."""
    count = len(windows)
    faces, times = reference.expand(count, *reference.shape), timestep.expand(count)
    who = None if identity is None else identity.to(windows.device).expand(count, -1)
    predicted = denoiser(windows, times, sounds, faces, None, who)
    if guidance != 1:
        silent = torch.zeros(count, dtype=torch.bool, device=windows.device)
        without = denoiser(windows, times, sounds, faces, silent, who)
        predicted = without + guidance * (predicted - without)
    return predicted
