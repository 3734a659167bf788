"""The loss of a backbone that is taught on pixels: one pass, decoded by the frozen decoder, as MuseTalk is trained.

L1 between what the decoder makes of the prediction and of the frame's own latents: what the decoder loses of a frame no
prediction could give back. (MuseTalk 1.5 takes the frame itself.) TDC is on latents, as everywhere, and what MuseTalk's
second stage adds, adversaries and a sync network, is not here.
"""

from collections.abc import Callable
from typing import Any

import torch

from fedtalk_ray.recipe import LossConfig
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.losses import LossTerms, cell_weights, temporal_denoising_consistency

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Scaled latents [N, C, h, w] to pixels [N, 3, S, S]; differentiable."""


def pixel_loss(
    backbone: Any,
    decode: Decode,
    last_timestep: int,
    batch: WindowBatch,
    config: LossConfig,
    vgg: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> LossTerms:
    """`LossTerms` whose `diffusion` is the L1; `noise_bias` and `speech_dropout` say nothing here.

    MuseTalk's first stage has `mouth_weight` 1, `tdc` 0, and beside L1 .01 of VGG-19's features at four scales; `vgg`
    has two stages of VGG-16.

    backbone: with `taught_on` "pixels". vgg: unlikeness of pixels [N, 3, S, S], weighed by `config.perceptual`.
    """
    if config.perceptual and vgg is None:
        raise ValueError("the loss asks for perceptual and was given no network for it")
    target, given = backbone.split(batch.latents)
    sample = torch.cat([torch.zeros_like(target), given], dim=2)
    times = torch.full((len(target),), last_timestep, device=target.device)
    predicted = backbone(sample, times, batch.speech, batch.reference, None, batch.identity).to(target.dtype)
    made = decode(predicted.flatten(0, 1)).float()
    with torch.no_grad():
        truth = decode(target.flatten(0, 1)).float()
    weights = cell_weights(made.shape[-1], config.mouth_weight, backbone.region).to(made)
    l1 = (weights * (made - truth).abs()).mean()
    nothing = l1.new_zeros(())
    tdc = temporal_denoising_consistency(predicted, target) if config.tdc and target.shape[1] > 1 else nothing
    perceptual = nothing if vgg is None or not config.perceptual else vgg(made, truth)
    total = l1 + config.tdc * tdc + config.perceptual * perceptual
    return LossTerms(total, l1, tdc, nothing, nothing, perceptual, nothing)
