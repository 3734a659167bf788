"""Where a run starts: a pretrained pipeline that fits the shards, or a new one around the shards' autoencoder."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.model.autoencoder import PatchAutoencoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline, new_pipeline
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.training.backbone import build_pipeline, check_fits, speech_phase_of, start_of, untrained_pipeline
from fedtalk_ray.training.pretrain import federation_of_one, speech_phase_for
from fedtalk_ray.training.resident import check_can_be_taught


def test_a_run_without_pretraining_starts_from_its_seed(make_shards, tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", {"s1": [30, 30]})
    built = []
    for outside, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(outside)
        state = torch.get_rng_state()
        built.append(build_pipeline(None, seed, manifest))
        assert torch.equal(torch.get_rng_state(), state)
    config = built[0].denoiser.config
    assert (config.latent_channels, config.latent_size) == (16, 8) and built[0].frame_size() == 32
    assert built[0].identity_encoder is None
    weights = [pipeline.denoiser.conv_in.weight for pipeline in built]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_pretrained_pipeline_is_loaded_and_must_fit_the_shards(make_shards, tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    manifest = load_manifest(tmp_path / "shards")
    torch.manual_seed(5)
    pipeline = new_pipeline("patch", 16, 8)
    pipeline.save_pretrained(str(tmp_path / "fits"))
    loaded = build_pipeline(str(tmp_path / "fits"), 0, manifest)
    assert torch.equal(loaded.denoiser.conv_in.weight, pipeline.denoiser.conv_in.weight)

    other = TalkingHeadPipeline(PatchAutoencoder(luma_coefficients=11), pipeline.denoiser, pipeline.scheduler)
    other.save_pretrained(str(tmp_path / "other"))
    with pytest.raises(
        ShardError, match=rf"shards were encoded by autoencoder 'patch' .*{tmp_path / 'other'}"
    ) as caught:
        build_pipeline(str(tmp_path / "other"), 0, manifest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speech": "models/whisper-tiny"}, "with --speech log-mel, but here was trained with models/whisper-tiny"),
        ({"identity": "dlib", "identity_dimensions": 128}, "with --identity none, but here was trained with dlib"),
        ({"speech_hops": 20}, "hold sound windows of 44 x 40, but here hears 20 x 40"),
    ],
)
def test_shards_that_a_pipeline_was_not_made_for_are_refused(make_shards, tmp_path, settings, message: str) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    manifest = load_manifest(tmp_path / "shards")
    check_fits(manifest, untrained_pipeline(manifest), "here")
    with pytest.raises(ShardError, match=message) as caught:
        check_fits(manifest, untrained_pipeline(manifest, **settings), "here")
    assert "\n" not in str(caught.value)


def test_where_hearing_is_taught_a_pipeline_that_hears_otherwise_keeps_what_it_can_paint(make_shards, tmp_path) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    manifest = load_manifest(tmp_path / "shards")
    torch.manual_seed(5)
    before = new_pipeline("patch", 16, 8, speech="models/whisper-tiny", speech_hops=22, mel_bins=384)
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


def test_a_network_that_cannot_change_its_ears_is_refused_like_any_that_does_not_fit(
    make_shards, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    new_pipeline("patch", 16, 8, speech="models/whisper-tiny").save_pretrained(str(tmp_path / "before"))
    monkeypatch.delattr("fedtalk_ray.model.speech_code.CodedDenoiser.hear_by")
    with pytest.raises(ShardError, match="with --speech log-mel, but"):
        build_pipeline(str(tmp_path / "before"), 0, load_manifest(tmp_path / "shards"), hears_anew="speech")


def test_a_pipeline_that_hears_the_same_keeps_its_hearing_too(make_shards, tmp_path) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    before = new_pipeline("patch", 16, 8)
    before.save_pretrained(str(tmp_path / "before"))
    after = build_pipeline(str(tmp_path / "before"), 0, load_manifest(tmp_path / "shards"), hears_anew="speech")
    for name, value in before.denoiser.state_dict().items():
        assert torch.equal(after.denoiser.state_dict()[name], value), name


def test_shards_of_another_frame_size_are_refused(make_shards, tmp_path) -> None:
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    with pytest.raises(ShardError, match=r"hold faces of 32 pixels \(8 latent cells a side\), but here makes 16 cells"):
        check_fits(load_manifest(tmp_path / "shards"), new_pipeline("patch", 16, 16), "here")


def test_where_all_weights_learn_faces_a_pipeline_is_taught_to_see_the_references_lips(
    make_shards, make_config, tmp_path
) -> None:
    """An older one too, which knows what it knew; not where adapters alone are trained, which teach it nothing."""
    manifest = make_shards(tmp_path / "shards", {"s1": [30, 30]})
    before = new_pipeline("patch", 16, 8)
    before.save_pretrained(str(tmp_path / "before"))

    def started(**settings: Any) -> Any:
        return start_of(make_config(pretrained=str(tmp_path / "before"), **settings), manifest).denoiser

    after = started(shared="backbone")
    assert after.takes_reference_lips() and not after.reference_embedding.weight.any()
    for name, value in before.denoiser.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    assert not started(shared="adapter").takes_reference_lips()
    assert untrained_pipeline(manifest).denoiser.takes_reference_lips()


def test_where_all_weights_learn_faces_the_reference_is_bent_of_latents_that_can_be(
    make_shards, make_config, tmp_path
) -> None:
    """Of the lower face's, whose transform is known; an older pipeline keeps its weights, and one of other latents
    works on as it did."""
    for encoder, side, bends in (("lower-face", 48, (8, 20, 6)), ("patch", 32, None)):
        manifest = make_shards(tmp_path / encoder, {"s1": [30, 30]}, side, encoder=encoder)
        channels, size, _ = manifest.shapes["latents"]
        before = new_pipeline(encoder, channels, size)
        before.save_pretrained(str(tmp_path / f"{encoder}-before"))

        def started(**settings: Any) -> Any:
            place = str(tmp_path / f"{encoder}-before")  # noqa: B023
            return start_of(make_config(pretrained=place, **settings), manifest).denoiser  # noqa: B023

        after = started(shared="backbone")
        assert after.takes_bent() == bool(bends) and tuple(after.config.bends or ()) == (bends or ())
        for name, value in before.denoiser.state_dict().items():
            assert torch.equal(after.state_dict()[name], value), name
        assert not started(shared="adapter").takes_bent()
        assert untrained_pipeline(manifest).denoiser.takes_bent() == bool(bends)
        # One that is not taught by lips what it hears has no shapes to bend to.
        for phases in (["units", "faces"], ["units", "speech", "faces"]):
            fresh = start_of(make_config(pretrained=None, shared="backbone", phases=phases), manifest).denoiser
            assert fresh.takes_bent() == (bool(bends) and "speech" in phases)


def test_where_mouths_are_taught_a_network_that_bends_can_show_them(make_shards, make_config, tmp_path) -> None:
    """A new one and an older one, whose other weights stay; not where adapters alone are trained, and none that bends
    nothing."""
    manifest = make_shards(tmp_path / "lower", {"s1": [30, 30]}, 48, encoder="lower-face")
    taught = ["units", "speech", "mouths", "faces"]
    older = start_of(make_config(pretrained=None, shared="backbone", phases=["units", "speech", "faces"]), manifest)
    assert older.denoiser.takes_bent() and older.denoiser.open_mouth is None
    older.save_pretrained(str(tmp_path / "older"))
    for pretrained in (None, str(tmp_path / "older")):
        config = make_config(pretrained=pretrained, shared="backbone", phases=taught)
        made = start_of(config, manifest).denoiser
        assert made.open_mouth is not None and not made.open_mouth.known()
        check_can_be_taught(SimpleNamespace(denoiser=made), config)
    for name, value in older.denoiser.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name
    adapters = make_config(pretrained=str(tmp_path / "older"), phases=taught)
    with pytest.raises(RunError, match="phases: mouths fills the mouths of references that are bent"):
        check_can_be_taught(start_of(adapters, manifest), adapters)
    whole = make_shards(tmp_path / "whole", {"s1": [30, 30]}, 32)
    config = make_config(pretrained=None, shared="backbone", phases=taught)
    with pytest.raises(RunError, match="phases: mouths fills the mouths of references that are bent"):
        check_can_be_taught(start_of(config, whole), config)


@pytest.mark.parametrize(("before", "after"), [("speech", "hearing"), ("hearing", "speech")])
def test_a_speech_encoder_of_the_other_phase_is_taught_anew_and_the_log_says_so(
    make_shards,
    tmp_path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    after: str,
) -> None:
    # Whatever a library that was imported before made of other people's loggers.
    log = logging.getLogger("fedtalk_ray.training.backbone")
    caplog.set_level(logging.WARNING, log.name)
    monkeypatch.setattr(log, "disabled", False)
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    make_shards(tmp_path / "shards", {"s1": [30, 30]})
    manifest = load_manifest(tmp_path / "shards")
    made = build_pipeline(None, 0, manifest, hears_anew=before, widths=(16, 32), window=4)
    assert made.denoiser.hears_linearly() == (before == "hearing")
    torch.nn.init.normal_(made.denoiser.speech_encoder.linear1.weight)
    made.save_pretrained(str(tmp_path / "made"))
    kept = build_pipeline(str(tmp_path / "made"), 0, manifest, hears_anew=before)
    assert torch.equal(kept.denoiser.speech_encoder.linear1.weight, made.denoiser.speech_encoder.linear1.weight)
    assert not caplog.records
    other = build_pipeline(str(tmp_path / "made"), 0, manifest, hears_anew=after)
    assert other.denoiser.hears_linearly() == (after == "hearing")
    assert f"was taught to hear by the phase {before}; its speech encoder is trained anew by {after}" in caplog.text
    other.save_pretrained(str(tmp_path / "other"))
    assert load_pipeline(str(tmp_path / "other")).denoiser.hears_linearly() == (after == "hearing")


def test_a_network_that_knows_no_linear_hearing_keeps_its_own_kind(make_denoiser) -> None:
    """As one in a file of its own, whose configuration has no such entry."""
    denoiser = make_denoiser()
    known = {name: value for name, value in denoiser.config.items() if name != "linear_hearing"}
    assert len(known) < len(denoiser.config)
    denoiser._internal_dict = FrozenDict(known)
    denoiser.hear_by("whisper", 22, 12, linear=True)
    assert not denoiser.hears_linearly() and denoiser.config.speech == "whisper"


def test_pretraining_hears_in_closed_form_what_a_pretrained_encoder_hears(make_shards, tmp_path) -> None:
    """On lower faces, which can be bent, by a network of ours."""
    manifest = make_shards(tmp_path / "shards", {"s1": [30] * 4, "s2": [30] * 4}, side=48, encoder="lower-face")
    heard = replace(manifest, speech="openai/whisper-tiny")
    assert speech_phase_for(manifest, None) == "speech" and speech_phase_for(heard, None) == "hearing"
    assert speech_phase_for(replace(heard, autoencoder="patch"), None) == "speech"
    assert speech_phase_for(heard, "fedtalk-tiny") == "hearing"
    phases = federation_of_one(heard, tmp_path / "shards", "out", patch=False, speech="hearing").phases
    assert phases == ["units", "identity", "sync", "hearing", "faces", "calibration"]
    phases = federation_of_one(heard, tmp_path / "shards", "out", patch=False, speech="hearing", mouths=True).phases
    assert phases == ["units", "identity", "sync", "hearing", "mouths", "faces", "calibration"]
    assert speech_phase_of(phases) == "hearing" and speech_phase_of(["units", "faces"]) is None
