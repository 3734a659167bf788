"""The pipeline a training starts from: a pretrained one, or an untrained one around the shards' autoencoder."""

from typing import Any

import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.model.autoencoder import region_of
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, fingerprint, load_pipeline, new_pipeline
from fedtalk_ray.shards.format import Manifest


def build_pipeline(pretrained: str | None, seed: int, manifest: Manifest, **settings: Any) -> TalkingHeadPipeline:
    """Loads the pipeline `pretrained`, or makes an untrained one around the shards' autoencoder, drawn from `seed`.

    settings: of an untrained `TalkingHeadDenoiser`. Raises `ShardError` when the shards were encoded by another
    autoencoder than the pipeline's.
    """
    if pretrained is not None:
        pipeline = load_pipeline(pretrained)
        check_fits(manifest, pipeline, pretrained)
        return pipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return untrained_pipeline(manifest, **settings)


def untrained_pipeline(manifest: Manifest, **settings: Any) -> TalkingHeadPipeline:
    """A pipeline for what the shards hold: their autoencoder, sound features and identity embeddings.

    settings: of `TalkingHeadDenoiser`. Raises `ShardError` when the shards' autoencoder is no longer the one that they
    were encoded with.
    """
    channels, size, _ = manifest.shapes["latents"]
    hops, bins = manifest.shapes["speech"]
    conditions = {"speech": manifest.speech, "speech_hops": hops, "mel_bins": bins}
    conditions |= {"identity": manifest.identity, "identity_dimensions": manifest.identity_dimensions}
    pipeline = new_pipeline(manifest.autoencoder, channels, size, **conditions | settings)
    manifest.check_autoencoder(fingerprint(pipeline), manifest.autoencoder)
    return pipeline


def check_fits(manifest: Manifest, pipeline: TalkingHeadPipeline, where: str) -> None:
    """Raises `ShardError` when the pipeline at `where` was made for other latents, sound or faces than the shards'."""
    manifest.check_autoencoder(fingerprint(pipeline), where)
    settings = bare_denoiser(pipeline.denoiser).config
    manifest.check_conditions(settings.speech, settings.identity, where)
    made_for, latents_of = bare_denoiser(pipeline.denoiser).region, region_of(pipeline.autoencoder)
    if made_for != latents_of:
        raise ShardError(f"{where} is damaged: its denoiser is for the {made_for}, its latents are of the {latents_of}")
    hops, bins = manifest.shapes["speech"]
    if (hops, bins) != (settings.speech_hops, settings.mel_bins):
        raise ShardError(
            f"shards hold sound windows of {hops} x {bins}, but {where} hears {settings.speech_hops} x "
            f"{settings.mel_bins}: prepare the shards again"
        )
    if manifest.shapes["latents"][1] != settings.latent_size:
        raise ShardError(
            f"shards hold faces of {manifest.frame_size} pixels ({manifest.shapes['latents'][1]} latent cells a side), "
            f"but {where} makes {settings.latent_size} cells: prepare the shards with another --size"
        )
