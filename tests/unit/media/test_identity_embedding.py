"""Identity networks: the face lies where each expects it, vectors are the networks' own, wrong files are named."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.errors import UserError
from fedtalk_ray.media import dlib_models, face_view
from fedtalk_ray.media.dlib_models import MissingModelError
from fedtalk_ray.media.face_template import LEFT_EYE, RIGHT_EYE
from fedtalk_ray.media.identity_embedding import (
    EmbedderError,
    clip_identity,
    frames_to_embed,
    load_identity_embedder,
    unit,
)
from tests.unit.onnx_files import write_network

WEIGHT = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


def faces(count: int, side: int = 64) -> np.ndarray:
    """Crops of random colours, more red than blue."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, side, side, 3))
    return (pixels // (1, 2, 4)).astype(np.uint8)


# Where each network expects the eyes, in fractions of its picture: insightface's ArcFace points; the eyes of dlib's
# mean face (its source: eye corners at 0.12 .. 0.33 and 0.65 .. 0.86 across, 0.22 down, before a padding of 0.25);
# MTCNN's boxes, measured.
EYES = {
    "arcface": (face_view.ARCFACE_BOX, 112, (38.29 / 112, 51.6 / 112), (73.53 / 112, 51.6 / 112)),
    "dlib": (face_view.DLIB_BOX, 150, ((0.25 + 0.2255) / 1.5, 0.466 / 1.5), ((0.25 + 0.7548) / 1.5, 0.466 / 1.5)),
    "facenet": (face_view.FACENET_BOX, 160, (0.285, 0.393), (0.715, 0.393)),
}


@pytest.mark.parametrize("name", EYES)
def test_the_eyes_lie_where_each_network_expects_them(name: str) -> None:
    crop_side, (box, side, *expected) = 90, EYES[name]
    ticks = (np.arange(crop_side) + 0.5) / crop_side
    for (x, y), (to_x, to_y) in zip((LEFT_EYE, RIGHT_EYE), expected, strict=True):
        spot = np.exp(-((ticks[None] - x) ** 2 + (ticks[:, None] - y) ** 2) / (2 * 0.04**2))
        frame = np.repeat((spot * 255).round().astype(np.uint8)[..., None], 3, axis=2)
        view = face_view.cut_view(frame, box, side)[..., 0].astype(float)
        assert view.shape == (side, side)
        centres = (np.arange(side) + 0.5) / side
        assert (view.sum(axis=0) @ centres) / view.sum() == pytest.approx(to_x, abs=0.004)
        assert (view.sum(axis=1) @ centres) / view.sum() == pytest.approx(to_y, abs=0.004)


def test_beyond_the_crop_a_view_is_black_and_inside_it_is_the_crop() -> None:
    view = face_view.cut_view(np.full((20, 20, 3), 200, np.uint8), (-0.5, 0.0, 1.0, 1.5), 30)
    assert (view[:18, 12:] == 200).all() and not view[:, :8].any() and not view[22:].any()
    with pytest.raises(ValueError, match=r"square crop, got uint8 \[64, 48, 3\]"):
        face_view.cut_view(np.zeros((64, 48, 3), np.uint8), face_view.DLIB_BOX, 150)


@pytest.mark.parametrize("shape", [(1, 3, 112, 112), ("N", 3, "H", "W"), (1, 3, 48, 48)])
def test_an_onnx_network_sees_rgb_between_minus_1_and_1_at_its_own_side(tmp_path: Path, shape) -> None:
    source = write_network(tmp_path / "face.onnx", shape, WEIGHT)
    embedder = load_identity_embedder(source)
    assert (embedder.source, embedder.dimensions) == (source, 6)
    frames, side = faces(3), shape[2] if isinstance(shape[2], int) else 112
    views = np.stack([face_view.cut_view(frame, face_view.ARCFACE_BOX, side) for frame in frames])
    expected = ((views.reshape(3, -1, 3).mean(axis=1) - 127.5) / 127.5) @ WEIGHT
    vectors = embedder.embed(frames)
    assert vectors.dtype == np.float32 and vectors.shape == (3, 6)
    assert vectors == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True), abs=1e-4)
    assert embedder.embed(frames[:0]).shape == (0, 6)
    mean = sum(embedder.embed(frames[[index]])[0] for index in range(3)) / 3
    assert frames_to_embed(12) == [2, 6, 10]
    assert clip_identity(embedder, frames) == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert unit(np.zeros((2, 3))).tolist() == [[0, 0, 0]] * 2, "no NaN"


def refusal(source: object, kind: type[UserError]) -> str:
    with pytest.raises(kind) as caught:
        load_identity_embedder(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_networks_that_take_no_faces_are_named(tmp_path: Path) -> None:
    path = tmp_path / "face.onnx"
    for shape in ((1, 3, 112), (1, 1, 112, 112), (8, 3, 112, 112), (1, 3, 112, 96)):
        message = refusal(write_network(path, shape, WEIGHT), EmbedderError)
        assert message.startswith(f"identity source '{path}' takes {list(shape)} (tensor(float)); a face network takes")
    for wrong, says in (({"element": 2}, "(tensor(uint8))"), ({"inputs": 2}, "takes ['picture', 'more1']")):
        assert says in refusal(write_network(path, (1, 3, 112, 112), WEIGHT, **wrong), EmbedderError)


def test_missing_and_damaged_files_and_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "face.onnx"
    assert refusal(path, MissingModelError) == f"{path} does not exist; name an ONNX file"
    path.write_bytes(b"no network")
    assert refusal(path, MissingModelError).startswith(f"{path} cannot be read as an ONNX network (")
    unknown = refusal("arcface", EmbedderError)
    assert unknown.startswith("identity source 'arcface' is unknown; give \"dlib\"") and "an ONNX file" in unknown
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert refusal(path, MissingModelError).endswith("pip install onnxruntime")
    monkeypatch.setitem(sys.modules, "dlib", None)
    dlib_models.face_recognition_network.cache_clear()
    assert refusal("dlib", MissingModelError).endswith("pip install dlib-bin")
    with pytest.raises(MissingModelError, match=r"other\.dat .* is not in .*pip install face-recognition"):
        dlib_models.model_path("other.dat")
