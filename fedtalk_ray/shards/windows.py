"""Windows: a few consecutive frames of one clip with their sound and one reference frame, the unit of training."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.shards.format import LANDMARKS, Piece
from fedtalk_ray.shards.reader import Group, GroupReader


@dataclass
class WindowBatch:
    """B windows of T consecutive frames of one clip each.

    latents: float32 [B, T, C, h, w]. speech: float32 [B, T, hops, mel]. reference: float32 [B, C, h, w], the latent of
    a frame of the same clip (or its mean). identity: float32 [B, D], the clip's embedding; D is 0 where the shards hold
    none. lips: float32 [B, T, L], true lip shapes to train with, NaN where the sound is to be heard; L is 0 for none.
    reference_lips: float32 [B, L], the reference's own, NaN where they are not known; L is 0 for none.
    reference_points: float32 [B, 68, 2], its face's 68 points, in fractions of the crop; [B, 0, 2] for none.
    bent: float32 [B, T, C, h, w], the reference with each frame's lips; C is 0 for none.
    """

    latents: torch.Tensor
    speech: torch.Tensor
    reference: torch.Tensor
    identity: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    lips: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    reference_lips: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    reference_points: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, 2))
    bent: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, 0, 0))

    def __post_init__(self) -> None:
        if not self.identity.numel():
            self.identity = self.latents.new_zeros(len(self.latents), 0)
        if not self.lips.numel():
            self.lips = self.latents.new_zeros(*self.latents.shape[:2], 0)
        if not self.reference_lips.numel():
            self.reference_lips = self.latents.new_zeros(len(self.latents), 0)
        if not self.reference_points.numel():
            self.reference_points = self.latents.new_zeros(len(self.latents), 0, 2)
        if not self.bent.numel():
            self.bent = self.latents.new_zeros(*self.latents.shape[:2], 0, *self.latents.shape[3:])

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> "WindowBatch":
        return WindowBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def each(self) -> "Iterator[WindowBatch]":
        """Every window as a batch of its own."""
        for place in range(len(self)):
            yield WindowBatch(**{name: value[place : place + 1] for name, value in vars(self).items()})


@dataclass
class PictureBatch:
    """B windows of T consecutive frames of one clip each, as they were seen: what `training.augment` varies.

    frames: uint8 [B, T, S, S, 3]. speech: float32 [B, T, hops, mel]. reference: uint8 [B, S, S, 3], a frame of the same
    clip. identity: float32 [B, D]. lips: float32 [B, T, LIP_MOTION] (`media.lips.lip_motion`), or L is 0, and
    reference_lips [B, LIP_MOTION] alike. reference_points: float32 [B, 68, 2], or [B, 0, 2].
    """

    frames: torch.Tensor
    speech: torch.Tensor
    reference: torch.Tensor
    identity: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    lips: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    reference_lips: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    reference_points: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, 2))

    def __post_init__(self) -> None:
        if not self.identity.numel():
            self.identity = torch.zeros(len(self.frames), 0)
        if not self.lips.numel():
            self.lips = torch.zeros(*self.frames.shape[:2], 0)
        if not self.reference_lips.numel():
            self.reference_lips = torch.zeros(len(self.frames), 0)
        if not self.reference_points.numel():
            self.reference_points = torch.zeros(len(self.frames), 0, 2)

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Wanted:
    """What of a piece goes into its windows.

    pictures: frames as they were seen, in place of latents. lips: how the lips move. mean_reference: the reference is
    the piece's mean frame, and not a random one.
    """

    pictures: bool = False
    lips: bool = False
    mean_reference: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The bytes columns that windows are cut from."""
        return ("frames" if self.pictures else "latents", "speech", *((LANDMARKS,) if self.lips else ()))


LATENTS = Wanted()
NO_LANDMARKS = "has no landmarks: it was prepared by an older version; prepare the shards again"


def cut_windows(piece: Piece, window: int, count: int, name: str, wanted: Wanted = LATENTS) -> dict[str, np.ndarray]:
    """`count` windows at random places of a piece of at least so many frames, each with a reference of the piece.

    name: the same name means the same places. Returns latents (or frames) [count, window, ...], speech [count, window,
    hops, mel], reference [count, ...], identity [count, D], lips [count, window, L], reference_lips [count, L] and
    reference_points [count, 68, 2]; L is 0 where lips are not wanted, and so are the points.
    Raises `ValueError` for a piece that is too short, or that has no landmarks where lips are wanted.
    """
    seen = "frames" if wanted.pictures else "latents"
    pictures = getattr(piece, seen)
    if len(pictures) < window:
        raise ValueError(f"has {len(pictures)} frames, and a window takes {window}")
    if wanted.lips and len(piece.landmarks) != len(pictures):
        raise ValueError(NO_LANDMARKS)
    # From a hash: seeding a generator for each piece would take longer than cutting it.
    drawn = np.frombuffer(hashlib.shake_128(name.encode()).digest(16 * count), "<u8").reshape(2, count)
    begins = (drawn[0] % (len(pictures) - window + 1)).astype(np.intp)
    index = begins[:, None] + np.arange(window)
    lips = lip_motion(piece.landmarks) if wanted.lips else np.zeros((len(pictures), 0), np.float32)
    points = piece.landmarks if wanted.lips else np.zeros((len(pictures), 0, 2), np.float32)
    if wanted.mean_reference:
        mean = pictures.astype(np.float32).mean(0)
        reference = np.repeat(mean.astype(pictures.dtype)[None], count, axis=0)
        reference_lips, reference_points = (np.repeat(each.mean(0)[None], count, axis=0) for each in (lips, points))
    else:
        shown = (drawn[1] % len(pictures)).astype(np.intp)
        reference, reference_lips, reference_points = pictures[shown], lips[shown], points[shown]
    return {
        seen: pictures[index],
        "speech": piece.speech[index],
        "reference": reference,
        "identity": np.repeat(piece.identity[None], count, axis=0),
        "lips": lips[index],
        "reference_lips": reference_lips,
        "reference_points": reference_points,
    }


def held_out_windows(pieces: Iterable[Piece], window: int, count: int, lips: bool = False) -> WindowBatch:
    """`count` windows spread evenly over held-out pieces, always the same; the reference is each piece's first frame.

    Pieces are taken in turn until there are enough; needs at least one. lips: with `media.lips.lip_motion` in that
    field and the reference's, which are no shapes yet (`training.told_lips.tell_held_out`), and the reference's points;
    the pieces must have been read with their landmarks.
    """
    kept = list(pieces)
    for piece in kept:
        if lips and len(piece.landmarks) != len(piece.latents):
            raise ShardError(f"clip {piece.clip} of {piece.client} {NO_LANDMARKS}")
    chosen = [kept[index * len(kept) // count] for index in range(count)]
    motions = [lip_motion(piece.landmarks) if lips else np.zeros((len(piece.latents), 0)) for piece in kept]
    parts = []
    for index, piece in enumerate(chosen):
        room = len(piece.latents) - window
        begin = room * (2 * index + 1) // (2 * count)
        end = begin + window
        motion = motions[index * len(kept) // count]
        points = piece.landmarks[0] if lips else np.zeros((0, 2))
        own = piece.latents[0], piece.identity, motion[begin:end], motion[0], points
        parts.append((piece.latents[begin:end], piece.speech[begin:end], *own))
    return WindowBatch(*(torch.from_numpy(np.stack(column)).float() for column in zip(*parts, strict=True)))


Window = dict[str, np.ndarray]
"""latents [T, C, h, w] or frames [T, S, S, 3], speech [T, hops, mel] and reference as stored, identity, lips,
reference_lips and reference_points."""


@dataclass(frozen=True)
class Cut:
    """How pieces become windows; a part of what Ray Data's tasks are told."""

    shapes: dict[str, list[int]] = field(hash=False)
    window: int
    count: int
    seed: int
    wanted: Wanted = LATENTS

    def windows(self, reader: GroupReader, group: Group) -> Iterator[dict[str, np.ndarray]]:
        """`count` random windows of each of the group's pieces, stacked piece by piece."""
        for row, piece in zip(group.rows, reader.read(group), strict=True):
            # By the piece's own place: the order in which tasks run does not matter.
            name = f"{self.seed}/{'/'.join(group.file.split('/')[-2:])}/{group.group}/{row}"
            try:
                yield cut_windows(piece, self.window, self.count, name, self.wanted)
            except ValueError as error:
                raise ShardError(f"shard {group.file}: piece {row} of row group {group.group} {error}") from error


def each_window(stacked: dict[str, np.ndarray]) -> Iterator[Window]:
    """The windows of a stack, one by one."""
    count = len(stacked["speech"])
    for index in range(count):
        # A copy: a view would keep all windows of the piece for as long as one of them waits to be shuffled. And torch
        # warns of what cannot be written to, such as what comes out of Ray's store.
        yield {
            name: values[index] if count == 1 and values.flags.writeable else values[index].copy()
            for name, values in stacked.items()
        }
