"""Video files in and out: frames at one rate, mono sound at one rate (PyAV, the FFmpeg libraries)."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from fedtalk_ray.outputs import new_file

FPS = 25
"""Frames per second of everything inside fedtalk_ray; clips at other rates are resampled when read."""

SAMPLE_RATE = 16_000
"""Sound samples per second (mono) of everything inside fedtalk_ray."""


class VideoError(ValueError):
    """A video file cannot be used; the message is one line that names the file and the reason."""


@dataclass
class Video:
    """One clip in memory.

    frames: uint8 [T, H, W, 3], RGB, at `FPS`.
    audio: float32 [N] in [-1, 1], mono, at `SAMPLE_RATE`; sample 0 sounds at the start of frame 0.
    """

    frames: np.ndarray
    audio: np.ndarray


def read_video(path: str | Path, max_seconds: float = 600.0) -> Video:
    """Decode a file to 25 fps RGB frames and 16 kHz mono sound.

    Output frame k is the newest source frame whose time is not after k / 25 s, so fast and slow sources keep their
    sound in sync; sound that starts before or after the picture is cut or led by silence. Raises `VideoError` when the
    file cannot be decoded, has no picture, or has no sound.
    """
    with _decoding(path) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no video stream")
        if not container.streams.audio:
            raise VideoError(f"{path}: holds no sound; a talking head needs speech")
        frames, picture_start = _decode_frames(container, path, max_seconds)
    with _decoding(path) as container:
        audio, sound_start = _decode_audio(container, path, max_seconds)
    if not len(frames):
        raise VideoError(f"{path}: no frame could be decoded")
    if not len(audio):
        raise VideoError(f"{path}: no sound could be decoded")
    late = round((sound_start - picture_start) * SAMPLE_RATE)
    return Video(frames, np.pad(audio, (late, 0)) if late > 0 else audio[-late:])


def read_audio(path: str | Path, max_seconds: float = math.inf) -> np.ndarray:
    """The sound of any file FFmpeg reads, all of it, float32 [N] in [-1, 1], mono at `SAMPLE_RATE`.

    Sound louder than full scale (floating-point files) is turned down as a whole rather than clipped. Raises
    `VideoError`.
    """
    with _decoding(path) as container:
        if not container.streams.audio:
            raise VideoError(f"{path}: holds no sound")
        audio, _ = _decode_audio(container, path, max_seconds)
    if not len(audio):
        raise VideoError(f"{path}: no sound could be decoded")
    audio /= max(1.0, float(audio.max()), -float(audio.min()))
    return audio


def read_pictures(path: str | Path, max_seconds: float = 1.0) -> np.ndarray:
    """The first frames of a clip, uint8 [T, H, W, 3]; `data.pictures` reads still pictures. Raises `VideoError`."""
    with _decoding(path) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no picture")
        frames, _ = _decode_frames(container, path, max_seconds)
    if not len(frames):
        raise VideoError(f"{path}: no picture could be decoded")
    return frames


@contextlib.contextmanager
def _decoding(path: str | Path) -> Iterator[Any]:
    if Path(path).is_dir():
        raise VideoError(f"{path}: is a folder, not a file")
    if Path(path).is_file() and not Path(path).stat().st_size:
        raise VideoError(f"{path}: is empty (0 bytes)")
    try:
        # Named as a file: FFmpeg would take what stands before a colon for a protocol.
        with av.open(f"file:{path}") as container:
            yield container
    except FileNotFoundError as error:
        raise VideoError(f"{path}: does not exist") from error
    except av.InvalidDataError as error:
        raise VideoError(
            f"{path}: cannot be decoded (no picture, sound or video of a known kind, or damaged)"
        ) from error
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: cannot be decoded ({error.__class__.__name__}: {reason})") from error


def _decode_frames(container: Any, path: str | Path, max_seconds: float) -> tuple[np.ndarray, float]:
    """Frames on the 25 fps grid, and the time in seconds at which the first is shown."""
    stream = container.streams.video[0]
    kept: list[np.ndarray] = []
    start: float | None = None
    previous: np.ndarray | None = None
    for number, frame in enumerate(container.decode(stream)):
        rate = float(stream.average_rate or FPS)
        time = frame.time if frame.time is not None else number / rate
        start = time if start is None else start
        # A frame is shown from `time` on: every output instant before it still shows the previous one.
        while previous is not None and len(kept) / FPS < min(time - start - 1e-6, max_seconds):
            kept.append(previous)
        if len(kept) >= max_seconds * FPS:
            return np.stack(kept), start
        # Telephones store how they were held; FFmpeg's libraries leave it to the reader to turn the picture.
        picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
        if previous is not None and picture.shape != previous.shape:
            raise VideoError(f"{path}: its pictures change size at {time - start:.2f} s")
        previous = picture
    if previous is not None:
        kept.append(previous)
    return (np.stack(kept) if kept else np.empty((0, 0, 0, 3), np.uint8)), start or 0.0


def _decode_audio(container: Any, path: str | Path, max_seconds: float) -> tuple[np.ndarray, float]:
    """Mono samples, the mean of the channels, and the time in seconds of the first.

    FFmpeg's own mixing to mono adds floating-point channels up without turning them down.
    """
    samples = bytearray()  # grows in place, so that a long sound lies in memory once
    resampler: Any = None
    kind: tuple[str, str, int] | None = None
    start: float | None = None
    seconds = 0.0

    def take(frame: Any) -> None:
        for piece in resampler.resample(frame):
            # Interleaved: PyAV miscounts the planes of eight channels and more, and reads beyond them.
            samples.extend(piece.to_ndarray().reshape(-1, piece.layout.nb_channels).mean(1).tobytes())

    for frame in container.decode(container.streams.audio[0]):
        start = (frame.time or 0.0) if start is None else start
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if now != kind:
            # Joined files change their rate or channels on the way, and a resampler takes one kind.
            if resampler is not None:
                take(None)
            resampler, kind = av.AudioResampler(format="flt", rate=SAMPLE_RATE), now
        take(frame)
        seconds += frame.samples / frame.sample_rate
        if seconds >= max_seconds:
            break
    if resampler is not None:
        take(None)
    audio = np.frombuffer(samples, np.float32)
    wrong = np.flatnonzero(~np.isfinite(audio))
    if len(wrong):
        raise VideoError(
            f"{path}: {len(wrong)} samples of its sound are no numbers (NaN or infinite), the first at "
            f"{wrong[0] / SAMPLE_RATE:.2f} s; export it again as 16-bit PCM"
        )
    return audio, start or 0.0


def write_video(
    path: str | Path, frames: np.ndarray | Iterable[np.ndarray], audio: np.ndarray | None, fps: int = FPS
) -> None:
    """Write H.264 video with AAC sound, beside the target first and then renamed.

    frames: uint8 [T, H, W, 3] with even H and W, or an iterable of such blocks, of which one at a time is held; nothing
    stays behind when it raises. audio: float32 [N] at `SAMPLE_RATE`, cut or padded with silence to the length of the
    picture; None writes no sound. Raises `VideoError` where there is no frame at all.
    """
    blocks = np.split(frames, range(fps, len(frames), fps)) if isinstance(frames, np.ndarray) else frames
    with new_file(path) as partial, av.open(f"file:{partial}", "w") as container:
        picture = sound = None
        shown = heard = 0
        for block in blocks:
            if not len(block):
                continue
            if picture is None:
                picture = container.add_stream("h264", rate=fps, options={"crf": "18", "preset": "veryfast"})
                picture.width, picture.height, picture.pix_fmt = block.shape[2], block.shape[1], "yuv420p"
                sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if audio is not None else None
            for image in block:
                container.mux(picture.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
            shown += len(block)
            if sound is not None and audio is not None:
                # Sound goes in beside its picture, so that neither waits in memory for the other.
                until = round(shown / fps * SAMPLE_RATE)
                _encode_audio(container, sound, audio, heard, until)
                heard = until
        if picture is None:
            raise VideoError(f"{path}: there is no frame to write")
        container.mux(picture.encode())
        if sound is not None:
            container.mux(sound.encode())


def _encode_audio(container: Any, stream: Any, audio: np.ndarray, begin: int, end: int) -> None:
    """Encodes samples `begin` to `end`, silence where `audio` is shorter."""
    piece = audio[begin:end].astype(np.float32)
    piece = np.pad(piece, (0, end - begin - len(piece)))
    frame = av.AudioFrame.from_ndarray(piece[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, begin
    container.mux(stream.encode(frame))
