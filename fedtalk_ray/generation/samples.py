"""Samples to look at: a video with its sound, and a contact sheet of truth above and generated below."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fedtalk_ray.generation.generate import enlarge
from fedtalk_ray.generation.scene import Dubbed, dubbed_crops, dubbed_pictures
from fedtalk_ray.generation.whole_picture import speak_in
from fedtalk_ray.marking.credentials import COMPOSITE, SYNTHETIC
from fedtalk_ray.marking.marked_video import signing_if_possible, write_marked
from fedtalk_ray.media.video import VideoError
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released, open_model
from fedtalk_ray.outputs import new_file
from fedtalk_ray.shards.format import Piece


def write_sample(pipeline: TalkingHeadPipeline, piece: Piece, folder: Path, name: str) -> np.ndarray:
    """A clip spoken by the model, in FOLDER: in its own pictures as name.mp4, from its first frame alone as name.png.

    The video is marked. Returns the frames of the second, uint8.
    """
    audio, signing = piece.waveform.astype(np.float32) / 32767, signing_if_possible()
    scene, file = dubbed_pictures([piece]), folder / f"{name}.mp4"
    try:
        pictures, aspect = spoken_in(scene, pipeline, piece)
        write_marked(file, pictures, audio, SYNTHETIC if scene is None else COMPOSITE, signing, pixel_aspect=aspect)
    except VideoError:
        if scene is None:
            raise
        pictures, _ = spoken_in(None, pipeline, piece)
        write_marked(file, pictures, audio, SYNTHETIC, signing)
    frames = pipeline(piece.frames[0], audio, generator=torch.Generator().manual_seed(0)).frames[: len(piece.frames)]
    rows = [(f"{piece.client}/{piece.clip}  ground truth", piece.frames), ("generated from its first frame", frames)]
    write_png(folder / f"{name}.png", contact_sheet(rows))
    return frames


def spoken_in(
    scene: Dubbed | None, pipeline: TalkingHeadPipeline, piece: Piece
) -> tuple[Iterator[np.ndarray], Fraction]:
    """A clip's own pictures with a mouth made from its sound: blocks uint8 [n, H, W, 3], and how wide their pixels are.

    scene: those pictures; None for its crops, enlarged. Clips without landmarks are spoken from their first frame.
    """
    audio, count = piece.waveform.astype(np.float32) / 32767, len(piece.frames)
    generator = torch.Generator().manual_seed(0)
    if scene is not None:
        return speak_in(scene, pipeline, audio, count, generator, own_sound=True), scene.pixel_aspect
    if not len(piece.landmarks):
        return iter([enlarge(pipeline(piece.frames[0], audio, generator=generator).frames[:count])]), Fraction(1)
    made = speak_in(dubbed_crops(piece), pipeline, audio, count, generator, own_sound=True)
    return map(enlarge, made), Fraction(1)


def write_comparison(piece: Piece, models: Mapping[str, str | Path], path: Path) -> None:
    """A contact sheet of a clip: the truth, then what each model makes of its first frame and its sound.

    models: what a row is called -> a run's folder or a pretrained pipeline.
    """
    audio = piece.waveform.astype(np.float32) / 32767
    rows = [(f"{piece.client}/{piece.clip}  ground truth", piece.frames)]
    for name, source in models.items():
        pipeline = load_released(open_model(source))
        made = pipeline(piece.frames[0], audio, generator=torch.Generator().manual_seed(0)).frames
        rows.append((name, made[: len(piece.frames)]))
    write_png(path, contact_sheet(rows))


LABEL_HEIGHT = 18
"""Pixels of the strip above each row that holds its name."""

GAP = 2
"""Pixels between neighbouring frames, and below each row."""

BACKGROUND = (24, 24, 24)
INK = (235, 235, 235)


def contact_sheet(rows: list[tuple[str, np.ndarray]], columns: int = 12, scale: int = 2) -> np.ndarray:
    """Lay out videos under one another, ground truth first, the same instants in every row.

    rows: (name, frames uint8 [T, H, W, 3]); lengths may differ, H and W may not. `columns` instants are spread evenly
    over the shortest video, its first and last frame included; a video with fewer frames shows each once. Every frame
    pixel becomes `scale` x `scale` pixels.
    Returns uint8 [height, width, 3]: the frame in row r and column c begins at
    y = r * (LABEL_HEIGHT + H * scale + GAP) + LABEL_HEIGHT and x = c * (W * scale + GAP).
    Raises `ValueError` for no rows, an empty video, or frames of different sizes.
    """
    _check(rows, columns, scale)
    shortest = min(len(frames) for _, frames in rows)
    instants = np.linspace(0, shortest - 1, min(columns, shortest)).round().astype(int)
    height, width = (side * scale for side in rows[0][1].shape[1:3])
    row_height = LABEL_HEIGHT + height + GAP
    sheet = Image.new("RGB", (len(instants) * (width + GAP) - GAP, len(rows) * row_height), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for r, (name, frames) in enumerate(rows):
        pen.text((3, r * row_height + LABEL_HEIGHT / 2), name, fill=INK, font=font, anchor="lm")
        for c, instant in enumerate(instants):
            tile = frames[instant].repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(Image.fromarray(tile), (c * (width + GAP), r * row_height + LABEL_HEIGHT))
    return np.array(sheet)


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as PNG, beside the target first and then renamed.

    Makes the folder where it is missing. Raises `OutputError` where nothing can be written.
    """
    with new_file(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def _check(rows: list[tuple[str, np.ndarray]], columns: int, scale: int) -> None:
    if not rows:
        raise ValueError("a contact sheet needs at least one video, got none")
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    for name, frames in rows:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
            raise ValueError(f"{name}: must be uint8 [T, H, W, 3] with T >= 1, got {frames.dtype} {list(frames.shape)}")
        if frames.shape[1:] != rows[0][1].shape[1:]:
            sizes = [f"{clip.shape[2]}x{clip.shape[1]}" for clip in (frames, rows[0][1])]
            raise ValueError(f"{name}: frames are {sizes[0]}, those of {rows[0][0]} are {sizes[1]}; sizes must agree")
