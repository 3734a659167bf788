from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.evaluation.judge import FEATURE_FILE, IdentityJudge, embed_clip, similarity
from fedtalk_ray.media.dlib_models import MissingModelError
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.face_view import arcface_view
from tests.unit.onnx_files import write_network

WEIGHT = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)


@pytest.fixture
def judge(tmp_path: Path) -> IdentityJudge:
    pytest.importorskip("onnxruntime")
    write_network(tmp_path / FEATURE_FILE, (1, 3, 112, 112), WEIGHT)
    return IdentityJudge(tmp_path)


def test_embedding_is_the_networks_answer_to_rgb_scaled_and_of_length_one(judge: IdentityJudge) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    frame[..., 2] //= 4
    colour = (arcface_view(frame).reshape(-1, 3).mean(axis=0) - 127) / 128
    expected = colour @ WEIGHT
    vector = judge.embed(frame)
    assert vector.dtype == np.float32
    assert vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


def test_similarity_is_the_cosine() -> None:
    a, b = np.zeros((2, 512), np.float32)
    a[0], b[:2] = 2.0, (3.0, 4.0)
    assert similarity(a, b) == pytest.approx(0.6)
    assert similarity(a, -a) == pytest.approx(-1.0)
    assert similarity(a, a * 0) == 0.0


def test_a_clip_is_judged_every_fifteenth_frame_without_the_first(judge: IdentityJudge) -> None:
    frames = np.random.default_rng(2).integers(0, 256, (36, 32, 32, 3), dtype=np.uint8)
    expected = np.stack([judge.embed(frames[index]) for index in (5, 20, 35)])
    assert embed_clip(judge, frames) == pytest.approx(expected)
    assert embed_clip(judge, frames[:3]) == pytest.approx(judge.embed(frames[2])[None])


def test_arcface_view_puts_the_eyes_on_arcfaces_points() -> None:
    """insightface's template has the eyes at (38.29, 51.70) and (73.53, 51.50) of 112 x 112 pixels."""
    ticks = (np.arange(90) + 0.5) / 90
    for (x, y), (to_x, to_y) in ((LEFT_EYE, (38.29, 51.70)), (RIGHT_EYE, (73.53, 51.50))):
        spot = np.exp(-((ticks[None] - x) ** 2 + (ticks[:, None] - y) ** 2) / (2 * 0.04**2))
        frame = np.repeat((spot * 255).round().astype(np.uint8)[..., None], 3, axis=2)
        view = arcface_view(frame)[..., 0].astype(float)
        assert view.shape == (112, 112)
        centres = np.arange(112) + 0.5
        assert (view.sum(axis=0) @ centres) / view.sum() == pytest.approx(to_x, abs=0.4)
        assert (view.sum(axis=1) @ centres) / view.sum() == pytest.approx(to_y, abs=0.4)


def test_missing_and_damaged_files_and_wrong_frames_are_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(MissingModelError, match=rf"{FEATURE_FILE} in {tmp_path}, which has no such file"):
        IdentityJudge(tmp_path)
    with pytest.raises(ValueError, match=r"square crop, got uint8 \[64, 48, 3\]"):
        arcface_view(np.zeros((64, 48, 3), np.uint8))
    (tmp_path / FEATURE_FILE).write_bytes(b"no network")
    with pytest.raises(MissingModelError, match=rf"{tmp_path}/{FEATURE_FILE} cannot be read as an ONNX network"):
        IdentityJudge(tmp_path)
