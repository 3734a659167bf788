"""The autoencoder of the lower face: what it leaves alone, what it keeps, and what it takes from the reference."""

import numpy as np
import pytest
import torch

from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.media.lips import LIP_MOTION
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, new_pipeline

SIDE = 48


def noise_frames(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def speaking(wake_zeros) -> TalkingHeadPipeline:
    """A pipeline whose mouth moves with noise and sound, if not rightly."""
    torch.manual_seed(0)
    pipeline = new_pipeline("lower-face", 32, 4, widths=(16, 32), window=4)
    wake_zeros(pipeline.denoiser)
    pipeline.denoiser.eval()
    return pipeline


def test_a_pipeline_speaks_with_the_lower_face_alone(wake_zeros) -> None:
    pipeline, face = speaking(wake_zeros), noise_frames(1)[0]
    audio = np.random.default_rng(0).normal(0, 0.1, 640 * 9).astype(np.float32)
    made = pipeline(face, audio, generator=torch.Generator().manual_seed(0)).frames
    outside = mask_of(SIDE) == 0
    assert (made[:, outside] == face[outside]).all() and (made[0] != made[1]).any()
    blocks = list(pipeline.stream(face, audio, generator=torch.Generator().manual_seed(0), block=4))
    assert (np.concatenate(blocks) == made).all()
    assert np.abs(pipeline.at_rest(face).astype(int) - face).max() <= 1
    with pytest.raises(ValueError, match="lips of 8 frames are told for a sound of 9"):
        pipeline(face, audio, lips=np.zeros((8, LIP_MOTION), np.float32))
