"""A speaking face back in its picture: what the network moves is laid over the picture's own detail, around the mouth.

The network's frames are small and soft. So the picture's own pixels stay where nothing moves, and where the mouth moves
they give way to what was made.
"""

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction

import numpy as np
import torch

from fedtalk_ray.generation.ahead import ahead
from fedtalk_ray.generation.scene import Scene
from fedtalk_ray.media.compositing import light_between, paste, resized
from fedtalk_ray.media.framing import ALIGNED, Framing
from fedtalk_ray.media.video import FPS
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.sampling import USUAL, Sampling

LARGEST_PATCH = 512
"""Pixels a side at which a face is composed, at most; larger faces get it enlarged."""

KEEPS_DETAIL = 12.0
"""Change of brightness, of 255, at which the picture's own detail gives way by half to what was made."""


def speak_in(
    scene: Scene,
    model: TalkingHeadPipeline,
    sound: np.ndarray,
    count: int,
    generator: torch.Generator,
    sampling: Sampling = USUAL,
    own_sound: bool = False,
) -> Generator[np.ndarray, None, None]:
    """The scene's first `count` frames, with its face saying `sound` (float32 [N]): blocks uint8 [1, H, W, 3].

    own_sound: the scene's frames are of this very sound, so that no network may see their mouths.
    """
    if bare_denoiser(model.denoiser).each_frame_alone:
        yield from each_over_its_own(scene, model, sound, count, own_sound)
        return
    face = scene.reference.crop(model.frame_size())
    crops = model.stream(
        face,
        sound,
        sampling.steps,
        sampling.guidance,
        generator,
        soft_border=False,
        reference_lips=scene.reference_lips,
    )
    with closing(ahead(crops)) as made:
        yield from put_back(scene, made, model.at_rest(face), count, model.framing)


def put_back(
    scene: Scene, made: Iterator[np.ndarray], rest: np.ndarray, count: int, framing: Framing = ALIGNED
) -> Iterator[np.ndarray]:
    """The scene's first `count` frames with the made face in them, blocks uint8 [1, H, W, 3].

    made: blocks uint8 [n, S, S, 3] of 25 frames a second, whole crops; the last frame goes on. rest: the crop as the
    network shows it when nothing moves, uint8 [S, S, 3].
    """
    side = patch_side(scene, len(rest))
    mask = framing.mask(side)
    still = resized(rest, side)
    detail = scene.reference.crop(side) - still
    for shown, small in zip(scene.frames(count), at_rate(made, scene.rate, count), strict=True):
        if not shown.opacity:
            yield shown.picture[None]
            continue
        face = resized(small, side)
        moved = (face - still).mean(-1, keepdims=True) / KEEPS_DETAIL
        patch = face + detail / (1 + moved**2)
        if scene.relit:
            patch = patch + light_between(shown.crop(side), patch, mask)
        yield paste(shown.picture, patch, shown.transform, mask * np.float32(shown.opacity))[None]


def each_over_its_own(
    scene: Scene, model: TalkingHeadPipeline, sound: np.ndarray, count: int, own_sound: bool = False
) -> Iterator[np.ndarray]:
    """`speak_in` of a model that makes each frame alone: of every frame its own face, with another mouth, over it."""
    person = scene.reference.crop(model.frame_size()) if own_sound else None
    size = model.frame_size()
    side = patch_side(scene, size)
    mask = model.framing.mask(side)
    shown, seen = itertools.tee(scene.frames(count))
    # Where no face is followed nothing is painted, and any face will do.
    faces = (each.crop(size) if each.opacity else scene.reference.crop(size) for each in seen)
    for each, face in zip(shown, model.speak_over(faces, sound, scene.rate, person=person), strict=True):
        if each.opacity:
            yield paste(each.picture, resized(face, side), each.transform, mask * np.float32(each.opacity))[None]
        else:
            yield each.picture[None]


def patch_side(scene: Scene, least: int) -> int:
    """Pixels a side at which a scene's face is composed: as many as the picture has, `least` to `LARGEST_PATCH`."""
    across, down = (float(np.hypot(*scene.reference.transform[:, axis])) for axis in (0, 1))
    return int(np.clip(round(max(across, down)), least, LARGEST_PATCH))


def at_rate(blocks: Iterator[np.ndarray], rate: Fraction, count: int) -> Iterator[np.ndarray]:
    """`count` frames float32 [S, S, 3] at `rate` a second of blocks of 25 a second, interpolated between two."""
    frames = (frame.astype(np.float32) for block in blocks for frame in block)
    before = next(frames)
    after = next(frames, before)
    number = 0  # of `before`
    for made in range(count):
        place = made * FPS / rate
        while number < int(place):
            before, after, number = after, next(frames, after), number + 1
        share = float(place - int(place))
        yield (1 - share) * before + share * after if share else before
