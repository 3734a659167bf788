"""What a pretrained speech model of transformers hears: windows of its last hidden layer, one a video frame.

Whisper, wav2vec2, HuBERT and WavLM give a vector every 20 ms. The sound is shifted by less than that, so that each
vector stands for its own 320 samples and a window of 22 of them lies exactly around the middle of its frame. Long
sound goes through in pieces that overlap and are blended, so memory is bounded and no seam forms.

Whisper may also be a folder in CTranslate2's format, as faster-whisper's users have it; the library ctranslate2 runs
it.

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

WINDOW_FRAMES = 11
"""A window is as long as so many video frames: from 220 ms before the middle of its own to 220 ms after. Regressing lip
aperture on Whisper-tiny.en (seven GRID speakers, 90 s), 200 ms in all gave a correlation of 0.78 on their new clips and
0.80 on eight other speakers where somebody speaks, and 440 ms 0.82 and 0.82; log-mel 0.68 and 0.71."""

PIECE_SECONDS = 20
"""wav2vec2 and its kin take any length; attention over this much keeps memory below a gigabyte."""

OVERLAP_SECONDS = 2

_CONVOLUTIONAL = ("wav2vec2", "hubert", "wavlm")
_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_WHISPER_STEP = 320
_CONVERTED_STEPS = 1500  # CTranslate2's format does not say; every published Whisper takes 30 s


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

    A folder with a `model.bin` is a Whisper in CTranslate2's format. Raises `SpeechError` for what is no such model, is
    of another type, lacks weights, or when transformers or ctranslate2 is missing.
    """
    transformers = _transformers(source)
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise SpeechError(f"speech source {source!r} is no folder; {_WANTED}")
    if (Path(source) / "model.bin").is_file():
        return _converted_whisper(source, transformers)
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
        encoder = model.encoder

        def hidden(spectra: torch.Tensor) -> torch.Tensor:
            return encoder(spectra).last_hidden_state

        return SpeechEncoder(
            source, _WHISPER_STEP, config.d_model, _whisper(hidden, config.max_source_positions, extractor)
        )
    step = math.prod(config.conv_stride)
    if _SAMPLES_PER_FRAME % step:
        raise SpeechError(
            f"speech source {source!r} gives a vector every {step} samples; a video frame's {_SAMPLES_PER_FRAME} must "
            "be a multiple of that"
        )
    return SpeechEncoder(source, step, config.hidden_size, _convolutional(model, extractor, step))


def _converted_whisper(source: str, transformers: Any) -> SpeechEncoder:
    """Whisper's encoder out of CTranslate2's format, computed in float32 on one thread whatever it is stored in."""
    try:
        import ctranslate2
    except ImportError as error:
        raise SpeechError(
            f"speech source {source!r} is in CTranslate2's format ({error}): pip install 'fedtalk-ray[ctranslate2]'"
        ) from error
    try:
        model = ctranslate2.models.Whisper(source, device="cpu", compute_type="float32", intra_threads=1)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SpeechError(f"speech source {source!r} cannot be loaded as CTranslate2's Whisper ({reason})") from error
    extractor = transformers.WhisperFeatureExtractor(feature_size=model.n_mels)

    def hidden(spectra: torch.Tensor) -> torch.Tensor:
        features = ctranslate2.StorageView.from_array(np.ascontiguousarray(spectra.numpy()))
        return torch.from_numpy(np.array(model.encode(features)))

    size = hidden(torch.zeros(1, model.n_mels, 2)).shape[-1]
    return SpeechEncoder(source, _WHISPER_STEP, size, _whisper(hidden, _CONVERTED_STEPS, extractor))


def _whisper(hidden: Callable[[torch.Tensor], torch.Tensor], piece: int, extractor: Any) -> Encode:
    """Whisper takes exactly `piece` steps (30 s): shorter sound is padded, longer cut and blended.

    hidden: spectra [1, mel, 2 * piece] to the encoder's last layer [1, piece, hidden].
    """
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
            return hidden(spectra[:, :, 2 * begin : 2 * end])[0]

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


_WANTED = 'give "log-mel", a folder written by save_pretrained or by ctranslate2, or a hub id'


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
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise SpeechError(f"speech source {source!r} cannot be loaded ({reason}); {_WANTED}") from error


def _extractor(transformers: Any, source: str, config: Any) -> Any:
    """The model's own preparation of sound; the usual one of its type in a folder where only the model was saved."""
    names = [Path(source) / name for name in ("preprocessor_config.json", "processor_config.json")]
    if Path(source).is_dir() and not any(name.is_file() for name in names):
        if config.model_type == "whisper":
            return transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        return transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    return _loaded(source, lambda: transformers.AutoFeatureExtractor.from_pretrained(source))
