"""A part of a long video, cut in time and to a region of the picture, and sound from a file beside a silent video.

`data.video.read_video` decodes a file from its start and keeps whole pictures: minutes of 1080p would not fit into
memory. Here only the wanted span is decoded, and only the wanted region kept.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from fedtalk_ray.data.corpus_source import WHOLE_PICTURE, Box, ClipSource
from fedtalk_ray.data.video import FPS, SAMPLE_RATE, Video, VideoError, read_audio, read_video

MAX_SECONDS = 600.0
SEEK_EARLIER = 0.2
"""Seconds: a picture may be stored before the time it is shown at, and a sound decoder needs a run-up."""


def read_clip(source: ClipSource) -> Video:
    """The file of a clip, or the part of it that the clip is, with its sound. Raises `VideoError`."""
    path = str(source.path)
    whole = source.begin == 0 and math.isinf(source.end) and source.crop == WHOLE_PICTURE
    if whole and (source.sound is None or has_sound(path)):
        return read_video(path)
    end = min(source.end, source.begin + MAX_SECONDS)
    frames = read_pictures_between(path, source.begin, end, source.crop)
    if source.sound is None or has_sound(path):
        return Video(frames, read_sound_between(path, source.begin, end))
    first, last = (round(time * SAMPLE_RATE) for time in (source.begin, end))
    return Video(frames, read_audio(source.sound)[first:last])


def has_sound(path: str) -> bool:
    """Whether a video file holds sound. Raises `VideoError` when it cannot be opened."""
    with _opened(path) as container:
        return bool(container.streams.audio)


def read_pictures_between(path: str, begin: float, end: float, crop: Box = WHOLE_PICTURE) -> np.ndarray:
    """The frames from `begin` to `end` seconds on the 25 fps grid, uint8 [T, H, W, 3], cut to `crop`.

    Frame k is the newest whose time is not after begin + k / 25 s. Fewer come where the video ends earlier.
    """
    kept: list[np.ndarray] = []
    wanted = round((end - begin) * FPS)
    shown: Any = None
    picture: np.ndarray | None = None
    time = 0.0
    with _opened(path) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no video stream")
        stream = container.streams.video[0]
        for frame in _decode_from(container, stream, begin, path):
            time = _time(container, frame)
            while shown is not None and len(kept) < wanted and begin + len(kept) / FPS < time - 1e-6:
                # Only what is kept is converted: a seek may land seconds earlier.
                picture = _picture(shown, crop, path) if picture is None else picture
                kept.append(picture)
            if len(kept) == wanted:
                break
            shown, picture = frame, None
        if shown is not None and len(kept) < wanted and begin + len(kept) / FPS < time + 1 / FPS:
            kept.append(_picture(shown, crop, path))
    if not kept:
        raise VideoError(f"{path}: shows nothing between {begin:.2f} and {end:.2f} s")
    return np.stack(kept)


def read_sound_between(path: str, begin: float, end: float) -> np.ndarray:
    """The sound from `begin` to `end` seconds, float32 [N], the mean of the channels, at `SAMPLE_RATE`.

    Sound that starts later is led by silence; less comes where it ends earlier.
    """
    resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
    parts: list[np.ndarray] = []
    start: float | None = None
    with _opened(path) as container:
        if not container.streams.audio:
            raise VideoError(f"{path}: holds no sound; a talking head needs speech")
        for frame in _decode_from(container, container.streams.audio[0], begin, path):
            time = _time(container, frame)
            if time >= end:
                break
            if time + frame.samples / frame.sample_rate > begin - SEEK_EARLIER / 2:
                start = time if start is None else start
                parts += [_mono(piece) for piece in resampler.resample(frame)]
        parts += [_mono(piece) for piece in resampler.resample(None)] if parts else []
    if start is None:
        raise VideoError(f"{path}: sounds nowhere between {begin:.2f} and {end:.2f} s")
    audio = np.concatenate(parts)
    late = round((start - begin) * SAMPLE_RATE)
    audio = np.pad(audio, (late, 0)) if late > 0 else audio[-late:]
    return audio[: round((end - begin) * SAMPLE_RATE)]


def _decode_from(container: Any, stream: Any, begin: float, path: str) -> Iterator[Any]:
    if begin > SEEK_EARLIER:
        target = begin - SEEK_EARLIER + (container.start_time or 0) / 1e6
        container.seek(int(target / stream.time_base), stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.time is None:
            raise VideoError(f"{path}: its frames carry no times, so no part can be cut out of it")
        yield frame


def _time(container: Any, frame: Any) -> float:
    """Seconds since the start of the file."""
    return frame.time - (container.start_time or 0) / 1e6


def _picture(frame: Any, crop: Box, path: str) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")
    if crop == WHOLE_PICTURE:
        return picture
    left, top, width, height = crop
    cut = picture[top : top + height, left : left + width]
    if not cut.size:
        size = f"{picture.shape[1]} x {picture.shape[0]}"
        raise VideoError(f"{path}: its pictures of {size} pixels hold nothing of the region {crop}")
    return cut.copy()


def _mono(frame: Any) -> np.ndarray:
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(1)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        with av.open(f"file:{path}") as container:
            yield container
    except FileNotFoundError as error:
        raise VideoError(f"{path}: does not exist") from error
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: cannot be decoded ({error.__class__.__name__}: {reason})") from error
