"""Windows: a few consecutive frames of one clip with their sound and one reference frame, the unit of training."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.reader import Group, GroupReader


@dataclass
class WindowBatch:
    """B windows of T consecutive frames of one clip each.

    latents: float32 [B, T, C, h, w]. speech: float32 [B, T, hops, mel]. reference: float32 [B, C, h, w], the latent of
    a frame of the same clip. identity: float32 [B, D], the clip's embedding; D is 0 where the shards hold none.
    lips: float32 [B, T, L], true lip shapes to train with, NaN where the sound is to be heard; L is 0 for none.
    """

    latents: torch.Tensor
    speech: torch.Tensor
    reference: torch.Tensor
    identity: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    lips: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))

    def __post_init__(self) -> None:
        if not self.identity.numel():
            self.identity = self.latents.new_zeros(len(self.latents), 0)
        if not self.lips.numel():
            self.lips = self.latents.new_zeros(*self.latents.shape[:2], 0)

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> "WindowBatch":
        return WindowBatch(**{name: value.to(device) for name, value in vars(self).items()})


def cut_windows(
    latents: np.ndarray,
    speech: np.ndarray,
    window: int,
    count: int,
    name: str,
    identity: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """`count` windows at random places of a piece, each with a random frame of the piece as its reference.

    latents [T, C, h, w] and speech [T, hops, mel] with T >= window; identity [D]. name: the same name means the same
    places. Returns latents [count, window, C, h, w], speech [count, window, hops, mel], reference [count, C, h, w] and
    identity [count, D]. Raises `ValueError` for a piece that is too short.
    """
    if len(latents) < window:
        raise ValueError(f"a piece of {len(latents)} frames holds no window of {window}")
    # From a hash: seeding a generator for each piece would take longer than cutting it.
    drawn = np.frombuffer(hashlib.shake_128(name.encode()).digest(16 * count), "<u8").reshape(2, count)
    begins = (drawn[0] % (len(latents) - window + 1)).astype(np.intp)
    index = begins[:, None] + np.arange(window)
    return {
        "latents": latents[index],
        "speech": speech[index],
        "reference": latents[drawn[1] % len(latents)],
        "identity": np.repeat(np.zeros((1, 0), np.float32) if identity is None else identity[None], count, axis=0),
    }


def held_out_windows(pieces: Iterable[Piece], window: int, count: int) -> WindowBatch:
    """`count` windows spread evenly over held-out pieces, always the same; the reference is each piece's first frame.

    Pieces are taken in turn until there are enough; needs at least one.
    """
    kept = list(pieces)
    chosen = [kept[index * len(kept) // count] for index in range(count)]
    parts = []
    for index, piece in enumerate(chosen):
        room = len(piece.latents) - window
        begin = room * (2 * index + 1) // (2 * count)
        end = begin + window
        parts.append((piece.latents[begin:end], piece.speech[begin:end], piece.latents[0], piece.identity))
    return WindowBatch(*(torch.from_numpy(np.stack(column)).float() for column in zip(*parts, strict=True)))


COLUMNS = ("latents", "speech")
"""The bytes columns that windows are cut from."""

Window = dict[str, np.ndarray]
"""latents [T, C, h, w], speech [T, hops, mel], reference [C, h, w] as stored, identity float32 [D]."""


@dataclass(frozen=True)
class Cut:
    """How pieces become windows; a part of what Ray Data's tasks are told."""

    shapes: dict[str, list[int]] = field(hash=False)
    window: int
    count: int
    seed: int

    def windows(self, reader: GroupReader, group: Group) -> Iterator[dict[str, np.ndarray]]:
        """`count` random windows of each of the group's pieces, stacked piece by piece."""
        for row, piece in zip(group.rows, reader.read(group), strict=True):
            if len(piece.latents) < self.window:
                raise ShardError(
                    f"shard {group.file}: piece {row} of row group {group.group} has {len(piece.latents)} frames, and "
                    f"a window takes {self.window}"
                )
            # By the piece's own place: the order in which tasks run does not matter.
            name = f"{self.seed}/{'/'.join(group.file.split('/')[-2:])}/{group.group}/{row}"
            yield cut_windows(piece.latents, piece.speech, self.window, self.count, name, piece.identity)


def each_window(stacked: dict[str, np.ndarray]) -> Iterator[Window]:
    """The windows of a stack, one by one."""
    count = len(stacked["latents"])
    for index in range(count):
        # A copy: a view would keep all windows of the piece for as long as one of them waits to be shuffled. And torch
        # warns of what cannot be written to, such as what comes out of Ray's store.
        yield {
            name: values[index] if count == 1 and values.flags.writeable else values[index].copy()
            for name, values in stacked.items()
        }
