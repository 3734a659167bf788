"""Still pictures as people have them: any depth, grey, transparent, and turned as the telephone was held (Pillow)."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedtalk_ray.media.video import VideoError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What is taken for a still picture; of an animation the first frame. Everything else is left to FFmpeg."""

MAX_SIDE = 4096
"""Larger pictures are shrunk to this many pixels on their longer side: enough for any face, and memory is bounded."""

_BACKGROUND = (255, 255, 255)  # behind what is transparent: what viewers show
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")


def read_still(path: str | Path) -> np.ndarray | None:
    """A picture file the right way up, uint8 [H, W, 3] RGB; None when it is no still picture of a known format.

    EXIF orientation is applied, transparency laid on white, 16-bit grey brought to 8 bits. Raises `VideoError` for a
    picture that is damaged, has floating-point pixels, or is in Apple's HEIC format.
    """
    path = Path(path)
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # older Pillow lacks AVIF
    try:
        with open(path, "rb") as file:
            head = file.read(12)
        if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
            raise VideoError(f"{path}: is a HEIC picture, which cannot be read here; save it as JPEG or PNG")
        with warnings.catch_warnings():
            # Pillow warns of pictures that it takes, and of harmless flaws; what it cannot take it raises.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=known) as picture:
                picture.draft(None, (MAX_SIDE, MAX_SIDE))  # JPEG: decodes no more pixels than are needed
                return np.array(_as_rgb(ImageOps.exif_transpose(picture), path))  # writable, for torch
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise VideoError(f"{path}: has too many pixels to be decoded ({error}); shrink it") from error
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{path}: cannot be decoded ({error.__class__.__name__}: {error})") from error


def smaller(frames: np.ndarray, longest: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] brought down to `longest` pixels on the longer side, both even, where it is longer."""
    height, width = frames.shape[1:3]
    if max(height, width) <= longest:
        return frames
    size = (
        max(2, width * longest // max(height, width) // 2 * 2),
        max(2, height * longest // max(height, width) // 2 * 2),
    )
    return np.stack([np.array(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def _as_rgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode == "F":
        raise VideoError(f"{path}: has floating-point pixels, whose range nobody can know; save it with 8 bits")
    if picture.mode.startswith("I"):
        # 16 bits in one channel; Pillow's own conversion would cut off everything above 255.
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*_BACKGROUND, 255))
        picture = Image.alpha_composite(ground, layer)
    return picture.convert("RGB")
