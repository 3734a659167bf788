"""Sampling: the denoising steps as a chain of filters that a clip flows through, so that any length fits in memory.

Each step predicts windows that overlap by half and blends them (triangular weights), so that no seam between windows
can form. A frame leaves a step as soon as every window over it was predicted, and the next step takes it up. So each
step holds one group of windows, no window is predicted twice, and where blocks of output end changes nothing.

The first step begins where a clip's noise hides everything, so the network is shown nothing (zeros) in its place, and
answers with the mean of all that may be seen. Noise is added to that mean, and the steps that follow make a sample of
it. `TalkingHeadDenoiser.shown` makes one face of the two: the mean around the mouth, where the sound decides, and
elsewhere a sample, or a face would be too still.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from diffusers import DDIMScheduler

from fedtalk_ray.errors import UserError
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.schedule import noise_levels
from fedtalk_ray.model.told import NOTHING_TOLD, Heard, Told

DEFAULT_STEPS = 2
"""DDIM steps; 1 shows the mean everywhere. On four unseen GRID speakers, before samples were steadied, 2 / 3 / 8 steps
gave a jitter of 1.17 / 1.28 / 1.51 times the truth's: more only add noise."""
DEFAULT_GUIDANCE = 1.0
"""How far the sound's effect is exaggerated; 1 is not at all. On five unseen GRID speakers 2 opened the lips 1.6
times too far and cost 1.2 dB in the mouth for 0.02 of lip correlation."""
STEADIED_FRAMES = 7
"""A sample's motion is shown without the mean of so many frames around. On 15 and 8 held-out GRID clips (seen, unseen
speakers) that gave the whole face 0.23 and 0.21 dB and its likeness 0.004 and 0.007, for as much motion."""
DEFAULT_BATCH = 8
"""Windows that the denoiser predicts at once. On a CPU core 2 to 32 are about equally fast, 8 a little the fastest."""


@dataclass(frozen=True)
class Sampling:
    """What whoever lets a face speak may choose beside the seed. steps: at least 1. guidance: 0 hears nothing.

    Raises `UserError` for a guidance that is negative or no finite number.
    """

    steps: int = DEFAULT_STEPS
    guidance: float = DEFAULT_GUIDANCE

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance is {self.guidance:g}; it must be a number, 0 or more")


USUAL = Sampling()


def sample_clip(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    reference: torch.Tensor,
    speech: Heard,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    generator: torch.Generator | None = None,
    batch: int = DEFAULT_BATCH,
    identity: torch.Tensor | None = None,
    told: Told = NOTHING_TOLD,
) -> torch.Tensor:
    """All of `sample_stream` in one tensor: latents float32 [T, C, h, w] on the CPU."""
    given = denoiser, scheduler, reference, speech, steps, guidance, generator, batch, identity, told
    return torch.cat(list(sample_stream(*given)))


def sample_stream(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    reference: torch.Tensor,
    speech: Heard,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    generator: torch.Generator | None = None,
    batch: int = DEFAULT_BATCH,
    identity: torch.Tensor | None = None,
    told: Told = NOTHING_TOLD,
) -> Iterator[torch.Tensor]:
    """Yields a clip in order, latents float32 [n, C, h, w] on the CPU, T frames in all: what `denoiser.shown` makes of
    `sample_parts`, which says what the arguments are."""
    base = bare_denoiser(denoiser)
    parts = sample_parts(denoiser, scheduler, reference, speech, steps, guidance, generator, batch, identity, told)
    face, made = reference.to(base.device)[None], 0
    for mean, sample in parts:
        motion = motion_of(base, face, told, torch.arange(made, made + len(mean)))
        made += len(mean)
        yield base.from_residual(base.shown(mean, sample, motion)[None], face)[0].float().cpu()


def motion_of(base: Any, reference: torch.Tensor, told: Told, places: torch.Tensor) -> torch.Tensor | float:
    """How far the bent reference of some frames is from the reference [1, C, h, w]: residuals [n, C, h, w], or 0 where
    none is told."""
    if told.bent is None:
        return 0.0
    return base.to_residual(told.bent[places][None].to(reference), reference)[0]


@torch.no_grad()
def sample_parts(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    reference: torch.Tensor,
    speech: Heard,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
    generator: torch.Generator | None = None,
    batch: int = DEFAULT_BATCH,
    identity: torch.Tensor | None = None,
    told: Told = NOTHING_TOLD,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the first step's mean and the last step's sample, residuals [n, C, h, w] in order, T frames in all.

    reference: latents [C + G, h, w], of which the last G are given to every frame. speech: [T, hops, mel], T >= 1; it
    may be a view that overlaps itself, only what a group of windows needs is copied. identity: the face's embedding
    [D], for a denoiser that takes one. told: what it is told of lips (`model.told.told_of`).
    The sample is steadied (`_steadied`); with one step, and of a backbone that makes each frame alone, it is the mean.
    Memory does not depend on T. Noise is drawn on the CPU, frame after frame: a seeded `generator`
    means the same clip on every device.
    """
    base = bare_denoiser(denoiser)
    device, window = base.device, base.config.window
    total = len(speech)
    length = max(total, window)  # a clip shorter than a window goes on hearing its last frame
    step_on = window if base.each_frame_alone else max(1, window // 2)
    begins = [*range(0, length - window, step_on), length - window]
    groups = [begins[at : at + batch] for at in range(0, len(begins), batch)]
    reference = reference.to(device)
    # `set_timesteps` changes the scheduler: two clips that are made in turn must not share one.
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(1 if base.each_frame_alone else steps, device=device)

    def predict(timestep: torch.Tensor, windows: torch.Tensor, group: list[int]) -> torch.Tensor:
        places = torch.tensor(group)[:, None] + torch.arange(window)
        places = places.clamp(max=total - 1)
        shapes = None if told.lips is None else told.lips[places].to(device)
        bent = None if told.bent is None else told.bent[places].to(device)
        if len(given):
            windows = torch.cat([windows, given.expand(*windows.shape[:2], *given.shape)], dim=2)
        sounds = speech[places].to(device)
        seen = told.reference_lips, bent
        return _predict(denoiser, windows, timestep, sounds, reference, identity, guidance, shapes, *seen)

    made, given = base.split(reference)
    channels = len(made)
    noise = _noise(length, tuple(made.shape), generator, device)
    first, *later = scheduler.timesteps

    def update(timestep: torch.Tensor, predicted: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """The next step's noisy frames; what else a frame carries in further channels rides along."""
        noisy, mean = held[:, :channels], held[:, channels:]
        return torch.cat([scheduler.step(predicted, timestep, noisy).prev_sample, mean], dim=1)

    def step(frames: Iterator[torch.Tensor], timestep: torch.Tensor) -> Iterator[torch.Tensor]:
        return _denoised(frames, channels, groups, window, partial(predict, timestep), partial(update, timestep))

    if noise_levels(scheduler, first.cpu())[0] > 0:
        # Where the schedule of a network that predicts noise begins, something of the clip is left under the noise.
        samples = reduce(step, scheduler.timesteps, noise)
        yield from _first(total, (torch.cat([piece, piece], dim=1) for piece in samples), channels)
        return

    def clean(predicted: torch.Tensor, nothing: torch.Tensor) -> torch.Tensor:
        return scheduler.step(predicted, first, nothing).pred_original_sample

    def noised(mean: torch.Tensor) -> torch.Tensor:
        fresh = torch.cat([next(noise) for _ in mean])
        return torch.cat([scheduler.add_noise(mean, fresh, later[0]) if later else mean, mean], dim=1)

    nothing = (torch.zeros_like(made)[None] for _ in range(length))
    means = _denoised(nothing, channels, groups, window, partial(predict, first), clean)
    yield from _steadied(_first(total, reduce(step, later, map(noised, means)), channels))


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
    lips: torch.Tensor | None,
    reference_lips: torch.Tensor | None,
    bent: torch.Tensor | None,
) -> torch.Tensor:
    """The one call of the denoiser: windows [B, T, C, h, w] with their sounds [B, T, hops, mel], guided if asked."""
    count = len(windows)
    faces, times = reference.expand(count, *reference.shape), timestep.expand(count)
    who = None if identity is None else identity.to(windows.device).expand(count, -1)
    seen = None if reference_lips is None else reference_lips.to(windows.device).expand(count, -1)
    told = bare_denoiser(denoiser).told(seen, bent)
    predicted = denoiser(windows, times, sounds, faces, None, who, lips, **told)
    if guidance != 1:
        silent = torch.zeros(count, dtype=torch.bool, device=windows.device)
        without = denoiser(windows, times, sounds, faces, silent, who, **told)
        predicted = without + guidance * (predicted - without)
    return predicted
