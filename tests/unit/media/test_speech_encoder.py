"""Pretrained speech models: windows centred on their frames, any length, no seam, one clear line for what is no model.

The models are small and random, but they are the libraries' own classes, saved and loaded as users' are.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import UserError
from fedtalk_ray.media.speech import load_speech_features, speech_windows
from fedtalk_ray.media.speech_encoder import SpeechError, blended, receptive_field

CONVOLUTIONAL = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": [32] * 7, "num_conv_pos_embeddings": 1, "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip
KINDS = ("whisper", "wav2vec2", "hubert", "wavlm")


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


@pytest.mark.parametrize("kind", KINDS)
def test_frame_k_hears_220_ms_before_and_after_its_own_middle(models: dict[str, Path], kind: str) -> None:
    """What a click in the middle of frame 20 moves lies around step 10.5 of its window, 12.5 of the one before."""
    features = load_speech_features(str(models[kind]))
    assert features.source == str(models[kind]) and features.shape == (22, 16 if kind == "whisper" else 24)
    audio = np.full(40 * 640, 1e-3, np.float32) * np.resize([1, -1], 40 * 640)
    clicked = audio.copy()
    clicked[20 * 640 + 316 : 20 * 640 + 324] += 0.02
    moved = np.abs(features.windows(clicked, 40) - features.windows(audio, 40)).sum(axis=2)
    moved = np.maximum(0, moved - 2 * np.median(moved))  # attention carries a little of the click to everywhere
    middles = [moved[frame] @ np.arange(22) / moved[frame].sum() for frame in (19, 20, 21)]
    assert middles == pytest.approx([12.5, 10.5, 8.5], abs=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_that_comes_40_ms_later_is_heard_a_frame_later(models: dict[str, Path], kind: str) -> None:
    features = load_speech_features(str(models[kind]))
    early, late = (features.windows(burst(2.0, begin, 0.4), 50) for begin in (0.8, 0.84))
    spread = early[10:40].std()
    assert np.abs(late[11:40] - early[10:39]).max() < 0.02 * spread
    assert np.abs(late[10:40] - early[10:40]).max() > 0.5 * spread


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


@pytest.fixture(scope="session")
def converted(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same Whisper, written by CTranslate2's own converter; its words do not matter to the encoder."""
    import ctranslate2
    import transformers as t

    loader = ctranslate2.converters.transformers.WhisperLoader()
    spec = loader.get_model_spec(t.WhisperForConditionalGeneration.from_pretrained(models["whisper"]))
    spec.register_vocabulary([f"word{index}" for index in range(60)])
    spec.validate()
    folder = tmp_path_factory.mktemp("converted") / "whisper"
    folder.mkdir()
    spec.save(str(folder))
    return folder


@pytest.mark.parametrize("seconds", [3.0, 33.0])
def test_whisper_hears_the_same_in_ctranslate2s_format(
    models: dict[str, Path], converted: Path, seconds: float
) -> None:
    audio = burst(seconds, 0.2, seconds - 0.5)
    here, there = (load_speech_features(str(folder)) for folder in (models["whisper"], converted))
    assert here.shape == there.shape
    frames = round(25 * seconds)
    assert there.windows(audio, frames) == pytest.approx(here.windows(audio, frames), abs=1e-4)


def test_a_damaged_ctranslate2_folder_is_one_line(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes((converted / "model.bin").read_bytes()[:1000])
    with pytest.raises(SpeechError, match=r"cannot be loaded as CTranslate2's Whisper") as caught:
        load_speech_features(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_ctranslate2_its_format_says_what_to_install(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)  # as if it were not installed
    with pytest.raises(SpeechError, match=r"CTranslate2's format .*: pip install 'fedtalk-ray\[ctranslate2\]'"):
        load_speech_features(str(converted))


@pytest.mark.parametrize("normalised", [True, False])
def test_wav2vec2_hears_as_the_model_does(models: dict[str, Path], tmp_path: Path, normalised: bool) -> None:
    """200 ms of silence and 40 samples more before the sound (a vector sees 400 samples and moves on by 320).

    Whether the level is taken out is the model's own saying, in preprocessor_config.json.
    """
    import transformers as t

    model = t.Wav2Vec2Model.from_pretrained(models["wav2vec2"]).eval()
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


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
@pytest.mark.parametrize(("samples", "frames"), [(0, 1), (1, 2), (1600, 3), (1600, 0), (65 * 16_000, 65 * 25)])
def test_sound_of_any_length_gives_a_window_a_frame(models, kind: str, samples: int, frames: int) -> None:
    features = load_speech_features(str(models[kind]))
    windows = features.windows(burst(samples / 16_000, 0.0, samples / 16_000), frames)
    assert windows.shape == (frames, *features.shape) and windows.dtype == np.float32 and np.isfinite(windows).all()
    # Windows of neighbouring frames share 20 of their 22 steps.
    assert (windows[1:, :20] == windows[:-1, 2:]).all()


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 400), piece=st.integers(8, 90), overlap=st.integers(1, 7))
def test_what_pieces_agree_on_survives_blending_and_no_piece_is_too_long(steps: int, piece: int, overlap: int) -> None:
    asked = []

    def run(begin: int, end: int) -> torch.Tensor:
        asked.append(end - begin)
        return torch.arange(begin, end)[:, None] * torch.tensor([[1.0, -2.0]])

    joined = blended(run, steps, piece, overlap)
    assert joined.numpy() == pytest.approx(np.arange(steps)[:, None] * np.array([1.0, -2.0]), rel=1e-5)
    assert set(asked) == {min(steps, piece)}


def test_where_pieces_differ_one_fades_into_the_other() -> None:
    """Pieces say 0 and 1. Ten steps of ten and four shared: weights 4 3 2 1 against 1 2 3 4, so 1/5 2/5 3/5 4/5."""
    joined = blended(lambda begin, end: torch.full((end - begin, 1), float(begin > 0)), 16, 10, 4)
    assert joined[:, 0].tolist() == pytest.approx([0] * 6 + [0.2, 0.4, 0.6, 0.8] + [1] * 6)


def test_receptive_field() -> None:
    assert receptive_field([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]) == 400, "25 ms, as wav2vec 2.0's paper says"
    assert receptive_field([3], [2]) == 3
    assert receptive_field([3, 3], [2, 1]) == 7


def test_log_mel_is_the_default() -> None:
    features = load_speech_features()
    audio = burst(1.0, 0.2, 0.3)
    assert (features.source, features.shape) == ("log-mel", (44, 40))
    assert (features.windows(audio, 25) == speech_windows(audio, 25)).all()


def refusal(source: object) -> str:
    with pytest.raises(SpeechError) as caught:
        load_speech_features(str(source))
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_speech_model_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith(f"speech source '{tmp_path / 'none'}' is no folder; give \"log-mel\"")
    assert f"speech source '{tmp_path}' cannot be loaded (" in refusal(tmp_path)
    assert "speech source 'no such model' cannot be loaded (" in refusal("no such model")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "is a model of type 'bert'; usable: whisper, wav2vec2, hubert, wavlm" in refusal(tmp_path)
    (tmp_path / "config.json").write_text((models["whisper"] / "config.json").read_text())
    assert "cannot be loaded (" in refusal(tmp_path), "a configuration without weights"
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded (" in refusal(tmp_path)


def test_weights_that_do_not_fit_are_not_replaced_by_random_ones(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(models["wav2vec2"] / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "feature_extractor.conv_layers.2" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((models["wav2vec2"] / "config.json").read_text())
    assert "lacks weights of its wav2vec2: feature_extractor.conv_layers.2." in refusal(tmp_path)


def test_another_sample_rate_or_step_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    import transformers as t

    t.Wav2Vec2Model.from_pretrained(models["wav2vec2"]).save_pretrained(tmp_path)
    t.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    assert "hears 8000 samples a second; 16000 is needed" in refusal(tmp_path)
    t.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"conv_stride": [3, 2, 2, 2, 2, 2, 2]}))
    assert "gives a vector every 192 samples; a video frame's 640 must be a multiple" in refusal(tmp_path)


def test_without_transformers_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    assert refusal("openai/whisper-tiny").endswith("pip install transformers")
