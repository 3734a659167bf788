"""Video files out: H.264 with AAC, a block of frames at a time, whole or not at all (PyAV, the FFmpeg libraries)."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from fedtalk_ray.media.video import FPS, HD_HEIGHT, SAMPLE_RATE, VideoError
from fedtalk_ray.outputs import new_file

_BT601, _BT709 = 6, 1  # as H.264 numbers them


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
        picture = sound = None
        shown = heard = 0
        for block in blocks:
            if not len(block):
                continue
            if picture is None:
                picture = container.add_stream("h264", rate=fps, options={"crf": "18", "preset": "veryfast"})
                picture.width, picture.height, picture.pix_fmt = block.shape[2], block.shape[1], "yuv420p"
                matrix, name = (_BT709, "ITU709") if block.shape[1] >= HD_HEIGHT else (_BT601, "ITU601")
                colours = picture.codec_context  # named, or every player takes its own guess
                colours.colorspace = colours.color_primaries = colours.color_trc = matrix
                colours.sample_aspect_ratio = pixel_aspect
                sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if audio is not None else None
            for image in block:
                whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                container.mux(picture.encode(whole.reformat(format="yuv420p", dst_colorspace=name)))
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
