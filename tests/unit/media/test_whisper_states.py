"""MuseTalk's tokens against Whisper's own hidden states, worked out from the published description."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fedtalk_ray.media.speech import load_speech_features
from fedtalk_ray.media.speech_encoder import SpeechError
from tests.musetalk_folder import write_musetalk

RATE = 16_000


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_musetalk(tmp_path_factory.mktemp("musetalk") / "models") / "whisper"


def states(whisper: Path, sound: np.ndarray) -> np.ndarray:
    """[steps, 5, 384] of at most 30 s: embeddings, three layers, and the last after its normalisation."""
    model = transformers.WhisperModel.from_pretrained(whisper).eval()
    extract = transformers.WhisperFeatureExtractor.from_pretrained(whisper)
    mel = extract(sound, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        found = model.encoder(mel, output_hidden_states=True)
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    return torch.stack(found.hidden_states, dim=2)[0, : len(sound) // 320].numpy()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def test_a_frame_hears_ten_steps_of_five_states_and_zeros_beyond_the_ends(whisper: Path) -> None:
    sound = noise(1.0)
    features = load_speech_features(f"musetalk:{whisper}")
    windows = features.windows(sound, 25)
    assert features.shape == (10, 1920) and windows.shape == (25, 10, 1920) and windows.dtype == np.float32
    none = features.windows(sound[:0], 20)
    assert none.shape == (20, 10, 1920) and not none[3:].any()
    own = states(whisper, sound)
    assert len(own) == 50
    for frame in (0, 1, 7, 23, 24):
        for hop, step in enumerate(range(2 * frame - 4, 2 * frame + 6)):
            expected = own[step] if 0 <= step < 50 else np.zeros((5, 384))
            np.testing.assert_allclose(windows[frame, hop].reshape(5, 384), expected, atol=1e-5)
    # As fifty tokens: token 5 k + l is state l of step k.
    tokens = windows[7].reshape(50, 384)
    np.testing.assert_allclose(tokens[5 * 3 + 2], own[2 * 7 - 4 + 3, 2], atol=1e-5)


def test_long_sound_is_heard_in_pieces_of_thirty_seconds(whisper: Path) -> None:
    sound = noise(31.0)
    windows = load_speech_features(f"musetalk:{whisper}").windows(sound, 775)
    first, second = states(whisper, sound[: 30 * RATE]), states(whisper, sound[30 * RATE :])
    # Frame 750 begins with the second piece: four steps of the first before it.
    np.testing.assert_allclose(windows[750, :4].reshape(4, 5, 384), first[-4:], atol=1e-5)
    np.testing.assert_allclose(windows[750, 4:].reshape(6, 5, 384), second[:6], atol=1e-5)


def test_another_whisper_is_refused_in_one_line(tmp_path: Path) -> None:
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3, "vocab_size": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    small = transformers.WhisperConfig(d_model=64, encoder_layers=2, decoder_layers=1, **heads, **tokens)
    transformers.WhisperModel(small).save_pretrained(tmp_path / "small")
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(tmp_path / "small")
    with pytest.raises(SpeechError, match=r"small' is a whisper of 2 layers and width 64; .* 4 layers and width 384$"):
        load_speech_features(f"musetalk:{tmp_path / 'small'}")
    with pytest.raises(SpeechError, match=r"^speech source '/no/such' is no folder; MuseTalk needs openai/w"):
        load_speech_features("musetalk:/no/such")
