"""Phase `sharpness`: the decoder learns, from what the denoiser predicts, to paint a mouth as sharp as the person's
own picture.

The mean of all faces that a lip shape may mean is soft. So the decoder is shown such means beside the reference, and is
taught by the true pictures in two ways: to come near them, and to look like them to an adversary that sees the
reference too. (The hinge loss of 1802.05957 with the gradient penalty of 1801.04406; what the adversary sees stands in
for a perceptual network, as in 1711.11585, so that no weights are needed that somebody else trained; `sharpness.vgg`
has VGG-16 beside it, as in 1603.08155.) The adversary is learned in the same rounds and summed like the decoder, and is
thrown away at the end.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.model.adversary import Adversary
from fedtalk_ray.model.autoencoder import encode_pixels, scaling_factor, sees_reference
from fedtalk_ray.model.bending import Bends, bend
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.sampling import DEFAULT_STEPS
from fedtalk_ray.model.st_lpips import VggFeatures
from fedtalk_ray.recipe import SharpnessConfig
from fedtalk_ray.shards.windows import PictureBatch, Wanted, WindowBatch
from fedtalk_ray.slot_settings import StreamConfig
from fedtalk_ray.training.augment import vary_seen_and_heard
from fedtalk_ray.training.losses import cell_weights
from fedtalk_ray.training.optimise import Loss
from fedtalk_ray.training.phases.module_steps import ModuleSteps
from fedtalk_ray.training.phases.phase import Task
from fedtalk_ray.training.phases.speech import check_sound
from fedtalk_ray.training.told_lips import lips_wanted, tell

MOUTH_WEIGHT = 3.0
"""How much more the mouth's pixels count than the rest of what is shown."""
TRUE_LATENTS = 0.2
"""Share of windows that are painted from their true latents, so that a decoder for soft ones does not spoil those."""
ADVERSARY_FROM = 0.25
"""Share of the phase after which the adversary's word counts: before, it knows nothing."""
CUT = 64
"""Pixels a side of what VGG-16 sees of a window, elsewhere in each step: all of it would take twice as long."""


class Painting(nn.Module):
    """The two networks that learn: the pipeline's decoder, and its adversary."""

    def __init__(self, decoder: nn.Module, adversary: Adversary) -> None:
        super().__init__()
        self.decoder, self.adversary = decoder, adversary


def sharpness_phase(
    pipeline: TalkingHeadPipeline, config: SharpnessConfig, stream: StreamConfig, true_lips: float, device: str = "cpu"
) -> ModuleSteps:
    """true_lips: share of windows that are predicted from their true lip shapes (`local.true_lips`)."""
    vgg = VggFeatures().to(device) if config.vgg else None
    painter = Painter(pipeline, Adversary().to(device), config, true_lips, vgg)
    wanted = Wanted(pictures=True, lips=lips_wanted(bare_denoiser(pipeline.denoiser), true_lips))

    def losses(task: Task, rng: np.random.Generator) -> Iterator[Loss]:
        batches = task.people.batches(
            task.client,
            window=painter.window,
            windows=config.steps * config.batch_size,
            batch_size=config.batch_size,
            seed=task.seed,
            stream=stream,
            wanted=wanted,
        )
        judged = task.index >= ADVERSARY_FROM * (task.phase.count - 1)
        pipeline.denoiser.eval()
        return (painter.loss(batch, rng, judged) for batch in batches)

    others = {"encoder": pipeline.autoencoder.encoder, "denoiser": pipeline.denoiser}
    if vgg is not None:
        others["vgg"] = vgg
    return ModuleSteps(painter.networks, config, losses, device, frozen_modules=others)


class Painter:
    """The loss of the phase, on windows of a pipeline's clients."""

    def __init__(
        self,
        pipeline: TalkingHeadPipeline,
        adversary: Adversary,
        config: SharpnessConfig,
        true_lips: float,
        vgg: VggFeatures | None = None,
    ) -> None:
        """vgg: where `config.vgg` weighs it."""
        assert sees_reference(pipeline.autoencoder)  # `ResidentModel` has refused any other
        self._pipeline, self._config, self._true_lips, self._vgg = pipeline, config, true_lips, vgg
        self._autoencoder = pipeline.autoencoder
        self._base = bare_denoiser(pipeline.denoiser)
        self.window = int(self._base.config.window)
        self.networks = Painting(self._autoencoder.decoder, adversary)
        self._scheduler = copy.copy(pipeline.scheduler)
        self._scheduler.set_timesteps(DEFAULT_STEPS)

    def loss(self, batch: PictureBatch, rng: np.random.Generator, judged: bool) -> Loss:
        """Of `config.frames` frames of each window. judged: whether the adversary's word counts."""
        check_sound(batch.speech)
        pixels, sounds, points = vary_seen_and_heard(batch, rng, self._base.config.speech)
        pixels = pixels.to(self._autoencoder.device)
        predicted, bends = self._predicted(pixels, sounds, points, batch, rng)
        frames = torch.from_numpy(rng.permuted(np.tile(np.arange(self.window), (len(batch), 1)), axis=1))
        frames = frames[:, : self._config.frames].to(pixels.device)
        rows = torch.arange(len(batch), device=pixels.device)[:, None]
        latents = predicted[rows, frames].flatten(0, 1) / scaling_factor(self._autoencoder)
        true = self._autoencoder.window(pixels[:, 1:][rows, frames].flatten(0, 1))
        face = self._autoencoder.window(pixels[:, 0]).repeat_interleave(frames.shape[1], dim=0)
        if bends is not None:
            places = rows.expand_as(frames).flatten().cpu(), frames.flatten().cpu()
            face = bend(face, bends[places])
        made = self._autoencoder.windows(latents, face)
        # What is not shown of a window need not look like anything.
        shown = self._autoencoder.window(torch.from_numpy(mask_of(pixels.shape[-1])).to(pixels))
        weights = shown * cell_weights(shown.shape[-1], MOUTH_WEIGHT, self._base.region).to(pixels)
        near = (weights / weights.mean() * (made - true).abs()).mean()
        made, true, face = shown * made, shown * true, shown * face
        loss, terms = self._with_adversary(near, made, true, face, judged)
        if self._vgg is not None:
            top, left = rng.integers(0, max(1, made.shape[-1] - CUT + 1), 2)
            cut = (..., slice(top, top + CUT), slice(left, left + CUT))
            apart = self._vgg.distance(made[cut], true[cut])
            loss, terms = loss + self._config.vgg * apart, terms | {"vgg": float(apart.detach())}
        return loss, terms

    @torch.no_grad()
    def _predicted(
        self,
        pixels: torch.Tensor,
        sounds: torch.Tensor,
        points: torch.Tensor,
        batch: PictureBatch,
        rng: np.random.Generator,
    ) -> tuple[torch.Tensor, Bends | None]:
        """Scaled latents [B, T, C, h, w], the mean that generation begins with or some true ones, and what references
        are bent by, [B, T] of them, None where nothing is."""
        base = self._base
        latents = encode_pixels(self._autoencoder, pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        told = batch.identity, batch.lips, batch.reference_lips, points
        windows = WindowBatch(latents[:, 1:].cpu(), sounds, latents[:, 0].cpu(), *told)
        bends = tell(base, windows, self._true_lips, rng)
        windows = windows.to(base.device)
        nothing, first = torch.zeros_like(windows.latents), windows.reference
        time = self._scheduler.timesteps[0]
        times = time.to(base.device).expand(len(batch))
        given = nothing, times, windows.speech, first, None, windows.identity, windows.lips
        more = base.told(windows.reference_lips, windows.bent)
        answer = self._pipeline.denoiser(*given, **more).float()
        mean = self._scheduler.step(answer, time, nothing).pred_original_sample
        motion = base.to_residual(more["bent"], first) if "bent" in more else 0.0
        shown = base.from_residual(motion + base.certainty * (mean - motion), first)
        kept = torch.from_numpy(rng.random(len(batch)) < TRUE_LATENTS)
        shown[kept] = windows.latents[kept]
        return shown, bends

    def _with_adversary(
        self, near: torch.Tensor, made: torch.Tensor, true: torch.Tensor, face: torch.Tensor, judged: bool
    ) -> Loss:
        """face: the reference, masked like the others."""
        adversary, config = self.networks.adversary, self._config
        true = true.detach().requires_grad_()
        real, real_seen = adversary(true, face)
        fake, _ = adversary(made.detach(), face)
        learned = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        if config.gradient_penalty:
            (slope,) = torch.autograd.grad(real.sum(), true, create_graph=True)
            learned = learned + config.gradient_penalty / 2 * slope.square().sum((1, 2, 3)).mean()
        terms = {"near": float(near.detach()), "adversary": float(learned.detach())}
        if not judged:
            return near + learned, terms
        # The decoder is judged by an adversary that does not give way to it.
        fixed = {name: value.detach() for name, value in adversary.named_parameters()}
        fake, fake_seen = functional_call(adversary, fixed, (made, face))
        pairs = zip(fake_seen, real_seen, strict=True)
        seen = torch.stack([(one - other.detach()).abs().mean() for one, other in pairs]).mean()
        terms |= {"seen": float(seen.detach()), "fooled": float(fake.detach().mean())}
        return near + config.perceptual * seen - config.adversarial * fake.mean() + learned, terms
