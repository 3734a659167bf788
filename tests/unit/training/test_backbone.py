"""Where a run starts: a pretrained pipeline that fits the shards, or a new one around the shards' autoencoder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, new_pipeline
from fedtalk_ray.shards.format import Manifest
from fedtalk_ray.training.backbone import build_pipeline, check_fits, start_of

SMALL: dict[str, Any] = {"widths": (16, 32), "window": 4}


@pytest.fixture(scope="module")
def manifest(make_shards, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_shards(tmp_path_factory.mktemp("backbone") / "shards", {"s1": [30, 30]})


@pytest.fixture(scope="module")
def lower(make_shards, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Of lower faces, whose latents can be bent."""
    clips = {"s1": [30] * 4, "s2": [30] * 4}
    return make_shards(tmp_path_factory.mktemp("lower") / "shards", clips, 48, encoder="lower-face")


def test_a_run_without_pretraining_starts_from_its_seed(manifest, tmp_path: Path) -> None:
    built = []
    for outside, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        built.append(build_pipeline(None, seed, manifest, **SMALL))
        assert torch.equal(torch.get_rng_state(), state)
    config = built[0].denoiser.config
    assert (config.latent_channels, config.latent_size) == (16, 8) and built[0].frame_size() == 32
    assert built[0].identity_encoder is None
    weights = [pipeline.denoiser.conv_in.weight for pipeline in built]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_pretrained_pipeline_is_loaded_and_must_fit_the_shards(manifest, tmp_path: Path) -> None:
    torch.manual_seed(5)
    pipeline = new_pipeline("patch", 16, 8, **SMALL)
    pipeline.save_pretrained(str(tmp_path / "fits"))
    loaded = build_pipeline(str(tmp_path / "fits"), 0, manifest)
    heard = build_pipeline(str(tmp_path / "fits"), 0, manifest, hears_anew="speech")
    for name, value in pipeline.denoiser.state_dict().items():
        assert torch.equal(loaded.denoiser.state_dict()[name], value), name
        assert torch.equal(heard.denoiser.state_dict()[name], value), name

    other = TalkingHeadPipeline(PatchAutoencoder(luma_coefficients=11), pipeline.denoiser, pipeline.scheduler)
    other.save_pretrained(str(tmp_path / "other"))
    with pytest.raises(
        ShardError, match=rf"shards were encoded by autoencoder 'patch' .*{tmp_path / 'other'}"
    ) as caught:
        build_pipeline(str(tmp_path / "other"), 0, manifest)
    assert "\n" not in str(caught.value)


def test_where_hearing_is_taught_a_pipeline_that_hears_otherwise_keeps_what_it_can_paint(manifest, tmp_path) -> None:
    torch.manual_seed(5)
    before = new_pipeline("patch", 16, 8, **SMALL, speech="models/whisper-tiny", speech_hops=22, mel_bins=384)
    before.save_pretrained(str(tmp_path / "before"))
    with pytest.raises(ShardError, match="with --speech log-mel, but"):
        build_pipeline(str(tmp_path / "before"), 0, manifest)

    one, again, other = (
        build_pipeline(str(tmp_path / "before"), seed, manifest, hears_anew="speech") for seed in (0, 0, 1)
    )
    one.save_pretrained(str(tmp_path / "after"))
    after = TalkingHeadPipeline.from_pretrained(str(tmp_path / "after"))
    check_fits(manifest, after, "here")
    made = after.denoiser.state_dict()
    for name, value in before.denoiser.state_dict().items():
        if name.startswith("speech_encoder."):
            drawn = [pipeline.denoiser.state_dict()[name] for pipeline in (one, again, other)]
            assert torch.equal(drawn[0], drawn[1]) and torch.equal(made[name], drawn[0])
        else:
            assert torch.equal(made[name], value), name
    assert not torch.equal(one.denoiser.speech_encoder.conv1.weight, other.denoiser.speech_encoder.conv1.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speech": "models/whisper-tiny"}, "with --speech log-mel, but here was trained with models/whisper-tiny"),
        ({"identity": "dlib", "identity_dimensions": 128}, "with --identity none, but here was trained with dlib"),
        ({"speech_hops": 20}, "hold sound windows of 44 x 40, but here hears 20 x 40"),
        ({"latent_size": 16}, r"hold faces of 32 pixels \(8 latent cells a side\), but here makes 16 cells"),
    ],
)
def test_shards_that_a_pipeline_was_not_made_for_are_refused(manifest, settings, message: str) -> None:
    kept = {"latent_channels": 16, "latent_size": 8} | settings
    channels, size = kept.pop("latent_channels"), kept.pop("latent_size")
    check_fits(manifest, new_pipeline("patch", 16, 8, **SMALL), "here")
    with pytest.raises(ShardError, match=message) as caught:
        check_fits(manifest, new_pipeline("patch", channels, size, **SMALL, **kept), "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bends", [(8, 20, 6), None])
def test_where_all_weights_learn_faces_references_are_told_and_bent_where_latents_can_be(
    manifest, lower, make_config, tmp_path, bends
) -> None:
    """Of the lower face's, whose transform is known; an older pipeline keeps its weights, and where adapters alone are
    trained, or nothing is learned from lips, it works on as it did."""
    shards = lower if bends else manifest
    channels, size, _ = shards.shapes["latents"]
    before = new_pipeline(shards.autoencoder, channels, size, **SMALL)
    before.save_pretrained(str(tmp_path / "before"))

    def started(pretrained: str | None = str(tmp_path / "before"), **settings: Any) -> Any:
        return start_of(make_config(pretrained=pretrained, **settings), shards).denoiser

    after, mouths = started(shared="backbone"), ["units", "speech", "mouths", "faces"]
    assert after.takes_reference_lips() and not after.reference_embedding.weight.any()
    assert after.takes_bent() == bool(bends) and tuple(after.config.bends or ()) == (bends or ())
    assert after.open_mouth is None
    for name, value in before.denoiser.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    adapted = started(shared="adapter", phases=mouths)
    assert not adapted.takes_reference_lips() and not adapted.takes_bent() and adapted.open_mouth is None
    assert (started(shared="backbone", phases=mouths).open_mouth is not None) == bool(bends)
