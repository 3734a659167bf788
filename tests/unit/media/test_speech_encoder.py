"""Pretrained speech models: windows centred on their frames, any length, no seam, one clear line for what is no model.

The models are small and random, but they are the libraries' own classes, saved and loaded as users' are.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedtalk_ray.errors import UserError
from fedtalk_ray.media.speech import load_speech_features
from fedtalk_ray.media.speech_encoder import SpeechError, blended

CONVOLUTIONAL = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": [32] * 7, "num_conv_pos_embeddings": 1, "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind. Whisper's positions are zeroed, so that it too knows sound only by its neighbours."""
    import transformers as t

    torch.manual_seed(0)
    whisper = t.WhisperModel(
        t.WhisperConfig(
            d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=60, pad_token_id=0, bos_token_id=0,
            eos_token_id=0, decoder_start_token_id=0, init_std=0.3,
        )
    )  # fmt: skip
    whisper.encoder.embed_positions.weight.data.zero_()
    made = {
        "whisper": whisper,
        "wav2vec2": t.Wav2Vec2Model(t.Wav2Vec2Config(**CONVOLUTIONAL)),
        "hubert": t.HubertModel(t.HubertConfig(**CONVOLUTIONAL)),
        "wavlm": t.WavLMModel(t.WavLMConfig(**CONVOLUTIONAL)),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        model.save_pretrained(root / name)
    t.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(root / "wav2vec2")
    return {name: root / name for name in made}


def burst(seconds: float, begin: float, length: float) -> np.ndarray:
    """Noise of 0.3 for `length` seconds from `begin`, silence around it."""
    audio = np.zeros(round(seconds * 16_000), np.float32)
    first, last = round(begin * 16_000), round((begin + length) * 16_000)
    audio[first:last] = np.random.default_rng(0).normal(0, 0.3, last - first)
    return audio


def test_whisper_hears_as_its_own_encoder_does(models: dict[str, Path]) -> None:
    """The library's own way, on sound that begins 190 ms late: its vector j is centred on 20 j ms."""
    import transformers as t

    audio = burst(3.0, 0.0, 3.0)
    extractor = t.WhisperFeatureExtractor()
    mel = extractor(np.pad(audio, (3040, 0)), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        hidden = t.WhisperModel.from_pretrained(models["whisper"]).encoder(mel).last_hidden_state[0].numpy()
    windows = load_speech_features(str(models["whisper"])).windows(audio, 75)
    for frame in (0, 1, 40, 74):
        assert windows[frame] == pytest.approx(hidden[2 * frame : 2 * frame + 22], abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "normalised"), [("wav2vec2", True), ("wav2vec2", False), ("hubert", False), ("wavlm", True)]
)
def test_wav2vec2_and_its_kin_hear_as_the_model_does(models, tmp_path: Path, kind: str, normalised: bool) -> None:
    """200 ms of silence and 40 samples more before the sound (a vector sees 400 samples and moves on by 320).

    Whether the level is taken out is the model's own saying, in preprocessor_config.json.
    """
    import transformers as t

    model = t.AutoModel.from_pretrained(models[kind]).eval()
    model.save_pretrained(tmp_path)
    t.Wav2Vec2FeatureExtractor(do_normalize=normalised).save_pretrained(tmp_path)
    audio = burst(1.0, 0.0, 1.0) + 0.05
    level = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7) if normalised else audio
    with torch.no_grad():
        hidden = model(torch.from_numpy(np.pad(level, (3240, 3240)))[None]).last_hidden_state[0].numpy()
    windows = load_speech_features(str(tmp_path)).windows(audio, 25)
    assert len(hidden) == 70
    for frame in (0, 12, 24):
        assert windows[frame] == pytest.approx(hidden[2 * frame : 2 * frame + 22], abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "samples", "frames"),
    [("whisper", 0, 1), ("wav2vec2", 1, 2), ("whisper", 1600, 0), ("wav2vec2", 512_000, 800)],
)
def test_sound_of_any_length_gives_a_window_a_frame(models, kind: str, samples: int, frames: int) -> None:
    features = load_speech_features(str(models[kind]))
    windows = features.windows(burst(samples / 16_000, 0.0, samples / 16_000), frames)
    assert windows.shape == (frames, *features.shape) and windows.dtype == np.float32 and np.isfinite(windows).all()
    # Windows of neighbouring frames share 20 of their 22 steps.
    assert (windows[1:, :20] == windows[:-1, 2:]).all()


def test_where_pieces_differ_one_fades_into_the_other() -> None:
    """Pieces say 0 and 1. Ten steps of ten and four shared: weights 4 3 2 1 against 1 2 3 4, so 1/5 2/5 3/5 4/5."""
    joined = blended(lambda begin, end: torch.full((end - begin, 1), float(begin > 0)), 16, 10, 4)
    assert joined[:, 0].tolist() == pytest.approx([0] * 6 + [0.2, 0.4, 0.6, 0.8] + [1] * 6)
    joined = blended(lambda begin, end: torch.arange(begin, end)[:, None] + 1.0, 37, 10, 4)
    assert joined[:, 0].tolist() == pytest.approx(range(1, 38))


def refusal(source: object) -> str:
    with pytest.raises(SpeechError) as caught:
        load_speech_features(str(source))
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_speech_model_and_another_sample_rate_or_step_are_named(models, tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith(f"speech source '{tmp_path / 'none'}' is no folder; give \"log-mel\"")
    assert f"speech source '{tmp_path}' cannot be loaded (" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "is a model of type 'bert'; usable: whisper, wav2vec2, hubert, wavlm" in refusal(tmp_path)
    # Weights that do not fit are not replaced by random ones.
    weights = load_file(models["wav2vec2"] / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "feature_extractor.conv_layers.2" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((models["wav2vec2"] / "config.json").read_text())
    assert "lacks weights of its wav2vec2: feature_extractor.conv_layers.2." in refusal(tmp_path)
    import transformers as t

    t.Wav2Vec2Model.from_pretrained(models["wav2vec2"]).save_pretrained(tmp_path)
    t.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    assert "hears 8000 samples a second; 16000 is needed" in refusal(tmp_path)
    t.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"conv_stride": [3, 2, 2, 2, 2, 2, 2]}))
    assert "gives a vector every 192 samples; a video frame's 640 must be a multiple" in refusal(tmp_path)
