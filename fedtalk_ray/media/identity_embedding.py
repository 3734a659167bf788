"""Who is seen, as one vector a face, and which frames of a clip are asked: networks trained on many people by others,
chosen by name or file.

This vector conditions a model. What scores the model must be another network (`evaluation/judge.py`).
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fedtalk_ray.errors import UserError
from fedtalk_ray.media import dlib_models, face_view
from fedtalk_ray.media.onnx_session import open_onnx

NO_IDENTITY = "none"
"""The name under which `fedtalk prepare --identity` stores no embedding."""

FRAMES_PER_CLIP = 3
"""A clip's embedding is the mean over so many frames: one may blink, and dlib's network needs 0.1 s a face."""

_SOURCES = '"dlib", "facenet", "facenet:WEIGHTS.pt", or an ONNX file'


class EmbedderError(UserError):
    """No usable identity network at the given source; the message is one line."""


class IdentityEmbedder(Protocol):
    """source: as `load_identity_embedder` was given it. dimensions: D."""

    source: str
    dimensions: int

    def embed(self, frames: np.ndarray) -> np.ndarray:
        """Unit vectors float32 [N, D] of aligned crops uint8 [N, S, S, 3]. Two of one person have a high cosine."""
        ...


def load_identity_embedder(source: str) -> IdentityEmbedder:
    """The network that `source` names: "dlib", "facenet", "facenet:WEIGHTS.pt", or a path to an ONNX file.

    Raises `EmbedderError` for what cannot be used, `dlib_models.MissingModelError` where a file or library is absent.
    """
    name, _, weights = source.partition(":")
    if source == "dlib":
        return _Dlib()
    if name == "facenet":
        return _FaceNet(source, weights)
    if Path(source).suffix.lower() == ".onnx" or Path(source).is_file():
        return _Onnx(source)
    raise EmbedderError(f"identity source {source!r} is unknown; give {_SOURCES}")


def frames_to_embed(count: int) -> list[int]:
    """Which frames of a clip show who it is: a few, spread evenly."""
    return [count * (2 * index + 1) // (2 * FRAMES_PER_CLIP) for index in range(FRAMES_PER_CLIP)]


def clip_identity(embedder: IdentityEmbedder, frames: np.ndarray) -> np.ndarray:
    """One unit vector float32 [D] for a clip, of its `frames_to_embed` uint8 [K, S, S, 3]: their mean, renormalised."""
    return unit(embedder.embed(frames).mean(axis=0))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., D] as float32 of length 1."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


class _Dlib:
    """dlib's face recognition network (ResNet, 128 numbers; CC0), about 0.11 s a face on one core."""

    source, dimensions = "dlib", 128

    def __init__(self) -> None:
        self._network = dlib_models.face_recognition_network()

    def embed(self, frames: np.ndarray) -> np.ndarray:
        chips = [face_view.cut_view(frame, face_view.DLIB_BOX, face_view.DLIB_SIDE) for frame in frames]
        vectors = self._network.compute_face_descriptor(chips) if chips else []
        return unit(np.array(vectors, np.float32).reshape(-1, self.dimensions))


class _FaceNet:
    """FaceNet of the package facenet-pytorch: Inception-ResNet v1, 512 numbers.

    weights: a state dictionary of its `InceptionResnetV1`; "" takes the package's own (VGGFace2), which it looks for in
    torch's cache and else downloads.
    """

    dimensions = 512

    def __init__(self, source: str, weights: str) -> None:
        self.source = source
        try:
            from facenet_pytorch import InceptionResnetV1
        except ImportError as error:
            # Its own requirements ask for an old torch and numpy, which it does not need for this.
            raise dlib_models.MissingModelError(
                f"identity source {source!r} needs facenet-pytorch ({error}): "
                "pip install --no-deps facenet-pytorch torchvision"
            ) from error
        try:
            self._network = InceptionResnetV1(pretrained=None if weights else "vggface2").eval()
            if weights:
                state = torch.load(weights, map_location="cpu", weights_only=True)
                # The last layer tells the training set's people apart; embeddings are what comes before it.
                kept = {name: value for name, value in state.items() if not name.startswith("logits.")}
                self._network.load_state_dict(kept)
        except Exception as error:  # downloading, unpickling and fitting raise whatever their libraries like
            reason = " ".join(str(error).split())[:200]
            raise EmbedderError(
                f"identity source {source!r}: FaceNet's weights cannot be loaded ({reason}); "
                "give facenet:FILE with a file of facenet-pytorch's InceptionResnetV1 weights"
            ) from error

    @torch.inference_mode()
    def embed(self, frames: np.ndarray) -> np.ndarray:
        if not len(frames):
            return np.zeros((0, self.dimensions), np.float32)
        views = [face_view.cut_view(frame, face_view.FACENET_BOX, face_view.FACENET_SIDE) for frame in frames]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float()
        return unit(self._network((pixels - 127.5) / 128).numpy())  # facenet-pytorch's fixed_image_standardization


class _Onnx:
    """Any network as ArcFace's are: RGB float32 [N, 3, side, side], (pixel - 127.5) / 127.5, ArcFace's five points.

    The side is what the file says, 112 where it leaves it open. Whatever it gives for one face is the vector.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._session = open_onnx(source)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else [one.name for one in inputs]
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not _takes_pictures(shape):
            raise EmbedderError(
                f"identity source {source!r} takes {shape} ({inputs[0].type}); a face network takes one tensor(float) "
                "of [N, 3, side, side]"
            )
        self._input = inputs[0].name
        self._side = next((int(side) for side in shape[2:] if isinstance(side, int)), face_view.ARCFACE_SIDE)
        self.dimensions = len(self._run(np.zeros((self._side, self._side, 3), np.uint8)))
        if self.dimensions < 2:
            raise EmbedderError(f"identity source {source!r} gives a single number for a face; a vector is needed")

    def embed(self, frames: np.ndarray) -> np.ndarray:
        views = [face_view.cut_view(frame, face_view.ARCFACE_BOX, self._side) for frame in frames]
        return unit(np.array([self._run(view) for view in views], np.float32).reshape(-1, self.dimensions))

    def _run(self, view: np.ndarray) -> np.ndarray:
        """One face at a time: many of these files are exported for a batch of one."""
        pixels = (view.astype(np.float32).transpose(2, 0, 1)[None] - 127.5) / 127.5
        try:
            output: Any = self._session.run(None, {self._input: pixels})[0]
        except Exception as error:  # onnxruntime's own exceptions share no narrower base
            reason = " ".join(str(error).split())[:200]
            raise EmbedderError(f"identity source {self.source!r} does not run on a face ({reason})") from error
        return np.asarray(output, np.float32).reshape(-1)


def _takes_pictures(shape: list[Any]) -> bool:
    """[N, 3, side, side] where anything may be left open (a name or None), and N may be 1."""
    fixed = [size if isinstance(size, int) else None for size in shape]
    return len(fixed) == 4 and fixed[0] in (None, 1) and fixed[1] in (None, 3) and len({*fixed[2:]} - {None}) < 2
