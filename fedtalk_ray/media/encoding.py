"""Video files out: H.264 with AAC, a block of frames at a time, whole or not at all (PyAV, the FFmpeg libraries)."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from fedtalk_ray.media.video import FPS, HD_HEIGHT, SAMPLE_RATE, VideoError
from fedtalk_ray.outputs import new_file

_BT601, _BT709 = 6, 1  # as H.264 numbers them

GROWING = {"movflags": "empty_moov+delay_moov+default_base_moof", "frag_duration": "200000"}
"""Of FFmpeg's MP4: the head with the first fragment, whose sound then says where it begins, and fragments of so many
microseconds."""

AT_ONCE = {"crf": "23", "preset": "ultrafast", "tune": "zerolatency", "g": "50"}
"""Of x264: no frame waits for later ones."""


def write_video(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    audio: np.ndarray | None,
    fps: Fraction | int = FPS,
    pixel_aspect: Fraction = Fraction(1),
) -> None:
    """Write H.264 video with AAC sound, beside the target first and then renamed.

    frames: uint8 [T, H, W, 3] with even H and W, or an iterable of such blocks, of which one at a time is held; nothing
    stays behind when it raises. audio: float32 [N] at `SAMPLE_RATE`, cut or padded with silence to the length of the
    picture; None writes no sound. Raises `VideoError` where there is no frame at all.
    """
    together = round(fps)
    blocks = np.split(frames, range(together, len(frames), together)) if isinstance(frames, np.ndarray) else frames
    with new_file(path) as partial, av.open(f"file:{partial}", "w") as container:
        film = _Film(container, audio, fps, pixel_aspect, {"crf": "18", "preset": "veryfast"})
        for block in blocks:
            film.add(block)
        if not film.shown:
            raise VideoError(f"{path}: there is no frame to write")
        film.end()


class Sound(Protocol):
    """Samples float32 at `SAMPLE_RATE` by their places: an array, or what is still coming."""

    def __getitem__(self, part: slice) -> np.ndarray: ...


def also_growing(
    blocks: Iterable[np.ndarray],
    file: BinaryIO,
    audio: Sound | None,
    fps: Fraction | int = FPS,
    pixel_aspect: Fraction = Fraction(1),
) -> Iterator[np.ndarray]:
    """The blocks, each written to `file` too before it is given on: fragmented MP4, which plays while it grows, in
    fragments of a fifth of a second. The rest as `write_video` takes it."""
    with av.open(file, "w", format="mp4", options=GROWING) as container:
        film = _Film(container, audio, fps, pixel_aspect, AT_ONCE)
        for block in blocks:
            film.add(block)
            yield block
        film.end()


class _Film:
    """A container's picture, and its sound beside it. coding: of the encoder x264. shown: frames so far."""

    def __init__(
        self,
        container: Any,
        audio: Sound | None,
        fps: Fraction | int,
        pixel_aspect: Fraction,
        coding: dict[str, str],
    ) -> None:
        self._container, self._audio, self._fps = container, audio, fps
        self._pixel_aspect, self._coding = pixel_aspect, coding
        self._reformatter = VideoReformatter()
        self._picture: Any = None
        self._sound: Any = None
        self._colours = Colorspace.ITU601
        self._heard = self.shown = 0

    def add(self, block: np.ndarray) -> None:
        """Frames uint8 [n, H, W, 3]."""
        if not len(block):
            return
        if self._picture is None:
            self._begin(*block.shape[1:3])
        for image in block:
            whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            # Two threads for so little wait for each other wherever the cores have other work.
            whole = self._reformatter.reformat(whole, format="yuv420p", dst_colorspace=self._colours, threads=1)
            self._container.mux(self._picture.encode(whole))
        self.shown += len(block)
        if self._sound is not None and self._audio is not None:
            # Sound goes in beside its picture, so that neither waits in memory for the other.
            until = round(self.shown / self._fps * SAMPLE_RATE)
            _encode_audio(self._container, self._sound, self._audio, self._heard, until)
            self._heard = until

    def end(self) -> None:
        for stream in (self._picture, self._sound):
            if stream is not None:
                self._container.mux(stream.encode())

    def _begin(self, height: int, width: int) -> None:
        picture = self._container.add_stream("h264", rate=self._fps, options=self._coding)
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        matrix, self._colours = (_BT709, Colorspace.ITU709) if height >= HD_HEIGHT else (_BT601, Colorspace.ITU601)
        colours = picture.codec_context  # named, or every player takes its own guess
        colours.colorspace = colours.color_primaries = colours.color_trc = matrix
        colours.sample_aspect_ratio = self._pixel_aspect
        self._picture = picture
        if self._audio is not None:
            self._sound = self._container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")


def _encode_audio(container: Any, stream: Any, audio: Sound, begin: int, end: int) -> None:
    """Encodes samples `begin` to `end`, silence where `audio` is shorter."""
    piece = audio[begin:end].astype(np.float32)
    piece = np.pad(piece, (0, end - begin - len(piece)))
    frame = av.AudioFrame.from_ndarray(piece[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, begin
    container.mux(stream.encode(frame))
