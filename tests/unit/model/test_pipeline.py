"""Generation: windows that cover every frame, guidance, seeds, and a pipeline on disk in diffusers' own format."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedtalk_ray.errors import RunError
from fedtalk_ray.media.lips import LIP_MOTION, aperture_of
from fedtalk_ray.media.speech import MEL_BINS, WINDOW_HOPS
from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.embedded import EMBEDDED, find_model
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import (
    TalkingHeadPipeline,
    fingerprint,
    load_pipeline,
    make_critic,
    new_pipeline,
    sample_clip,
)
from fedtalk_ray.model.schedule import make_scheduler

LENGTHS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 17]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A reference and as many frames of speech."""
    reference = torch.randn(4, 8, 8, generator=seeded(seed))
    return reference, torch.randn(frames, WINDOW_HOPS, MEL_BINS, generator=seeded(seed + 1))


@pytest.mark.parametrize("frames", LENGTHS)
def test_every_frame_of_a_clip_gets_its_own_sound(make_denoiser, frames: int) -> None:
    """Untrained, the network's x0 is the motion of the frame's sound: the clip is known without sampling anything.

    Guidance g is silence + g * (sound - silence).
    """
    denoiser, scheduler = make_denoiser(awake=False), make_scheduler("sample")
    denoiser.residual_std.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    reference, speech = clip(frames)
    with torch.no_grad():
        heard = denoiser.speech_motion(speech[None])
        silence = denoiser.speech_map(denoiser.silence.expand(1, frames, -1))
    for guidance in (1.0, 2.5):
        residual = silence + guidance * (heard - silence)
        expected = denoiser.from_residual(residual, reference[None])[0]
        made = sample_clip(denoiser, scheduler, reference, speech, 3, guidance, seeded())
        assert made.shape == (frames, 4, 8, 8) and made.dtype == torch.float32
        assert torch.allclose(made, expected, atol=1e-4)


class Position(nn.Module):
    """Predicts for every frame its place in the window that it was given."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def get_base_model(self) -> nn.Module:
        return self.base

    def forward(self, sample: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.arange(sample.shape[1], dtype=torch.float32)[None, :, None, None, None].expand_as(sample)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (3, [0, 1, 2]),
        (4, [0, 1, 2, 3]),
        # Windows begin at 0 and 1; weights are 1 2 2 1. Frame 1: (2*1 + 1*0) / 3, frame 2: (2*2 + 2*1) / 4, ...
        (5, [0, 2 / 3, 6 / 4, 7 / 3, 3]),
        # Windows begin at 0 and 2.
        (6, [0, 1, 4 / 3, 5 / 3, 2, 3]),
        # Windows begin at 0, 2 and 3.
        (7, [0, 1, 4 / 3, (3 + 2 + 0) / 4, (4 + 2) / 4, (3 + 4) / 3, 3]),
    ],
)
def test_overlapping_windows_are_blended_by_hand(make_denoiser, frames: int, expected: list[float]) -> None:
    denoiser = make_denoiser(awake=False)
    reference, speech = clip(frames)
    made = sample_clip(Position(denoiser), make_scheduler("sample"), reference, speech, 2, 1.0, seeded())
    assert (made - reference)[:, 0, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "epsilon"])
def test_a_seed_decides_and_torchs_own_generator_is_left_alone(make_denoiser, kind: str) -> None:
    denoiser, scheduler = make_denoiser(prediction_type=kind), make_scheduler(kind)
    reference, speech = clip(9)
    state = torch.get_rng_state()
    first, again, other = (
        sample_clip(denoiser, scheduler, reference, speech, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3 and torch.isfinite(first).all()


def test_how_many_windows_go_at_once_does_not_matter(make_denoiser) -> None:
    denoiser, scheduler = make_denoiser(), make_scheduler("sample")
    reference, speech = clip(13)
    one, many = (sample_clip(denoiser, scheduler, reference, speech, generator=seeded(), batch=b) for b in (1, 8))
    assert torch.allclose(one, many, atol=1e-4)


def sound(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def face(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(("samples", "frames"), [(640, 2), (1281, 3), (6400, 10), (6401, 11), (16_000, 25)])
def test_a_frame_for_every_40_ms_begun(make_pipeline, samples: int, frames: int) -> None:
    output = make_pipeline()(face(), sound(samples), num_inference_steps=1, generator=seeded())
    assert output.frames.shape == (frames, 32, 32, 3) and output.frames.dtype == np.uint8
    assert output.latents.shape == (frames, 4, 8, 8)


def test_face_sound_and_seed_each_change_the_clip(make_pipeline) -> None:
    pipeline = make_pipeline()
    variants = [
        pipeline(face(a), sound(3200, b), generator=seeded(c)).latents
        for a, b, c in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert torch.equal(variants[0], pipeline(face(0), sound(3200, 0), generator=seeded(0)).latents)
    for variant in variants[1:]:
        assert (variant - variants[0]).abs().max() > 1e-3


def test_at_rest_a_face_is_what_the_autoencoder_keeps_or_with_all_its_detail_itself(make_pipeline) -> None:
    pipeline = make_pipeline()
    side = pipeline.frame_size()
    face = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels = torch.from_numpy(face).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latent = pipeline.autoencoder.encode(pixels).latents
        kept = pipeline.autoencoder.decode(latent).sample[0].permute(1, 2, 0)
    expected = ((kept + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(pipeline.at_rest(face) - expected).max() <= 1
    assert np.abs(expected - face).max() > 3
    pipeline.denoiser.detail.fill_(1)
    assert np.abs(pipeline.at_rest(face).astype(int) - face).max() <= 1


def test_the_frame_size_is_read_from_the_parts(make_pipeline) -> None:
    assert make_pipeline().frame_size() == 32


@pytest.mark.parametrize("identity", [True, False])
def test_a_pipeline_saved_and_loaded_by_diffusers_alone_makes_the_same_frames(
    make_pipeline, tmp_path: Path, identity: bool
) -> None:
    pipeline = make_pipeline(identity=identity, prediction_type="v_prediction")
    before = pipeline(face(), sound(6400), generator=seeded())
    pipeline.save_pretrained(str(tmp_path))
    assert set(json.loads((tmp_path / "model_index.json").read_text())) >= {"autoencoder", "denoiser", "scheduler"}
    loaded = TalkingHeadPipeline.from_pretrained(str(tmp_path))
    after = loaded(face(), sound(6400), generator=seeded())
    assert torch.equal(after.latents, before.latents) and (after.frames == before.frames).all()
    assert isinstance(loaded.identity_encoder, IdentityEncoder) == identity
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert fingerprint(loaded) == fingerprint(pipeline)


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        load_pipeline(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path} holds no pipeline (no model_index.json); `fedtalk pretrain --out {tmp_path}` writes one"
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: cut(folder / "model_index.json"), id="cut-index"),
        pytest.param(lambda folder: cut(folder / "denoiser/diffusion_pytorch_model.safetensors"), id="cut-weights"),
        pytest.param(lambda folder: (folder / "denoiser/diffusion_pytorch_model.safetensors").unlink(), id="lost"),
        pytest.param(lambda folder: cut(folder / "denoiser/config.json"), id="cut-config"),
    ],
)
def test_a_damaged_pipeline_is_one_clear_line(make_pipeline, tmp_path: Path, damage) -> None:
    make_pipeline().save_pretrained(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(RunError, match=str(tmp_path)) as caught:
        load_pipeline(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_critic_needs_a_trained_identity_encoder(make_pipeline) -> None:
    assert make_critic(make_pipeline(identity=False)) is None
    assert make_critic(make_pipeline()) is not None


def test_a_new_pipeline_fits_its_autoencoder_and_follows_the_seed() -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(new_pipeline("patch", 16, 16))
    assert made[0].frame_size() == 64 and made[0].identity_encoder is None
    weights = [pipeline.denoiser.conv_in.weight for pipeline in made]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert made[0].scheduler.config.prediction_type == made[0].denoiser.config.prediction_type


def test_sound_features_and_identity_are_those_the_denoiser_was_made_for(make_denoiser, tmp_path: Path) -> None:
    """A small wav2vec2 on disk, and dlib's face vector: generated frames follow both."""
    import transformers

    torch.manual_seed(0)
    settings = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    settings |= {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 1, "num_conv_pos_embedding_groups": 2}
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**settings)).save_pretrained(tmp_path)
    made_for = {"speech": str(tmp_path), "speech_hops": 22, "mel_bins": 24, "identity_dimensions": 128}
    denoiser = make_denoiser(identity="dlib", **made_for)
    autoencoder = PatchAutoencoder(luma_coefficients=2, chroma_coefficients=1, decoder_width=8).eval()
    pipeline = TalkingHeadPipeline(autoencoder, denoiser, make_scheduler("sample"))
    rng = np.random.default_rng(0)
    face, audio = rng.integers(0, 255, (32, 32, 3), np.uint8), rng.normal(0, 0.1, 3200).astype(np.float32)
    latents = pipeline(face, audio, generator=seeded()).latents
    louder = pipeline(face, audio * np.linspace(0, 1, 3200, dtype=np.float32), generator=seeded()).latents
    assert latents.shape == (5, 4, 8, 8) and (latents - louder).abs().max() > 1e-3
    with torch.no_grad():
        pipeline.denoiser.identity_embedding.weight.zero_()
    assert (pipeline(face, audio, generator=seeded()).latents - latents).abs().max() > 1e-3
    older = make_denoiser(**made_for | {"speech_hops": 10, "identity_dimensions": 0})
    with pytest.raises(RunError, match=r"hears windows of 10 x 24 of '.*', and they are 22 x 24: .*; train it anew$"):
        TalkingHeadPipeline(autoencoder, older, make_scheduler("sample"))(face, audio, generator=seeded())


def test_the_embedded_model_is_found_by_name_unless_a_folder_of_that_name_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (find_model(EMBEDDED) / "model_index.json").is_file()
    (tmp_path / EMBEDDED).mkdir()
    assert find_model(EMBEDDED) == Path(EMBEDDED) and find_model("runs/mine") == Path("runs/mine")


def test_the_embedded_model_is_complete_small_and_says_how_it_was_made() -> None:
    pipeline = load_pipeline(EMBEDDED)
    assert pipeline.frame_size() == 144 and pipeline.identity_encoder is not None and pipeline.sync_network is not None
    folder = find_model(EMBEDDED)
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < 30e6
    card = (folder / "README.md").read_text()
    for needed in ("corpus `synthetic`", "--seed", "minutes in all", "dB on held-out frames"):
        assert needed in card


def test_what_is_no_folder_and_no_hub_id_that_can_be_had_is_one_line() -> None:
    with pytest.raises(RunError, match="neither a folder with a pipeline nor a hub id") as caught:
        load_pipeline("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_what_a_face_shows_of_its_own_lips_is_told_unless_more_is_known(make_pipeline, monkeypatch) -> None:
    """A picture says how far its lips are apart, and no more."""
    pipeline = make_pipeline(reference_lips=True)
    shown = np.random.default_rng(3).uniform(0.2, 0.8, (1, 68, 2)).astype(np.float32)
    monkeypatch.setattr("fedtalk_ray.model.pipeline.face_landmarks", lambda frames: shown)

    def made(**more: Any) -> np.ndarray:
        return pipeline(face(), sound(4000), generator=seeded(), **more).frames

    def streamed(**more: Any) -> np.ndarray:
        return np.concatenate(list(pipeline.stream(face(), sound(4000), generator=seeded(), **more)))

    aperture = np.full(LIP_MOTION, np.nan, np.float32)
    aperture[0] = aperture_of(shown)[0]
    unknown = np.full(LIP_MOTION, np.nan, np.float32)
    assert (made() == made(reference_lips=unknown)).all(), "a network without lip axes is told nothing"
    torch.nn.init.normal_(pipeline.denoiser.lip_axes, std=30, generator=seeded())
    assert (made() == made(reference_lips=aperture)).all()
    more = np.random.default_rng(4).normal(0, 0.02, LIP_MOTION).astype(np.float32)
    different = [made(), made(reference_lips=unknown), made(reference_lips=more)]
    assert all((one != other).any() for one, other in combinations(different, 2))
    for known in (None, unknown, more):
        assert (streamed(reference_lips=known) == made(reference_lips=known)).all()
