"""Generation: one face and a sound in, a talking face out, as a diffusers pipeline.

pipe = TalkingHeadPipeline.from_pretrained("models/grid")
frames = pipe(face, audio).frames            # uint8 [T, S, S, 3] at 25 fps
for block in pipe.stream(face, audio): ...   # the same frames, a second at a time, however long the sound
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils import logging as diffusers_logging

from fedtalk_ray.errors import RunError
from fedtalk_ray.media.framing import FRAMINGS, Framing
from fedtalk_ray.media.identity_embedding import IdentityEmbedder, load_identity_embedder
from fedtalk_ray.media.lips import face_landmarks, lip_motion, lips_of
from fedtalk_ray.media.speech import SpeechFeatures, load_speech_features
from fedtalk_ray.media.video import FPS, SAMPLE_RATE
from fedtalk_ray.model.autoencoder import (
    decode_latents,
    decode_pixels,
    encode_frames,
    encoder_fingerprint,
    frames_to_pixels,
    load_autoencoder,
    region_of,
    scaling_factor,
    sees_reference,
)
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.embedded import find_model
from fedtalk_ray.model.identity import FaceCritic, IdentityEncoder
from fedtalk_ray.model.motion_units import MotionUnits
from fedtalk_ray.model.musetalk_folder import cells_of, is_musetalk, read_autoencoder, read_unet
from fedtalk_ray.model.sampling import DEFAULT_BATCH, DEFAULT_GUIDANCE, DEFAULT_STEPS, sample_stream
from fedtalk_ray.model.sampling import sample_clip as sample_clip
from fedtalk_ray.model.schedule import make_scheduler
from fedtalk_ray.model.sync import SyncNetwork, sync_loss
from fedtalk_ray.model.told import BentReference, Heard, Told, told_of

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class TalkingHeadOutput(BaseOutput):
    """frames: uint8 [T, S, S, 3]. latents: float32 [T, C, h, w], scaled."""

    frames: np.ndarray
    latents: torch.Tensor


class TalkingHeadPipeline(DiffusionPipeline):
    """Autoencoder, denoiser and scheduler, saved and loaded as diffusers does; what judges faces and lips rides along.

    The denoiser may also be a PEFT model around it, so that adapters act. A pipeline that nobody pretrained has no
    identity encoder and no sync network.
    """

    _optional_components: ClassVar[list[str]] = ["identity_encoder", "sync_network"]

    autoencoder: ModelMixin
    denoiser: Any
    scheduler: DDIMScheduler
    identity_encoder: IdentityEncoder | None
    sync_network: SyncNetwork | None

    def __init__(
        self,
        autoencoder: torch.nn.Module,
        denoiser: torch.nn.Module,
        scheduler: DDIMScheduler,
        identity_encoder: IdentityEncoder | None = None,
        sync_network: SyncNetwork | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            autoencoder=autoencoder,
            denoiser=denoiser,
            scheduler=scheduler,
            identity_encoder=identity_encoder,
            sync_network=sync_network,
        )

    @property
    def framing(self) -> Framing:
        """What part of a picture its faces are."""
        return FRAMINGS[bare_denoiser(self.denoiser).config.get("framing", "aligned")]

    def frame_size(self) -> int:
        """Side in pixels of the faces that this pipeline takes and makes."""
        config = bare_denoiser(self.denoiser).config
        blank = torch.zeros(1, config.latent_channels, config.latent_size, config.latent_size)
        return self.autoencoder.decode(blank.to(self.autoencoder.device)).sample.shape[-1]

    @torch.no_grad()
    def __call__(
        self,
        face: np.ndarray,
        audio: np.ndarray,
        num_inference_steps: int = DEFAULT_STEPS,
        guidance_scale: float = DEFAULT_GUIDANCE,
        generator: torch.Generator | None = None,
        lips: np.ndarray | None = None,
        reference_lips: np.ndarray | None = None,
    ) -> TalkingHeadOutput:
        """face: aligned crop uint8 [S, S, 3]. audio: float32 [N] at 16 kHz. Makes a frame for every 40 ms begun.

        lips: `media.lips.lip_motion` of each of these frames, float32 [T, LIP_MOTION], in place of what is heard.
        reference_lips: what is known of the face's own lips (`media.lips.lips_of`), float32 [LIP_MOTION]; None for what
        is read from the face itself.
        """
        speech = self._heard(audio)
        parts = list(self._pieces(face, speech, num_inference_steps, guidance_scale, generator, lips, reference_lips))
        frames, latents = zip(*parts, strict=True)
        return TalkingHeadOutput(frames=np.concatenate(frames), latents=torch.cat(latents))

    def stream(
        self,
        face: np.ndarray,
        audio: np.ndarray,
        num_inference_steps: int = DEFAULT_STEPS,
        guidance_scale: float = DEFAULT_GUIDANCE,
        generator: torch.Generator | None = None,
        block: int = FPS,
        soft_border: bool = True,
        reference_lips: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """The frames of `__call__`, to the bit, in blocks uint8 [block, S, S, 3]; the last one may be shorter.

        soft_border: False leaves what is made of a lower face as it is up to its edge, for who lays it over another
        picture. Only the sound, its features and a few windows lie in memory, however long the sound is.
        """
        if block < 1:
            raise ValueError(f"block is {block}; it must be at least 1 frame")
        speech = self._heard(audio)
        pieces = self._pieces(
            face, speech, num_inference_steps, guidance_scale, generator, None, reference_lips, soft_border
        )
        return _cut_anew((frames for frames, _ in pieces), block)

    def speak_along(
        self, face: np.ndarray, speech: Heard, generator: torch.Generator | None = None, soft_border: bool = True
    ) -> Iterator[np.ndarray]:
        """Frames as soon as `speech` holds what they hear: one step, blocks uint8 [n, S, S, 3], a window at a time."""
        given = face, speech, 1, DEFAULT_GUIDANCE, generator
        pieces = self._pieces(*given, soft_border=soft_border, batch=1, live=True)
        return (frames for frames, _ in pieces)

    @property
    def hears(self) -> str:
        """The name of what turns sound into features (`media.speech`)."""
        return str(bare_denoiser(self.denoiser).config.speech)

    def _pieces(
        self,
        face: np.ndarray,
        speech: Heard,
        steps: int,
        guidance: float,
        generator: torch.Generator | None,
        lips: np.ndarray | None = None,
        reference_lips: np.ndarray | None = None,
        soft_border: bool = True,
        batch: int = DEFAULT_BATCH,
        live: bool = False,
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Frames and their latents as they get ready, always cut at the same places."""
        reference = torch.from_numpy(encode_frames(self.autoencoder, face[None]))[0]
        config = bare_denoiser(self.denoiser).config
        who = None
        if config.identity_dimensions:
            who = torch.from_numpy(_embedder(config.identity).embed(face[None])[0])
        told = self._told(face, reference, speech, lips, reference_lips, live)
        if not guidance:
            # Nothing is heard, so there is nothing to bend to.
            told = replace(told, bent=None)
        latents = sample_stream(
            self.denoiser, self.scheduler, reference, speech, steps, guidance, generator, batch, who, told
        )
        detail = self._kept_detail(face, reference)
        decode = partial(decode_latents, self.autoencoder, face=face, detail=detail, soft_border=soft_border)
        made = 0
        for piece in latents:
            bent = self.bent(face, told, torch.arange(made, made + len(piece)))
            made += len(piece)
            yield decode(piece, bent=bent), piece

    def bent(self, face: np.ndarray, told: Told, places: torch.Tensor) -> torch.Tensor | None:
        """The lower face of a crop uint8 [S, S, 3] as some frames have its lips: pixels [n, 3, w, w]."""
        if not isinstance(told.bent, BentReference) or not sees_reference(self.autoencoder):
            return None
        return told.bent.pictures(self.autoencoder.window(frames_to_pixels(face[None])), places)

    def _heard(self, audio: np.ndarray) -> torch.Tensor:
        """What each frame hears, float32 [T, hops, bins]: the one place where sound becomes features."""
        config = bare_denoiser(self.denoiser).config
        features = _features(config.speech)
        if features.shape != (config.speech_hops, config.mel_bins):
            raise RunError(
                f"this model hears windows of {config.speech_hops} x {config.mel_bins} of {config.speech!r}, and they "
                f"are {features.shape[0]} x {features.shape[1]}: an older version trained it, or with another model of "
                "that name; train it anew"
            )
        return torch.from_numpy(features.windows(audio, frame_count(len(audio))))

    @torch.no_grad()
    def speak_over(
        self,
        faces: Iterable[np.ndarray],
        audio: np.ndarray,
        rate: Fraction = Fraction(FPS),
        batch: int = 8,
        person: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Every face with another mouth, one uint8 [S, S, 3] for each: of a model that makes each frame alone.

        faces: crops uint8 [S, S, 3] of frames at `rate` a second, gone through once. A frame hears what the one of 25 a
        second does that is on then. person: the crop that all of them are shown as their reference; None for each its
        own.
        """
        base = bare_denoiser(self.denoiser)
        speech, numbers = self._heard(audio), itertools.count()
        shown = (
            None if person is None else torch.from_numpy(encode_frames(self.autoencoder, person[None])).to(base.device)
        )
        crops = iter(faces)
        while block := list(itertools.islice(crops, batch)):
            places = torch.tensor([int(next(numbers) * FPS / rate) for _ in block]).clamp(max=len(speech) - 1)
            latents = torch.from_numpy(encode_frames(self.autoencoder, np.stack(block))).to(base.device)
            made, given = base.split(latents)
            sample = torch.cat([torch.zeros_like(made), given], dim=1)[:, None]
            last = torch.full((len(block),), self.scheduler.config.num_train_timesteps - 1, device=base.device)
            reference = latents if shown is None else shown.expand_as(latents)
            mouths = self.denoiser(sample, last, speech[places][:, None].to(base.device), reference)[:, 0]
            yield from decode_latents(self.autoencoder, mouths)

    def _told(
        self,
        face: np.ndarray,
        reference: torch.Tensor,
        speech: Heard,
        lips: np.ndarray | None,
        known: np.ndarray | None,
        live: bool,
    ) -> Told:
        if lips is not None and len(lips) != len(speech):
            raise ValueError(f"lips of {len(lips)} frames are told for a sound of {len(speech)}")
        base = bare_denoiser(self.denoiser)
        if lips is not None and not base.knows_lips():
            raise ValueError("lips are told to a model that knows no lip shapes")
        points = None
        if base.knows_lips() and (base.takes_bent() or (base.takes_reference_lips() and known is None)):
            points = face_landmarks(face[None])
            known = lips_of(points, 0) if known is None else known
        return told_of(base, reference, None if points is None else points[0], speech, known, lips, live)

    def from_latents(self, face: np.ndarray, latents: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """What the autoencoder alone makes of a clip: frames uint8 [T, S, S, 3] of their own latents [T, C, h, w].

        face: its first frame uint8 [S, S, 3], of which all detail is taken, bent to the lips of each frame where it is
        so when the face speaks. landmarks: 68 points of each frame [T, 68, 2], or none, where nothing is bent.
        """
        base, bent = bare_denoiser(self.denoiser), None
        stored = torch.from_numpy(latents.astype(np.float32))
        if len(landmarks) and base.takes_bent() and base.knows_lips():
            reference = torch.from_numpy(encode_frames(self.autoencoder, face[None]))[0]
            lips = lip_motion(landmarks)
            # All lips are told, so of what frames hear nothing but their number is asked for.
            told = self._told(face, reference, stored, lips, lips[0], live=False)
            bent = self.bent(face, told, torch.arange(len(stored)))
        return decode_latents(self.autoencoder, stored, face=face, bent=bent)

    def at_rest(self, face: np.ndarray) -> np.ndarray:
        """The face uint8 [S, S, 3] as `stream` without a soft border would show it if nothing of it moved."""
        reference = torch.from_numpy(encode_frames(self.autoencoder, face[None]))
        detail = self._kept_detail(face, reference[0])
        return decode_latents(self.autoencoder, reference, face=face, detail=detail, soft_border=False)[0]

    def _kept_detail(self, face: np.ndarray, reference: torch.Tensor) -> torch.Tensor | None:
        """How much of `lost_detail` is shown: pixels [3, S, S]; None where the autoencoder takes it from the face."""
        if sees_reference(self.autoencoder) or not isinstance(bare_denoiser(self.denoiser), MotionUnits):
            return None
        weight = bare_denoiser(self.denoiser).detail[None, None].cpu()
        weight = torch.nn.functional.interpolate(weight, face.shape[:2], mode="bilinear")[0]
        return weight * self.lost_detail(face, reference)

    @torch.no_grad()
    def lost_detail(self, face: np.ndarray, latent: torch.Tensor) -> torch.Tensor:
        """What the autoencoder loses of a face uint8 [S, S, 3] with this latent [C, h, w]: pixels [3, S, S]."""
        return frames_to_pixels(face[None])[0] - decode_pixels(self.autoencoder, latent[None])[0].float().cpu()


def frame_count(samples: int, rate: Fraction | int = FPS) -> int:
    """Frames made for so many samples of sound: one for each that is begun at `rate` a second, and at least two."""
    return max(2, int(-(-samples * rate // SAMPLE_RATE)))


@cache
def _features(source: str) -> SpeechFeatures:
    return load_speech_features(source)


@cache
def _embedder(source: str) -> IdentityEmbedder:
    return load_identity_embedder(source)


def _cut_anew(pieces: Iterator[np.ndarray], block: int) -> Iterator[np.ndarray]:
    """The same frames in blocks of `block`; the last one may be shorter."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= block:
            frames = np.concatenate(held)
            whole = count - count % block
            yield from np.split(frames[:whole], range(block, whole, block))
            held, count = [frames[whole:]], count - whole
    if count:
        yield np.concatenate(held)


def load_pipeline(source: str) -> TalkingHeadPipeline:
    """The pipeline at a folder that `fedtalk pretrain` or a run wrote, "fedtalk-tiny", a hub id, or MuseTalk's folder.

    Raises `errors.RunError` where there is none.
    """
    folder = find_model(source)
    if not folder.exists() and _HUB_ID.fullmatch(source):
        return _from_pretrained(
            source, f"{source} is neither a folder with a pipeline nor a hub id whose pipeline can be fetched"
        )
    if is_musetalk(folder):
        autoencoder = read_autoencoder(folder)
        denoiser = read_unet(folder, cells_of(autoencoder))
        return TalkingHeadPipeline(autoencoder, denoiser, make_scheduler(denoiser.config.prediction_type))
    if not (folder / "model_index.json").is_file():
        raise RunError(
            f"{source} holds no pipeline (no model_index.json); `fedtalk pretrain --out {source}` writes one"
        )
    return _from_pretrained(str(folder), f"pipeline {source} is damaged")


def _from_pretrained(where: str, complaint: str) -> TalkingHeadPipeline:
    # A small local folder loads in a moment: a progress bar for each slot would only be noise.
    diffusers_logging.disable_progress_bar()
    try:
        return TalkingHeadPipeline.from_pretrained(where, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise RunError(f"{complaint}: {' '.join(str(error).split())[:300]}") from error


def new_pipeline(autoencoder: str, latent_channels: int, latent_size: int, **settings: Any) -> TalkingHeadPipeline:
    """An untrained pipeline around an autoencoder; weights from torch's global generator.

    settings: of `TalkingHeadDenoiser`, beyond the latents' shape.
    """
    loaded = load_autoencoder(autoencoder)
    denoiser = TalkingHeadDenoiser(
        latent_channels=latent_channels, latent_size=latent_size, region=region_of(loaded), **settings
    )
    return TalkingHeadPipeline(loaded, denoiser, make_scheduler(denoiser.config.prediction_type))


def make_critic(pipeline: TalkingHeadPipeline) -> FaceCritic | None:
    """What compares faces, from the pipeline's own parts; None where no identity encoder was trained."""
    if pipeline.identity_encoder is None:
        return None
    return FaceCritic(pipeline.autoencoder, pipeline.identity_encoder, scaling_factor(pipeline.autoencoder))


def make_sync_loss(pipeline: TalkingHeadPipeline) -> Callable[..., torch.Tensor] | None:
    """`model.sync.sync_loss` by the pipeline's own network; None where none was trained."""
    return None if pipeline.sync_network is None else partial(sync_loss, pipeline.sync_network)


def fingerprint(pipeline: TalkingHeadPipeline) -> str:
    """Names the encoder that shards for this pipeline must come from."""
    return encoder_fingerprint(pipeline.autoencoder)
