"""MuseTalk's sound: for every frame ten steps of all hidden states of Whisper-tiny's encoder, fifty tokens.

Steps are 20 ms: frame i hears [2i - 4, 2i + 6), from 80 ms before its start to 120 ms after. Before and after the
sound there are zeros. Longer sound is heard in pieces of 30 s without overlap. All as MuseTalk's `get_whisper_chunk`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedtalk_ray.media.speech_encoder import SpeechError
from fedtalk_ray.media.video import FPS, SAMPLE_RATE

PREFIX = "musetalk:"
"""What a source of sound features begins with, before the folder or hub id of a Whisper-tiny."""

HOPS, BEFORE = 10, 4
"""Steps that a frame hears, and those of them before its own."""
LAYERS, TOKEN_WIDTH = 5, 384
"""Hidden states of Whisper-tiny: what goes into its four layers and comes out, the last normalised; their width."""

_STEP = 320
_PIECE = 30 * SAMPLE_RATE
_PER_FRAME = SAMPLE_RATE // FPS // _STEP


class WhisperStates:
    """Windows float32 [frames, 10, 5 * 384]: `media.speech.SpeechFeatures`. A token is one state of one step; in order
    they are step after step, and of each step the states from the first layer on."""

    shape = (HOPS, LAYERS * TOKEN_WIDTH)

    def __init__(self, source: str) -> None:
        """source: `PREFIX` and a folder or hub id. Raises `SpeechError` for what is no Whisper-tiny."""
        self.source = source
        self._extract, self._encoder = _whisper_tiny(source.removeprefix(PREFIX))

    def windows(self, audio: np.ndarray, frames: int) -> np.ndarray:
        heard = len(audio) // _STEP
        padded = np.zeros((max((frames - 1) * _PER_FRAME + HOPS, BEFORE + heard), self.shape[1]), np.float32)
        self._fill(padded[BEFORE : BEFORE + heard], audio)
        step, number = padded.strides
        # A view that overlaps itself, five times smaller than it looks.
        shape = (frames, HOPS, LAYERS * TOKEN_WIDTH)
        return np.lib.stride_tricks.as_strided(padded, shape, (_PER_FRAME * step, step, number))

    @torch.inference_mode()
    def _fill(self, states: np.ndarray, audio: np.ndarray) -> None:
        """Writes the sound's own steps into [steps, 5 * 384]."""
        for begin in range(0, len(audio), _PIECE):
            piece = np.asarray(audio[begin : begin + _PIECE], np.float32)
            mel = self._extract(piece, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            found = self._encoder(mel.float(), output_hidden_states=True).hidden_states
            own = states[begin // _STEP : (begin + _PIECE) // _STEP]
            own[:] = torch.cat(found, dim=-1)[0, : len(own)].numpy()


def _whisper_tiny(where: str) -> tuple[Any, Any]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        if Path(where).is_absolute() and not Path(where).is_dir():
            raise SpeechError(f"speech source {where!r} is no folder; MuseTalk needs openai/whisper-tiny there")
        config = transformers.AutoConfig.from_pretrained(where)
        layers, width = getattr(config, "encoder_layers", 0), getattr(config, "d_model", 0)
        if config.model_type != "whisper" or (layers + 1, width) != (LAYERS, TOKEN_WIDTH):
            raise SpeechError(
                f"speech source {where!r} is a {config.model_type} of {layers} layers and width {width}; MuseTalk "
                f"hears by Whisper-tiny, {LAYERS - 1} layers and width {TOKEN_WIDTH}"
            )
        loaded: Any = transformers.WhisperModel.from_pretrained(where, output_loading_info=True, dtype=torch.float32)
        model, report = loaded
        lacking = sorted(name for name in report["missing_keys"] if ".encoder." in f".{name}")
        if lacking:
            raise SpeechError(f"speech source {where!r} lacks weights of Whisper's encoder: {lacking[0]}")
        extract = transformers.AutoFeatureExtractor.from_pretrained(where)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SpeechError(f"speech source {where!r} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    return extract, model.encoder.requires_grad_(False).eval()
