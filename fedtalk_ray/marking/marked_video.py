"""Videos that say what they are: written with the invisible mark in their pictures, signed when they are whole."""

import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from fedtalk_ray.errors import UserError
from fedtalk_ray.marking import credentials, invisible
from fedtalk_ray.marking.certificates import CertificateError, Signing, signing_of, trial_signing
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import FPS, VideoError
from fedtalk_ray.outputs import new_file

_LOG = logging.getLogger(__name__)


def signing_with(certificate: str | Path | None, key: str | Path | None) -> Signing:
    """What to sign with: a certificate and its key, or where neither is named this machine's own, for trials.

    Raises `CertificateError`.
    """
    if certificate is None and key is None:
        return trial_signing()
    if certificate is None or key is None:
        missing = "--certificate" if certificate is None else "--key"
        raise CertificateError(f"{missing} is missing: a certificate and its key are given together, as PEM files")
    return signing_of(certificate, key)


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
) -> int:
    """As `write_video`, with the invisible mark and content credentials. Returns the mark's number.

    blocks: uint8 [n, H, W, 3], one held at a time. kind: `credentials.SYNTHETIC` or `COMPOSITE`. signing: None for the
    mark alone. The number follows from the first frame. Raises `VideoError` and `UserError`s; there is then no file, or
    the one that was there before.
    """
    first, rest = _first(iter(blocks))
    if first is None:
        raise VideoError(f"{path}: there is no frame to write")
    number = invisible.nearest_number(first[0])
    pictures = invisible.marked(chain([first], rest), number)
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


def _first(blocks: Iterator[np.ndarray]) -> tuple[np.ndarray | None, Iterator[np.ndarray]]:
    """The first block that holds a frame, and those behind it."""
    return next((block for block in blocks if len(block)), None), blocks
