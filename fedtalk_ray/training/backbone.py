"""The pipeline a training starts from: a pretrained one, or an untrained one around the shards' autoencoder."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.media.framing import ALIGNED, MUSETALK, Framing
from fedtalk_ray.media.identity_embedding import NO_IDENTITY
from fedtalk_ray.model.autoencoder import region_of, sees_reference
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.embedded import find_model
from fedtalk_ray.model.musetalk_folder import is_musetalk, read_autoencoder, speech_of
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, fingerprint, load_pipeline, new_pipeline
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import Manifest

_LOG = logging.getLogger(__name__)

SpeechPhase = Literal["speech", "hearing"]
"""The phases that teach a speech encoder."""


def build_pipeline(
    pretrained: str | None,
    seed: int,
    manifest: Manifest,
    hears_anew: SpeechPhase | None = None,
    sees_anew: bool = False,
    opens_anew: bool = False,
    **settings: Any,
) -> TalkingHeadPipeline:
    """Loads the pipeline `pretrained`, or makes an untrained one around the shards' autoencoder, drawn from `seed`.

    hears_anew: the phase that teaches its speech encoder, if any; then a pipeline that was trained on other sound
    features than the shards', or with the other phase's encoder, keeps its other weights and gets a fresh one.
    sees_anew: whether all weights are trained; then one that could not be told a reference's lips can be, and works on
    it bent to each frame's. opens_anew: whether it is taught what opened lips of a bent reference show.
    settings: of an untrained `TalkingHeadDenoiser`.
    Raises `ShardError` for shards that the pipeline was not made for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if pretrained is None:
            linear = hears_anew == "hearing"
            pipeline = untrained_pipeline(manifest, bends=hears_anew is not None, linear_hearing=linear, **settings)
            if opens_anew:
                _show_open_mouths(pipeline)
            return pipeline
        pipeline = load_pipeline(pretrained)
        if hears_anew:
            # Again: what is drawn must not depend on what loading draws.
            torch.manual_seed(seed)
            _hear_as_in(manifest, pipeline, pretrained, linear=hears_anew == "hearing")
        if sees_anew and _know_the_reference(pipeline):
            _LOG.info("%s moved lips by itself; it is taught to paint on a reference that is bent to them", pretrained)
        if opens_anew:
            _show_open_mouths(pipeline)
        check_fits(manifest, pipeline, pretrained)
        return pipeline


def _know_the_reference(pipeline: TalkingHeadPipeline, bends: bool = True) -> bool:
    """Has a network of ours told the reference's lips, and shown it bent, of latents that can be; whether that is new.

    bends: False for one that never learns from lips what it hears.
    """
    denoiser, autoencoder = bare_denoiser(pipeline.denoiser), pipeline.autoencoder
    if not isinstance(denoiser, TalkingHeadDenoiser):
        return False
    denoiser.see_reference_lips()
    if not bends or denoiser.takes_bent() or not sees_reference(autoencoder):
        return False
    known = autoencoder.config
    denoiser.bend_latents(known.patch, known.luma_coefficients, known.chroma_coefficients)
    return True


def _show_open_mouths(pipeline: TalkingHeadPipeline) -> None:
    """Where references are bent."""
    denoiser = bare_denoiser(pipeline.denoiser)
    if isinstance(denoiser, TalkingHeadDenoiser) and denoiser.takes_bent():
        denoiser.show_open_mouths()


@dataclass(frozen=True)
class ShardSettings:
    """What `shards.prepare.prepare` must be told for shards that fit a backbone."""

    autoencoder: str
    speech: str
    size: int
    framing: Framing = ALIGNED
    identity: str = NO_IDENTITY


def shard_settings(backbone: str) -> ShardSettings:
    """Of a pipeline (`load_pipeline`'s sources) or MuseTalk's folder. Raises `RunError` where it is none."""
    folder = find_model(backbone)
    if is_musetalk(folder):
        # Without its U-Net, which is the larger part.
        autoencoder = read_autoencoder(folder)
        return ShardSettings(backbone, speech_of(folder), int(autoencoder.config.sample_size), MUSETALK)
    pipeline = load_pipeline(backbone)
    known = bare_denoiser(pipeline.denoiser).config
    return ShardSettings(backbone, known.speech, pipeline.frame_size(), pipeline.framing, known.identity)


def start_of(config: TrainConfig, manifest: Manifest) -> TalkingHeadPipeline:
    """`build_pipeline` as a configuration says it."""
    return build_pipeline(
        config.pretrained,
        config.seed,
        manifest,
        hears_anew=speech_phase_of(config.phases),
        sees_anew=config.shared == "backbone",
        opens_anew=config.shared == "backbone" and "mouths" in config.phases,
    )


def speech_phase_of(phases: Iterable[PhaseName]) -> SpeechPhase | None:
    """Which of the phases teaches the speech encoder; None where none does."""
    return next((name for name in phases if name == "speech" or name == "hearing"), None)


def _hear_as_in(manifest: Manifest, pipeline: TalkingHeadPipeline, where: str, linear: bool) -> None:
    """A fresh speech encoder where the shards hold other features, of which a sync network knows nothing either, or
    where the one that is there is of the other kind.

    A network of another kind that cannot change its sound features stays as it is.
    """
    denoiser = bare_denoiser(pipeline.denoiser)
    hops, bins = manifest.shapes["speech"]
    heard = denoiser.config
    if not hasattr(denoiser, "hear_by"):
        return
    differs = (heard.speech, heard.speech_hops, heard.mel_bins) != (manifest.speech, hops, bins)
    linear = linear and "linear_hearing" in heard
    if differs:
        _LOG.warning(
            "%s was trained on the sound features of %s; its speech encoder is trained anew on the shards' (%s)", where,
            heard.speech, manifest.speech,
        )  # fmt: skip
        pipeline.register_modules(sync_network=None)
    elif denoiser.hears_linearly() != linear:
        taught = ("speech", "hearing") if linear else ("hearing", "speech")
        _LOG.warning("%s was taught to hear by the phase %s; its speech encoder is trained anew by %s", where, *taught)
    if differs or denoiser.hears_linearly() != linear:
        denoiser.hear_by(manifest.speech, hops, bins, linear)


def untrained_pipeline(manifest: Manifest, bends: bool = True, **settings: Any) -> TalkingHeadPipeline:
    """A pipeline for what the shards hold: their autoencoder, sound features and identity embeddings.

    bends: whether it works on bent references, of latents that can be; it has to learn from lips what it hears.
    settings: of `TalkingHeadDenoiser`. Raises `ShardError` when the shards' autoencoder is no longer the one that they
    were encoded with.
    """
    channels, size, _ = manifest.shapes["latents"]
    hops, bins = manifest.shapes["speech"]
    conditions = {"speech": manifest.speech, "speech_hops": hops, "mel_bins": bins}
    conditions |= {"identity": manifest.identity, "identity_dimensions": manifest.identity_dimensions}
    pipeline = new_pipeline(manifest.autoencoder, channels, size, **conditions | settings)
    _know_the_reference(pipeline, bends)
    manifest.check_autoencoder(fingerprint(pipeline), manifest.autoencoder)
    return pipeline


def check_fits(manifest: Manifest, pipeline: TalkingHeadPipeline, where: str, heard: bool = True) -> None:
    """Raises `ShardError` when the pipeline at `where` was made for other latents, sound or faces than the shards'.

    heard: whether it is given the sound features of the shards; False where it hears their sound itself.
    """
    settings = bare_denoiser(pipeline.denoiser).config
    manifest.check_framing(pipeline.framing.name, where)
    manifest.check_autoencoder(fingerprint(pipeline), where)
    manifest.check_conditions(settings.speech if heard else manifest.speech, settings.identity, where)
    made_for, latents_of = bare_denoiser(pipeline.denoiser).region, region_of(pipeline.autoencoder)
    if made_for != latents_of:
        raise ShardError(f"{where} is damaged: its denoiser is for the {made_for}, its latents are of the {latents_of}")
    hops, bins = manifest.shapes["speech"]
    if heard and (hops, bins) != (settings.speech_hops, settings.mel_bins):
        raise ShardError(
            f"shards hold sound windows of {hops} x {bins}, but {where} hears {settings.speech_hops} x "
            f"{settings.mel_bins}: prepare the shards again"
        )
    if manifest.shapes["latents"][1] != settings.latent_size:
        raise ShardError(
            f"shards hold faces of {manifest.frame_size} pixels ({manifest.shapes['latents'][1]} latent cells a side), "
            f"but {where} makes {settings.latent_size} cells: prepare the shards with another --size"
        )
