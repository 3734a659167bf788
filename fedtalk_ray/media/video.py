"""Video files in: frames at one rate, mono sound at one rate (PyAV, the FFmpeg libraries).

Files are decoded here alone: frames come one at a time, turned as the telephone was held, cut to a region and a span
where one is asked for, so that memory grows neither with a clip's length nor with its pictures.
"""

import contextlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

FPS = 25
"""Frames per second of everything inside fedtalk_ray; clips at other rates are resampled when read."""

SAMPLE_RATE = 16_000
"""Sound samples per second (mono) of everything inside fedtalk_ray."""

SEEK_EARLIER = 0.2
"""Seconds: a picture may be stored before the time it is shown at, and a sound decoder needs a run-up."""

ROUNDING = 0.0011
"""Seconds: many containers count in milliseconds, so that a picture's time and the first one's are each off by half."""

_RUN_UPS = (SEEK_EARLIER, 2.0, 10.0)  # seconds; in MPEG streams a seek often ends behind the place asked for

FASTEST_RATE = 60
"""Frames a second of a video that is written in another's rate, at most."""

_MOST_REORDERED = 16  # pictures that H.264 and HEVC may hold back

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_UNNAMED = 2  # colours, as H.264 numbers them
HD_HEIGHT = 720
"""Lines from which on players take a video that does not name its colours for BT.709, below for BT.601."""

Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""

WHOLE_PICTURE: Box = (0, 0, 0, 0)


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


def read_video(path: str | Path) -> Video:
    """A whole file in memory: for clips that are known to be short. Raises `VideoError`."""
    return Video(np.stack(list(frames_of(path))), sound_of(path))


@dataclass(frozen=True)
class VideoFormat:
    """How a video shows its pictures.

    own_rate: frames a second, of one that varies its mean. rate: the same, but at most `FASTEST_RATE`.
    seconds: how long it says it is, 0 where it does not. pixel_aspect: width over height of a pixel. bits: of a colour.
    hdr: the name of its transfer function if it is HDR, else "".
    """

    own_rate: Fraction
    rate: Fraction
    seconds: float
    pixel_aspect: Fraction
    bits: int
    hdr: str


def format_of(path: str | Path) -> VideoFormat:
    """Raises `VideoError` for a file that holds no picture."""
    with _decoding(path) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no picture")
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or stream.guessed_rate or FPS)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        first = next(container.decode(stream), None)
        if first is None:
            raise VideoError(f"{path}: no picture could be decoded")
        return VideoFormat(
            own_rate=rate,
            rate=min(max(rate, Fraction(1)), Fraction(FASTEST_RATE)),
            seconds=(container.duration or 0) / 1e6,
            pixel_aspect=1 / aspect if round(first.rotation / 90) % 2 else aspect,
            bits=max(component.bits for component in first.format.components),
            hdr=_HDR_TRANSFERS.get(stream.codec_context.color_trc, ""),
        )


def frames_of(
    path: str | Path,
    begin: float = 0.0,
    end: float = math.inf,
    crop: Box = WHOLE_PICTURE,
    rate: Fraction | int = FPS,
    from_picture: bool = False,
) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, 3] on a grid of `rate` a second from `begin` to `end` seconds, one at a time, cut to `crop`.

    Frame k is the newest source frame whose time is not after begin + k / rate (but for `ROUNDING`), so fast and slow
    sources keep their sound in sync. Time begins with the first picture of a whole file, and with the file where a part
    is cut out, or with its first picture too where `from_picture` is set: a part is then a part of what the whole file
    gives.
    Raises `VideoError` when the file cannot be decoded, has no picture, or shows nothing in that span.
    """
    wanted = math.inf if math.isinf(end) else round((end - begin) * rate)
    first = _first_time(path) if from_picture and begin else None
    count, time, shown = 0, 0.0, None
    with _decoding(path) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no picture")
        stream = container.streams.video[0]
        origin = None if begin == 0 else (_start(container) if first is None else first) + begin
        picture: np.ndarray | None = None
        for frame, time in _timed(container, stream, begin, path):
            origin = time if origin is None else origin
            # A frame is shown from `time` on: every output instant before it still shows the previous one.
            while shown is not None and count < wanted and origin + count / rate < time - ROUNDING:
                picture = _picture(shown, crop, path) if picture is None else picture
                yield picture
                count += 1
            if count >= wanted:
                return
            if shown is not None and (frame.width, frame.height) != (shown.width, shown.height):
                raise VideoError(f"{path}: its pictures change size at {time - origin:.2f} s")
            shown, picture = frame, None
        if (
            shown is not None
            and count < wanted
            and origin is not None
            and origin + count / rate < time + 1 / rate - ROUNDING
        ):
            yield _picture(shown, crop, path)
            count += 1
    if not count:
        if begin == 0 and math.isinf(end):
            raise VideoError(f"{path}: no picture could be decoded")
        raise VideoError(f"{path}: shows nothing between {begin:.2f} and {end:.2f} s")


def first_picture(path: str | Path) -> np.ndarray:
    """The first frame of a clip, uint8 [H, W, 3]. Raises `VideoError`."""
    return next(frames_of(path))


def first_pictures(path: str | Path, seconds: float = 1.0, every: int = 1) -> list[np.ndarray]:
    """every n-th frame of a clip's first seconds; `media.pictures` reads still pictures. Raises `VideoError`."""
    return list(islice(frames_of(path), 0, max(1, round(seconds * FPS)), every))


def has_sound(path: str | Path) -> bool:
    """Whether a file holds sound. Raises `VideoError` when it cannot be opened."""
    with _decoding(path) as container:
        return bool(container.streams.audio)


def sound_of(path: str | Path, begin: float = 0.0, end: float = math.inf) -> np.ndarray:
    """The sound beside `frames_of`, float32 [N]: sample 0 sounds at the start of its first frame.

    Sound that starts later is led by silence; less comes where it ends earlier. Raises `VideoError`.
    """
    origin = _first_time(path) if begin == 0 else None
    with _decoding(path) as container:
        if not container.streams.audio:
            raise VideoError(f"{path}: holds no sound; a talking head needs speech")
        origin = _start(container) + begin if origin is None else origin
        audio, start = _decode_sound(container, path, begin, origin, origin + end - begin)
    if not len(audio):
        if begin == 0 and math.isinf(end):
            raise VideoError(f"{path}: no sound could be decoded")
        raise VideoError(f"{path}: sounds nowhere between {begin:.2f} and {end:.2f} s")
    late = round((start - origin) * SAMPLE_RATE)
    audio = np.pad(audio, (late, 0)) if late > 0 else audio[-late:]
    return audio if math.isinf(end) else audio[: round((end - begin) * SAMPLE_RATE)]


def read_audio(path: str | Path, most: float = math.inf) -> np.ndarray:
    """The sound of any file FFmpeg reads, float32 [N] in [-1, 1], mono at `SAMPLE_RATE`; not much more than the first
    `most` seconds of it.

    Sound louder than full scale (floating-point files) is turned down as a whole rather than clipped. Raises
    `VideoError`.
    """
    with _decoding(path) as container:
        if not container.streams.audio:
            raise VideoError(f"{path}: holds no sound")
        audio, _ = _decode_sound(container, path, 0.0, -math.inf, _start(container) + most, most)
    if not len(audio):
        raise VideoError(f"{path}: no sound could be decoded")
    audio /= max(1.0, float(audio.max()), -float(audio.min()))
    return audio


KINDS = (
    *("mov", "matroska", "avi", "asf", "flv", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "mxf", "nut", "dv"),
    *("gif", "wav", "w64", "aiff", "caf", "au", "mp3", "aac", "flac", "ogg", "amr", "ac3", "eac3", "wv", "ape", "tta"),
    *("apng", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "image2", "yuv4mpegpipe", "ivf", "rm"),
)
"""Containers that are opened, by FFmpeg's names."""


MOST_PIXELS = 50_000_000
"""Of one picture of a video: 8K has 33 million."""

LONGEST_FRAME, SLOWEST_SOUND = 30.0, 4000
"""Seconds of sound that one frame may hold, and samples a second that there must be; files of today lie far off."""


@contextlib.contextmanager
def _decoding(path: str | Path) -> Iterator[Any]:
    try:
        if Path(path).is_dir():
            raise VideoError(f"{path}: is a folder, not a file")
        if Path(path).is_file() and not Path(path).stat().st_size:
            raise VideoError(f"{path}: is empty (0 bytes)")
        # Named as a file: FFmpeg would take what stands before a colon for a protocol.
        # A playlist would name other files, and hosts: no kind of one is opened.
        with av.open(f"file:{path}", options={"format_whitelist": ",".join(KINDS)}) as container:
            for stream in container.streams.video:
                context = stream.codec_context
                if context.width * context.height > MOST_PIXELS:
                    raise VideoError(f"{path}: has pictures of {context.width} x {context.height} pixels; shrink it")
                context.options = {"max_pixels": str(MOST_PIXELS)}
            yield container
    except FileNotFoundError as error:
        raise VideoError(f"{path}: does not exist") from error
    except (av.InvalidDataError, av.ArgumentError) as error:
        raise VideoError(
            f"{path}: cannot be decoded (no picture, sound or video of a known kind, or damaged)"
        ) from error
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: cannot be decoded ({error.__class__.__name__}: {reason})") from error


def _start(container: Any) -> float:
    """The time in seconds at which a file begins."""
    return (container.start_time or 0) / 1e6


def _first_time(path: str | Path) -> float:
    """The time of the first picture."""
    with _decoding(path) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no picture")
        first = next(container.decode(container.streams.video[0]), None)
        if first is None:
            raise VideoError(f"{path}: no picture could be decoded")
        return float(first.time or 0.0)


def _decoded(container: Any, stream: Any, begin: float) -> Iterator[Any]:
    """The stream's frames, from a little before `begin` on."""
    if begin <= SEEK_EARLIER:
        yield from container.decode(stream)
        return
    wanted = begin + _start(container)
    for run_up in _RUN_UPS:
        try:
            container.seek(int((wanted - run_up) / stream.time_base), stream=stream, backward=True)
        except av.FFmpegError:
            break
        frames = container.decode(stream)
        first = next(frames, None)
        # Behind a frame that needs others, some are missing.
        whole = first is not None and (stream.type != "video" or first.key_frame)
        if first is not None and whole and (first.time is None or first.time <= wanted):
            yield first
            yield from frames
            return
    with av.open(container.name) as fresh:
        yield from fresh.decode(fresh.streams[stream.index])


def _timed(container: Any, stream: Any, begin: float, path: str | Path) -> Iterator[tuple[Any, float]]:
    """A video stream's frames, from a little before `begin` on, each with its time in seconds."""
    if container.format.name == "avi":
        # Where a seek ends, nothing tells which picture of how many it is.
        yield from _in_order(container.decode(stream), stream.time_base)
        return
    for number, frame in enumerate(_decoded(container, stream, begin)):
        yield frame, _time_of(frame, path, number / float(stream.average_rate or FPS) if begin == 0 else None)


def _in_order(frames: Iterator[Any], period: Fraction) -> Iterator[tuple[Any, float]]:
    """AVI's frames with their times. It holds no time of showing: a frame comes with its packet's, and packets stand in
    another order where B-frames were coded. The k-th frame that is shown has the k-th earliest time."""
    waiting: deque[Any] = deque()
    times: list[int] = []
    last = -1

    def first() -> tuple[Any, float]:
        nonlocal last
        last = max(last + 1, heappop(times))
        return waiting.popleft(), float(last * period)

    for frame in frames:
        waiting.append(frame)
        heappush(times, last + len(waiting) if frame.pts is None else frame.pts)
        if len(waiting) > _MOST_REORDERED:
            yield first()
    while waiting:
        yield first()


def _time_of(frame: Any, path: str | Path, otherwise: float | None) -> float:
    """Seconds. otherwise: for frames that carry no time."""
    if frame.time is not None:
        return float(frame.time)
    if otherwise is None:
        raise VideoError(f"{path}: its frames carry no times, so no part can be cut out of it")
    return otherwise


def _picture(frame: Any, crop: Box, path: str | Path) -> np.ndarray:
    # Telephones store how they were held; FFmpeg's libraries leave it to the reader to turn the picture.
    unnamed = frame.colorspace == _UNNAMED and frame.height >= HD_HEIGHT
    # One thread: several wait for each other wherever the cores have other work.
    pixels = frame.to_ndarray(format="rgb24", src_colorspace="ITU709" if unnamed else None, threads=1)
    picture = np.rot90(pixels, round(frame.rotation / 90))
    if crop == WHOLE_PICTURE:
        return picture
    left, top, width, height = crop
    cut = picture[top : top + height, left : left + width]
    if not cut.size:
        size = f"{picture.shape[1]} x {picture.shape[0]}"
        raise VideoError(f"{path}: its pictures of {size} pixels hold nothing of the region {crop}")
    return cut.copy()


def _decode_sound(
    container: Any, path: str | Path, begin: float, origin: float, until: float, most: float = math.inf
) -> tuple[np.ndarray, float]:
    """Mono samples, the mean of the channels, and the time in seconds of the first; from a little before `origin`.

    most: seconds of samples at most, whatever times a file says.
    FFmpeg's own mixing to mono adds floating-point channels up without turning them down.
    """
    samples = bytearray()  # grows in place, so that a long sound lies in memory once
    resampler: Any = None
    kind: tuple[str, str, int] | None = None
    start: float | None = None

    def take(frame: Any) -> None:
        for piece in resampler.resample(frame):
            # Interleaved: PyAV miscounts the planes of eight channels and more, and reads beyond them.
            samples.extend(piece.to_ndarray().reshape(-1, piece.layout.nb_channels).mean(1).tobytes())

    for frame in _decoded(container, container.streams.audio[0], begin):
        time = _time_of(frame, path, 0.0 if start is None else start)
        if time >= until or len(samples) > most * SAMPLE_RATE * 4:
            break
        if frame.samples > LONGEST_FRAME * frame.sample_rate or frame.sample_rate < SLOWEST_SOUND:
            # Either would grow without bound on the way to `SAMPLE_RATE`.
            raise VideoError(
                f"{path}: {frame.samples} samples of its sound come at once, at {frame.sample_rate} a second; export "
                "it again as 16-bit PCM"
            )
        if begin and time + frame.samples / frame.sample_rate <= origin - SEEK_EARLIER / 2:
            continue
        start = time if start is None else start
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if now != kind:
            # Joined files change their rate or channels on the way, and a resampler takes one kind.
            if resampler is not None:
                take(None)
            resampler, kind = av.AudioResampler(format="flt", rate=SAMPLE_RATE), now
        take(frame)
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
