"""The loss that a pipeline's backbone is trained by: diffusion on latents, or one pass on pixels."""

from functools import partial

import torch

from fedtalk_ray.model.autoencoder import decode_pixels
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, make_critic, make_sync_loss
from fedtalk_ray.model.st_lpips import VggFeatures
from fedtalk_ray.recipe import LossConfig
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.losses import LossTerms, window_loss
from fedtalk_ray.training.pixel_loss import pixel_loss


class Objective:
    """`window_loss` or `pixel_loss`, with what of a pipeline judges predictions. Nothing of it is trained."""

    def __init__(self, pipeline: TalkingHeadPipeline, perceptual: bool = False) -> None:
        """perceptual: whether `LossConfig.perceptual` will be asked for; then a backbone that is taught on pixels needs
        VGG-16."""
        self._scheduler = pipeline.scheduler
        self.critic = make_critic(pipeline)
        self._sync_loss = make_sync_loss(pipeline)
        self._vgg: VggFeatures | None = None
        if self._on_pixels(pipeline.denoiser):
            pipeline.autoencoder.requires_grad_(False)
            self._decode = partial(decode_pixels, pipeline.autoencoder)
            self._vgg = VggFeatures().to(pipeline.device) if perceptual else None

    def __call__(
        self, model: torch.nn.Module, batch: WindowBatch, config: LossConfig, generator: torch.Generator
    ) -> LossTerms:
        """model: the pipeline's denoiser, bare or inside a PEFT model. All randomness comes from the generator."""
        if not self._on_pixels(model):
            return window_loss(model, self._scheduler, batch, config, generator, self.critic, self._sync_loss)
        last = int(self._scheduler.config.num_train_timesteps) - 1
        distance = None if self._vgg is None else self._vgg.distance
        # Adapters act within the backbone itself.
        return pixel_loss(bare_denoiser(model), self._decode, last, batch, config, distance)

    @torch.no_grad()
    def held_out(
        self, model: torch.nn.Module, batch: WindowBatch, config: LossConfig, generator: torch.Generator, draws: int
    ) -> float:
        """The mean `diffusion` of so many draws; where nothing is drawn, of one, a window at a time: pictures that are
        decoded take far more memory than latents."""
        if not self._on_pixels(model):
            losses = [self(model, batch, config, generator).diffusion for _ in range(draws)]
        else:
            losses = [self(model, each, config, generator).diffusion for each in batch.each()]
        return float(torch.stack(losses).mean())

    @staticmethod
    def _on_pixels(model: torch.nn.Module) -> bool:
        return bool(bare_denoiser(model).taught_on == "pixels")
