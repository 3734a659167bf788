"""What a pretrained speech model of transformers hears: windows of its last hidden layer, one a video frame.

Whisper, wav2vec2, HuBERT and WavLM give a vector every 20 ms. The sound is shifted by less than that, so that each
vector stands for its own 320 samples and a window of ten of them lies exactly around the middle of its frame. Long
sound goes through in pieces that overlap and are blended, so memory is bounded and no seam forms.

On one core Whisper-tiny needs about a second for every 30 s begun (it pads what is shorter), wav2vec2-base about 0.6 s
for a second of sound; they hold 0.1 and 0.8 GB beside their weights, however long the sound.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedtalk_ray.errors import UserError
from fedtalk_ray.media.video import FPS, SAMPLE_RATE

WINDOW_FRAMES = 5
"""A window is as long as so many video frames: from 100 ms before the middle of its own to 100 ms after."""

PIECE_SECONDS = 20
"""wav2vec2 and its kin take any length; attention over this much keeps memory below a gigabyte."""

OVERLAP_SECONDS = 2

_CONVOLUTIONAL = ("wav2vec2", "hubert", "wavlm")
_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_WHISPER_STEP = 320


Encode = Callable[[np.ndarray, int, int], np.ndarray]


class SpeechError(UserError):
    """No usable speech model at the given path or hub id; the message is one line."""


class SpeechEncoder:
    """Windows of a model's last hidden layer: `media.speech.SpeechFeatures`.

    encode(sound, before, steps): sound float32 [N >= 1] behind `before` steps of silence, to float32 [steps, hidden].
    Vector i stands for the `step` samples that begin at (i - before) * step.
    """

    def __init__(self, source: str, step: int, hidden: int, encode: Encode) -> None:
        self.source = source
        self.shape = (WINDOW_FRAMES * _SAMPLES_PER_FRAME // step, hidden)
        self._step, self._encode = step, encode

    def windows(self, audio: np.ndarray, frames: int) -> np.ndarray:
        """What each of `frames` video frames hears, float32 [frames, hops, hidden]; silence beyond the ends.

        audio: mono float32 [N] at `SAMPLE_RATE`, of any length, sample 0 at the start of frame 0.
        """
        if frames == 0:
            return np.zeros((0, *self.shape), np.float32)
        hops, per_frame = self.shape[0], _SAMPLES_PER_FRAME // self._step
        before = (hops - per_frame) // 2
        steps = (frames - 1) * per_frame + hops
        heard = np.array(audio[: (steps - before) * self._step], np.float32)
        features = self._encode(heard if len(heard) else np.zeros(1, np.float32), before, steps)
        return features[np.arange(frames)[:, None] * per_frame + np.arange(hops)]


def load_speech_encoder(source: str) -> SpeechEncoder:
    """The encoder in a folder written by `save_pretrained` or at a hub id; on the CPU, in evaluation mode.

    Raises `SpeechError` for what is no such model, is of another type, lacks weights, or when transformers is missing.
    """
    transformers = _transformers(source)
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise SpeechError(f"speech source {source!r} is no folder; {_WANTED}")
    config = _loaded(source, lambda: transformers.AutoConfig.from_pretrained(source))
    if config.model_type not in ("whisper", *_CONVOLUTIONAL):
        raise SpeechError(
            f"speech source {source!r} is a model of type {config.model_type!r}; usable: whisper, "
            f"{', '.join(_CONVOLUTIONAL)}"
        )
    transformers.utils.logging.disable_progress_bar()
    model, report = _loaded(
        source, lambda: transformers.AutoModel.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    )
    # transformers draws at random what a file lacks, with a warning only.
    lacking = [name for name in report["missing_keys"] if not name.startswith(("decoder.", "masked_spec_embed"))]
    if lacking:
        raise SpeechError(f"speech source {source!r} lacks weights of its {config.model_type}: {sorted(lacking)[0]}")
    model.requires_grad_(False).eval()
    extractor = _extractor(transformers, source, config)
    if extractor.sampling_rate != SAMPLE_RATE:
        raise SpeechError(
            f"speech source {source!r} hears {extractor.sampling_rate} samples a second; {SAMPLE_RATE} is needed"
        )
    if config.model_type == "whisper":
        return SpeechEncoder(source, _WHISPER_STEP, config.d_model, _whisper(model.encoder, extractor))
    step = math.prod(config.conv_stride)
    if _SAMPLES_PER_FRAME % step:
        raise SpeechError(
            f"speech source {source!r} gives a vector every {step} samples; a video frame's {_SAMPLES_PER_FRAME} must "
            "be a multiple of that"
        )
    return SpeechEncoder(source, step, config.hidden_size, _convolutional(model, extractor, step))


def _whisper(encoder: Any, extractor: Any) -> Encode:
    """Whisper takes exactly `max_source_positions` steps (30 s): shorter sound is padded, longer cut and blended."""
    piece = encoder.config.max_source_positions
    overlap = min(piece // 2, _steps(OVERLAP_SECONDS, _WHISPER_STEP))

    @torch.inference_mode()
    def encode(sound: np.ndarray, before: int, steps: int) -> np.ndarray:
        length = max(steps, piece)
        # Vector i is centred on sample 320i: half a step more of silence would put it late, so half a step is left out.
        lead = before * _WHISPER_STEP - _WHISPER_STEP // 2
        padded = np.pad(sound, (lead, length * _WHISPER_STEP - lead - len(sound)))
        # One spectrogram over everything: its floor is relative to the loudest moment, of the whole clip.
        mel = extractor(padded, sampling_rate=SAMPLE_RATE, padding="longest", truncation=False, return_tensors="pt")
        spectra = mel.input_features.float()

        def run(begin: int, end: int) -> torch.Tensor:
            return encoder(spectra[:, :, 2 * begin : 2 * end]).last_hidden_state[0]

        return blended(run, length, piece, overlap)[:steps].numpy()

    return encode


def _convolutional(model: Any, extractor: Any, step: int) -> Encode:
    """wav2vec2 and its kin: a stack of convolutions over the sound itself, without padding, then a transformer."""
    field = receptive_field(model.config.conv_kernel, model.config.conv_stride)
    margin = field - step

    @torch.inference_mode()
    def encode(sound: np.ndarray, before: int, steps: int) -> np.ndarray:
        # Level and offset are those of the sound alone, so silence is added after they are taken out.
        values = extractor(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values[0].float()
        # Half the surplus of the receptive field on each side: vector i is centred on its own step.
        lead = before * step + margin // 2
        padded = torch.nn.functional.pad(values, (lead, steps * step + margin - lead - len(values)))

        def run(begin: int, end: int) -> torch.Tensor:
            return model(padded[None, begin * step : end * step + margin]).last_hidden_state[0]

        return blended(run, steps, _steps(PIECE_SECONDS, step), _steps(OVERLAP_SECONDS, step)).numpy()

    return encode


def receptive_field(kernels: list[int], strides: list[int]) -> int:
    """Samples that one output of a stack of convolutions sees."""
    field, jump = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * jump
        jump *= stride
    return field


def blended(run: Callable[[int, int], torch.Tensor], steps: int, piece: int, overlap: int) -> torch.Tensor:
    """`run(begin, end)` -> [end - begin, D] over pieces of `piece` steps, joined to [steps, D].

    Neighbours share at least `overlap` steps, over which one fades into the other. A single piece is taken as it is.
    """
    if steps <= piece:
        return run(0, steps)
    begins = [*range(0, steps - piece, piece - overlap), steps - piece]
    ramp = torch.arange(1, piece + 1, dtype=torch.float32)
    weight = torch.minimum(ramp, ramp.flip(0)).clamp(max=overlap)[:, None]
    weights = torch.zeros(steps, 1)
    for begin in begins:
        weights[begin : begin + piece] += weight
    joined: torch.Tensor | None = None
    for begin in begins:
        part = run(begin, begin + piece)
        joined = part.new_zeros(steps, part.shape[1]) if joined is None else joined
        joined[begin : begin + piece] += part * weight / weights[begin : begin + piece]
    assert joined is not None
    return joined


def _steps(seconds: int, step: int) -> int:
    return seconds * SAMPLE_RATE // step


_WANTED = 'give "log-mel", a folder written by save_pretrained, or a hub id'


def _transformers(source: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SpeechError(f"speech source {source!r} needs transformers ({error}): pip install transformers") from error
    return transformers


def _loaded(source: str, load: Callable[[], Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SpeechError(f"speech source {source!r} cannot be loaded ({reason}); {_WANTED}") from error


def _extractor(transformers: Any, source: str, config: Any) -> Any:
    """The model's own preparation of sound; the usual one of its type in a folder where only the model was saved."""
    names = [Path(source) / name for name in ("preprocessor_config.json", "processor_config.json")]
    if Path(source).is_dir() and not any(name.is_file() for name in names):
        if config.model_type == "whisper":
            return transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        return transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    return _loaded(source, lambda: transformers.AutoFeatureExtractor.from_pretrained(source))
