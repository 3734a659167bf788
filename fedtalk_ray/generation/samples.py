"""Samples to look at: a video with its sound, and a contact sheet of truth above and generated below."""

from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.generation.contact_sheet import contact_sheet, write_png
from fedtalk_ray.media.video import write_video
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.shards.format import Piece

VIDEO_SCALE = 4
"""Videos are written this much larger than the model's frames: players show a 64 pixel face as a stamp."""


def write_sample(pipeline: TalkingHeadPipeline, piece: Piece, folder: Path, name: str) -> np.ndarray:
    """Speaks a clip's sound from its first frame: FOLDER/name.mp4 and FOLDER/name.png. Returns the frames, uint8."""
    audio = piece.waveform.astype(np.float32) / 32767
    frames = pipeline(piece.frames[0], audio, generator=torch.Generator().manual_seed(0)).frames[: len(piece.frames)]
    write_video(folder / f"{name}.mp4", enlarge(frames), audio)
    rows = [(f"{piece.client}/{piece.clip}  ground truth", piece.frames), ("generated from its first frame", frames)]
    write_png(folder / f"{name}.png", contact_sheet(rows))
    return frames


def enlarge(frames: np.ndarray, scale: int = VIDEO_SCALE) -> np.ndarray:
    """uint8 [T, S, S, 3] to [T, S * scale, S * scale, 3], bicubic."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    larger = torch.nn.functional.interpolate(pixels, scale_factor=scale, mode="bicubic", align_corners=False)
    return larger.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
