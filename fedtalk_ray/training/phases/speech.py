"""Phase `speech`: the lips that each sound means, and their motion, by regression, before the U-Net sees anything.

Pictures of an opening mouth differ from face to face, so a regression on pictures has to learn every face anew. The
landmarks of lips do not: as numbers of a code, regressed for a minute, they follow the truth's on unseen GRID speakers
with a correlation of 0.70 where somebody speaks; read off pictures regressed in their place, 0.44. The U-Net learns
from true lip shapes what they look like on the face of the reference.

A thousand times more frames go through here than through the U-Net in the same time, so this phase can hear what is
said rather than which clip it is. The U-Net then takes the code as given: trained further together with it, lips on
unseen GRID speakers got worse the longer it went on.
"""

from collections.abc import Iterator

import numpy as np
import torch

from fedtalk_ray.errors import NothingToGive, RunError
from fedtalk_ray.media.speech import LOG_MEL
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.device import fast_arithmetic
from fedtalk_ray.model.speech_code import SPEECH_PARTS
from fedtalk_ray.recipe import SpeechConfig
from fedtalk_ray.shards.windows import Wanted, WindowBatch
from fedtalk_ray.slot_settings import StreamConfig
from fedtalk_ray.training.augment import vary_speech
from fedtalk_ray.training.losses import error_weights
from fedtalk_ray.training.optimise import Loss
from fedtalk_ray.training.phases.module_steps import ModuleSteps
from fedtalk_ray.training.phases.phase import Score, Task
from fedtalk_ray.training.reliability import Reliability, score_hearing


def speech_phase(
    denoiser: TalkingHeadDenoiser,
    config: SpeechConfig,
    stream: StreamConfig,
    mouth_weight: float,
    device: str = "cpu",
    score: Score | None = None,
    autocast: bool = False,
) -> ModuleSteps:
    """Teaches the speech encoder of a denoiser whose units are fixed; and the map from its code to motion, unless that
    bends its reference and shows no such motion.

    score: None where nobody asks for one. autocast: `local.autocast`. Raises `RunError` for one without lip axes.
    """
    if not denoiser.knows_lips():
        raise RunError("phases: speech needs a backbone that knows lip axes, and this one has none; add units")

    bends = denoiser.takes_bent()
    # Residuals on the piece's mean frame: how far a mouth is from where it is at rest.
    wanted = Wanted(lips=True, mean_reference=not bends)

    def losses(task: Task, rng: np.random.Generator) -> Iterator[Loss]:
        batches = task.people.batches(
            task.client,
            window=denoiser.config.window,
            windows=config.steps * config.batch_size,
            batch_size=config.batch_size,
            seed=task.seed,
            stream=stream,
            wanted=wanted,
        )
        mask = None if bends else error_weights(denoiser, mouth_weight)
        return (speech_loss(denoiser, batch, mask, rng, config.dropout, device, autocast) for batch in batches)

    parts = SPEECH_PARTS[:1] if bends else SPEECH_PARTS
    return ModuleSteps(denoiser, config, losses, device, lambda name: name.startswith(parts), score)


def hearing_score(denoiser: TalkingHeadDenoiser, windows: int, alpha: float) -> Score:
    """A client's score in this phase, on so many of its held-out windows. alpha: ISFA's."""

    def score(task: Task) -> Reliability:
        held_out = task.people.windows(task.client, denoiser.config.window, windows, lips=True)
        return score_hearing(denoiser, held_out, alpha)

    return score


def speech_loss(
    denoiser: TalkingHeadDenoiser,
    batch: WindowBatch,
    mask: torch.Tensor | None,
    rng: np.random.Generator,
    dropout: float,
    device: str,
    autocast: bool,
) -> Loss:
    """How far shapes are from what the sound says, and motion too.

    mask: [C, h, w], `error_weights`; None where motion is not shown. dropout: `SpeechConfig.dropout`.
    """
    check_sound(batch.speech)
    varied = [vary_speech(window.numpy(), rng, denoiser.config.speech == LOG_MEL) for window in batch.speech]
    moved = batch.to(device)
    shape = denoiser.lip_shape(moved.lips)
    with fast_arithmetic(device, autocast):
        code = denoiser.speech_encoder(torch.from_numpy(np.stack(varied)).to(device), dropout)
    lips = (code[..., : shape.shape[-1]] - shape).square().mean()
    terms = {"lips": float(lips.detach())}
    if mask is None:
        return lips, terms
    with fast_arithmetic(device, autocast):
        motion = denoiser.speech_map(code)
    target = denoiser.to_residual(moved.latents, moved.reference)
    picture = (mask * (motion - target).square()).mean()
    return picture + lips, terms | {"motion": float(picture.detach())}


def check_sound(speech: torch.Tensor) -> None:
    """Raises `NothingToGive` for windows [B, T, hops, bins] that all hold the same value: clips without sound."""
    if float(speech.max() - speech.min()) < 1e-3:
        raise NothingToGive("its clips are silent, and nothing can be learned from what is not said")
