"""A face and a sound into a video file, a second at a time: a long sound takes time, but no more memory."""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.ahead import ahead
from fedtalk_ray.generation.scene import Scene, Still, Stopped, dubbed_file, dubbed_pictures
from fedtalk_ray.generation.whole_picture import speak_in
from fedtalk_ray.marking.certificates import Signing, trial_signing
from fedtalk_ray.marking.credentials import COMPOSITE, SYNTHETIC
from fedtalk_ray.marking.marked_video import write_marked
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.faces import DETECT_EVERY, NoFaceError
from fedtalk_ray.media.framing import ALIGNED, Framing
from fedtalk_ray.media.pictures import read_still
from fedtalk_ray.media.portrait import Portrait, crop_portrait
from fedtalk_ray.media.video import (
    FPS,
    VideoError,
    first_picture,
    first_pictures,
    read_audio,
)
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, frame_count
from fedtalk_ray.model.released import load_released, open_model
from fedtalk_ray.model.sampling import USUAL, Sampling
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import Piece, load_manifest
from fedtalk_ray.shards.people import People

CROP_SIDE, MOST_ENLARGED = 256, 4
"""Crops are written as the whole multiple of the frames that is nearest to so many pixels a side, and at most so many
times as large: players show a small face as a stamp."""

ONE_PASS = "--steps and --guidance: this model makes each frame in one pass; leave them out"

LONG_SECONDS = 10
"""Longer clips show a progress bar."""


class InputError(UserError):
    """A reference face or a sound cannot be used."""


class Written(NamedTuple):
    """What a video came to. mark: the invisible mark's number; None without one. kind: what credentials are to call
    it (`credentials.SYNTHETIC`, `COMPOSITE`)."""

    frames: int
    seconds: float
    mark: int | None = None
    kind: str = SYNTHETIC


class Write(Protocol):
    """Writes frames as they come, as `write_marked` does; returns the invisible mark's number, None without one."""

    def __call__(
        self,
        path: Path,
        blocks: Iterator[np.ndarray],
        audio: np.ndarray,
        kind: str,
        *,
        fps: Fraction,
        pixel_aspect: Fraction,
    ) -> int | None: ...


def generate(
    run: str | Path,
    reference: str,
    audio: str,
    out: str | Path,
    client: str | None = None,
    shards: str | None = None,
    device: str = "auto",
    *,
    crop: bool = False,
    face: int | None = None,
    hold_still: bool = False,
    seed: int = 0,
    sampling: Sampling = USUAL,
    mark: bool = True,
    signing: Signing | None = None,
) -> Written:
    """Lets the reference face speak the sound, with the client's own adapter if one is named.

    reference, audio: a file (picture or clip; sound or clip), or CLIENT/CLIP of `shards`. The whole picture is written,
    a clip's own frames with another mouth; with `crop`, of an aligned picture and of drawn clips, the network's frames
    alone. face: which one of several, from the left, from 1; None for the largest. hold_still: a photo neither blinks
    nor sways. seed: of the noise; the same one means the same pictures. mark: with content credentials and the
    invisible mark. signing: what signs the credentials; None for this machine's own certificate, for trials. What a
    user should know is printed on stderr.
    Raises `UserError`s; then there is no `out`, or the one that was there before.
    """
    out = Path(out)
    _check_out(out, reference, audio)
    signing = signing or (trial_signing() if mark else None)
    folder = open_model(run)
    sound = find_sound(audio, shards)
    model = load_released(folder, client, pick_device(device))
    return speak_into(
        model,
        reference,
        sound,
        out,
        shards,
        crop=crop,
        face=face,
        hold_still=hold_still,
        seed=seed,
        sampling=sampling,
        write=partial(write_marked, signing=signing) if mark else write_bare,
    )


def write_bare(path: Path, blocks: Iterator[np.ndarray], audio: np.ndarray, kind: str, **how: Any) -> None:
    """As `Write`, with neither mark nor credentials, which alone would say the kind."""
    write_video(path, blocks, audio, **how)


def speak_into(
    model: TalkingHeadPipeline,
    reference: str,
    sound: np.ndarray,
    out: Path,
    shards: str | None = None,
    *,
    crop: bool = False,
    face: int | None = None,
    hold_still: bool = False,
    seed: int = 0,
    sampling: Sampling = USUAL,
    write: Write,
    stopped: Callable[[], bool] = lambda: False,
) -> Written:
    """`generate` with a model that is there already, of sound float32 [N].

    stopped: asked before every block of frames; where it says so `Stopped` is raised, and there is no `out`. Raises
    `UserError`s.
    """
    if face is not None and face < 1:
        raise InputError(f"--face {face}: faces are counted from 1, from the left")
    if sampling != USUAL and bare_denoiser(model.denoiser).each_frame_alone:
        raise InputError(ONE_PASS)
    size = model.frame_size()
    framing = model.framing
    scene = None if crop else find_scene(reference, size, len(sound), face, not hold_still, shards, framing, stopped)
    notes: tuple[str, ...]
    generator = torch.Generator().manual_seed(seed)
    if scene is None:
        (aligned, notes), rate = find_face(reference, size, shards, face, framing), Fraction(FPS)
        count = frame_count(len(sound), rate)
        made = _enlarged(model.stream(aligned, sound, sampling.steps, sampling.guidance, generator, FPS))
    else:
        notes, rate = scene.notes, scene.rate
        count = frame_count(len(sound), rate)
        made = _named(reference, speak_in(scene, model, sound, count, generator, sampling))
    for note in notes:
        print(f"reference {reference}: {note}", file=sys.stderr)
    frames: Iterator[np.ndarray] = made
    if count > LONG_SECONDS * rate:
        blocks, what = (-(-count // FPS), "seconds made") if scene is None else (count, "frames made")
        frames = progress(made, blocks, what)
    aspect = scene.pixel_aspect if scene is not None else Fraction(1)
    kind = SYNTHETIC if scene is None else COMPOSITE
    try:
        number = write(out, _until(stopped, frames), sound, kind, fps=rate, pixel_aspect=aspect)
    finally:
        # The network is not to be at work any more, whatever ended it here.
        made.close()
    return Written(count, float(count / rate), number, kind)


def _enlarged(crops: Iterator[np.ndarray]) -> Generator[np.ndarray, None, None]:
    with contextlib.closing(ahead(crops)) as made:
        yield from map(enlarge, made)


def _until(stopped: Callable[[], bool], frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for block in frames:
        if stopped():
            raise Stopped
        yield block


def find_scene(
    reference: str,
    size: int,
    samples: int,
    face: int | None,
    moves: bool,
    shards: str | None = None,
    framing: Framing = ALIGNED,
    stopped: Callable[[], bool] = lambda: False,
) -> Scene | None:
    """What the sound is put into; None for a crop: CLIENT/CLIP of shards that is drawn or whose pictures are gone, and
    a picture of exactly size x size pixels, which is taken as a crop already. samples: of the sound. framing: the
    model's. Raises `InputError`.
    """
    if not _is_file(reference, "reference"):
        _only_face(reference, face)
        return dubbed_pictures(_held_out(reference, shards, "reference", framing))
    with _naming(reference):
        still = read_still(reference)
        picture = first_picture(reference) if still is None else still
        if picture.shape[:2] == (size, size):
            return None
        if still is None and not moves:
            print(f"reference {reference}: --hold-still is for photos; a video keeps its own motion", file=sys.stderr)
        if still is None:
            return dubbed_file(reference, samples, face, framing, stopped)
        return Still(still, face, moves, framing)


def find_face(
    reference: str, size: int, shards: str | None, face: int | None = None, framing: Framing = ALIGNED
) -> Portrait:
    """A crop uint8 [size, size, 3] from a picture, a clip's first second, or CLIENT/CLIP of the shards.

    A picture of exactly size x size pixels is taken as a crop already. face: which one, from the left. Raises
    `InputError`.
    """
    if not _is_file(reference, "reference"):
        _only_face(reference, face)
        frame = _held_out(reference, shards, "reference", framing)[0].frames[0]
        if frame.shape[0] != size:
            raise InputError(
                f"reference {reference}: shards {shards} hold faces of {frame.shape[0]} pixels, the model takes "
                f"{size}; prepare them with --size {size}"
            )
        return Portrait(frame, ())
    with _naming(reference):
        still = read_still(reference)
        pictures = first_pictures(reference, every=DETECT_EVERY) if still is None else [still]
        if pictures[0].shape[:2] == (size, size):
            _only_face(reference, face)
            return Portrait(pictures[0], ())
        return _first_portrait(pictures, size, face, framing)


def _only_face(reference: str, face: int | None) -> None:
    if face is not None and face > 1:
        raise InputError(f"--face {face}: reference {reference} is an aligned crop of one face; leave it out")


def _named(reference: str, frames: Iterator[np.ndarray]) -> Generator[np.ndarray, None, None]:
    with _naming(reference):
        yield from frames


@contextlib.contextmanager
def _naming(reference: str) -> Iterator[None]:
    """Turns what is wrong with a file into an `InputError` that names it once."""
    try:
        yield
    except (VideoError, NoFaceError) as error:
        raise InputError(f"reference {reference}: {str(error).removeprefix(f'{reference}: ')}") from error


def find_sound(audio: str, shards: str | None) -> np.ndarray:
    """Sound float32 [N] from a file, or from CLIENT/CLIP of the shards; all of it. Raises `InputError`."""
    if not _is_file(audio, "audio"):
        pieces = _held_out(audio, shards, "audio")
        return np.concatenate([piece.waveform for piece in pieces]).astype(np.float32) / 32767
    try:
        return read_audio(audio)
    except VideoError as error:
        raise InputError(f"audio {error}") from error


def _first_portrait(pictures: Sequence[np.ndarray], size: int, face: int | None, framing: Framing) -> Portrait:
    """Of the first of the pictures that shows a face: a clip may begin in the dark."""
    for picture in pictures[:-1]:
        try:
            return crop_portrait(picture, size, face, framing)
        except NoFaceError:
            continue
    return crop_portrait(pictures[-1], size, face, framing)


def _check_out(out: Path, reference: str, audio: str) -> None:
    """Raises `InputError` for an output that could not be written, or would replace what it is made from."""
    if out.suffix.lower() != ".mp4":
        raise InputError(f"--out {out} must end in .mp4")
    try:
        if out.is_dir():
            raise InputError(f"--out {out} is a folder; give a file name in it")
        place = next(folder for folder in out.absolute().parents if folder.exists())
        if not place.is_dir():
            raise InputError(f"--out {out}: {place} is a file, not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"--out {out}: no file can be written in {place}; give another folder")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error
    for role, name in (("reference", reference), ("audio", audio)):
        if out.exists() and os.path.exists(name) and out.samefile(name):
            raise InputError(f"--out {out} is the {role} itself; give another name")


def _is_file(name: str, role: str) -> bool:
    """Whether it is a file; False when nothing has that name. Raises `InputError` for anything else."""
    path = Path(name)
    try:
        if path.is_file():
            return True
        if path.exists():
            raise InputError(f"{role} {name} is a {'folder' if path.is_dir() else 'device or pipe'}; give a file")
    except OSError as error:
        raise InputError(f"{role} {name}: {error.strerror}") from error
    return False


def _held_out(name: str, shards: str | None, role: str, framing: Framing | None = None) -> list[Piece]:
    """The pieces of a clip of the shards, in order. framing: of the model that is to see them."""
    client, _, clip = name.partition("/")
    if shards is None or not clip or Path(name).suffix:
        raise InputError(f"{role} {name} does not exist; give a file, or CLIENT/CLIP together with --shards")
    manifest = load_manifest(shards)
    if framing is not None:
        manifest.check_framing(framing.name, "this model")
    if client in manifest.identities and (pieces := People(shards, manifest).clip(client, clip)):
        return pieces
    names = [entry.name for entry in manifest.identities.get(client, [])] or sorted(manifest.identities)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise InputError(f"{role} {name}: shards {shards} hold no such clip; there are {shown}")


def enlarge(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, S, S, 3] to about `CROP_SIDE` a side, bicubic."""
    scale = min(max(1, round(CROP_SIDE / frames.shape[1])), MOST_ENLARGED)
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    larger = torch.nn.functional.interpolate(pixels, scale_factor=scale, mode="bicubic", align_corners=False)
    return larger.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
