"""Videos that say what they are: written with the invisible mark in their pictures, signed when they are whole."""

import logging
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedtalk_ray.errors import UserError
from fedtalk_ray.marking import credentials, invisible
from fedtalk_ray.marking.certificates import CertificateError, Signing, signing_of, trial_signing
from fedtalk_ray.media.encoding import Sound, also_growing, write_video
from fedtalk_ray.media.video import FPS, VideoError, frames_of
from fedtalk_ray.outputs import new_file

TRIED_FRAMES = 8
"""So many times the first picture is coded to see whether it keeps the mark: later frames of a video mend the first."""

_LOG = logging.getLogger(__name__)


def signing_with(certificate: str | Path | None, key: str | Path | None) -> Signing:
    """What to sign with: a certificate and its key, or where neither is named this machine's own, for trials.

    A certificate is tried on a picture at once, so that a wrong one is told before anything was made. Raises
    `CertificateError` and `CredentialsError`.
    """
    if certificate is None and key is None:
        return trial_signing()
    if certificate is None or key is None:
        missing = "--certificate" if certificate is None else "--key"
        raise CertificateError(f"{missing} is missing: a certificate and its key are given together, as PEM files")
    signing = signing_of(certificate, key)
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / "tried.mp4"
        write_video(tried, np.zeros((1, 16, 16, 3), np.uint8), None)
        credentials.sign(tried, tried.with_name("signed.mp4"), signing, credentials.SYNTHETIC, None)
    return signing


def signing_if_possible() -> Signing | None:
    """This machine's own certificate; None, with a warning in the log, where it cannot be kept: what is watched in
    passing must not stop a training."""
    try:
        return trial_signing()
    except UserError as error:
        _LOG.warning("videos get no content credentials, only the invisible mark: %s", error)
        return None


def write_marked(
    path: str | Path,
    blocks: Iterable[np.ndarray],
    audio: np.ndarray | None,
    kind: str,
    signing: Signing | None,
    fps: Fraction | int = FPS,
    pixel_aspect: Fraction = Fraction(1),
    growing: BinaryIO | None = None,
) -> int | None:
    """As `write_video`, with the invisible mark and content credentials. Returns the mark's number, None where the
    first picture cannot carry one: it is too small, or the same everywhere.

    blocks: uint8 [n, H, W, 3], one held at a time. kind: `credentials.SYNTHETIC` or `COMPOSITE`. signing: None for the
    mark alone. The number follows from the first frame. growing: takes the marked pictures too as they come
    (`also_growing`); nobody can sign those before they are whole. Raises `VideoError` and `UserError`s; there is then
    no file, or the one that was there before.
    """
    number, pictures = _marked(blocks)
    if pictures is None:
        raise VideoError(f"{path}: there is no frame to write")
    if growing is not None:
        pictures = also_growing(pictures, growing, audio, fps, pixel_aspect)
    if signing is None:
        write_video(path, pictures, audio, fps, pixel_aspect)
        return number
    with new_file(path) as signed:
        unsigned = signed.with_name(f"{signed.stem}.unsigned.mp4")
        try:
            write_video(unsigned, pictures, audio, fps, pixel_aspect)
            credentials.sign(unsigned, signed, signing, kind, number)
        finally:
            unsigned.unlink(missing_ok=True)
    return number


def show_marked(
    blocks: Iterable[np.ndarray],
    audio: Sound,
    growing: BinaryIO,
    fps: Fraction,
    pixel_aspect: Fraction = Fraction(1),
) -> int:
    """Shows frames as they come, with the invisible mark, in no file (`also_growing`). Returns how many they were."""
    _, pictures = _marked(blocks)
    return 0 if pictures is None else sum(map(len, also_growing(pictures, growing, audio, fps, pixel_aspect)))


def _marked(blocks: Iterable[np.ndarray]) -> tuple[int | None, Iterable[np.ndarray] | None]:
    """The mark's number, which follows from the first frame, and the frames with it; None and they as they are where
    they cannot carry one, None and None where there is no frame."""
    rest = iter(blocks)
    first = next((block for block in rest if len(block)), None)
    if first is None:
        return None, None
    number, blocks = _number_for(first[0]), chain([first], rest)
    return number, blocks if number is None else invisible.marked(blocks, number)


def _number_for(picture: np.ndarray) -> int | None:
    """The mark's number for a video that begins so, uint8 [H, W, 3]; None where coding loses it at once."""
    number = invisible.nearest_number(picture)
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / "tried.mp4"
        write_video(tried, invisible.mark(picture, number)[None].repeat(TRIED_FRAMES, 0), None)
        found = invisible.read(frames_of(tried))
    return number if found is not None and found.number == number else None
