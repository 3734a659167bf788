"""Pretraining, last of all: how much of what the network predicts is worth showing, judged on clips it never saw.

A backbone trained on a few clips predicts more than it knows: where a cheek moves, or how this person's chin looks.
On clips that were not trained on, a regression of the truth on the prediction says by what share to shrink it; where a
cell of the face cannot be predicted, the reference stays. Three maps of latent cells, stored in the denoiser:

certainty   of the mean: the least-squares factor, sum(mean * truth) / sum(mean^2), within [0, 1], and all of them in
            the mouth, and all around it, larger or smaller as frames come nearest to true ones (`shrinkage`).
liveliness  of what a sample adds to the mean, outside the mouth: so much that frames differ as real ones do, the mean
            over clips.
detail      of what the autoencoder loses of the reference face: the least-squares factor, within [0, 1].
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from fedtalk_ray.media.face_template import mouth_mask
from fedtalk_ray.model.autoencoder import decode_pixels, frames_to_pixels
from fedtalk_ray.model.denoiser import mouth_blend
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.sampling import sample_parts
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import Piece

FACTORS_TRIED = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
"""What the least-squares factors may be multiplied by: they listen to the frames with the largest errors, decibels to
all frames alike. On GRID a model of 600 steps wants 0.8 in the mouth, one of 3,857 steps 1; drawn people want 1.1."""
MAX_PSNR_LOSS_DB = 0.05
"""Of two factors that are nearly as good the one that moves more is taken: it may cost so much of the PSNR. The least
motion that scores best is a mouth that hardly opens."""
MAX_LIVELINESS = 1.4
"""Where a real face moves more than a sample does, the sample's motion is enlarged by so much at most. On held-out GRID
clips it is so nearly everywhere: jitter is 0.83 times the truth's. Another 0.2 brought it up by 0.1, and took 0.001 to
0.002 of likeness and 0.06 dB."""
MAX_PIXELS = 20_000_000
"""Pixels of true frames that are compared with decoded ones, nine times each: all of sixty clips of three seconds at 64
pixels. Of more or larger ones each clip gives fewer frames, so that what a large autoencoder decodes is bounded."""


@dataclass
class Prediction:
    """One clip spoken from its first frame.

    face: that frame, uint8 [S, S, 3], and `reference`, its latents [1, C, h, w]. frames: the true ones, uint8
    [T, S, S, 3]. truth, mean, sample: residuals [T, C, h, w].
    """

    face: np.ndarray
    reference: torch.Tensor
    frames: np.ndarray
    truth: torch.Tensor
    mean: torch.Tensor
    sample: torch.Tensor

    def fewer(self, count: int) -> "Prediction":
        """At most so many of its frames, evenly out of all."""
        count = min(count, len(self.frames))
        kept = ((np.arange(count) + 0.5) * len(self.frames) / count).astype(int)
        return replace(
            self, frames=self.frames[kept], truth=self.truth[kept], mean=self.mean[kept], sample=self.sample[kept]
        )


def calibrate(pipeline: TalkingHeadPipeline, pieces: Iterable[Piece], seed: int) -> None:
    """Sets `certainty`, `liveliness` and `detail` of the pipeline's denoiser from clips that it was not trained on.

    Needs the pieces' frames, latents and speech. Nothing changes for a network that predicts noise: it has no mean.
    """
    denoiser = pipeline.denoiser.eval()
    if denoiser.config.prediction_type == "epsilon":
        return
    spoken = [predict(pipeline, piece, seed) for piece in pieces]
    agreeing = total((each.mean * each.truth).sum((0, 1)) for each in spoken)
    best = factor(agreeing, total(each.mean.square().sum((0, 1)) for each in spoken)).clamp(0, 1)
    decoded = affordable(spoken)
    denoiser.certainty.copy_(best * shrinkage(pipeline, decoded, best))
    # In units of each clip's own motion, or who moves most would have everybody tremble; a still clip says nothing.
    motion = [float(moved(each.truth).sum()) for each in spoken]
    weighted = [(1 / amount if amount else 0.0, each) for amount, each in zip(motion, spoken, strict=True)]
    missing = total(weight * (moved(each.truth) - moved(denoiser.certainty * each.mean)) for weight, each in weighted)
    added = total(weight * moved(each.sample - each.mean) for weight, each in weighted)
    lively = factor(missing, added).clamp(min=0).sqrt()
    denoiser.liveliness.copy_(lively.clamp(max=MAX_LIVELINESS) * (1 - mouth_blend(denoiser.config.latent_size)))
    lacking, lost = total(lost_and_missing(pipeline, each) for each in decoded)
    denoiser.detail.copy_(factor(lacking, lost).clamp(0, 1))


def predict(pipeline: TalkingHeadPipeline, piece: Piece, seed: int) -> Prediction:
    latents, speech = (torch.tensor(values).float() for values in (piece.latents, piece.speech))
    who = torch.tensor(piece.identity).float() if piece.identity.size else None
    generator = torch.Generator().manual_seed(seed)
    parts = sample_parts(pipeline.denoiser, pipeline.scheduler, latents[0], speech, generator=generator, identity=who)
    mean, sample = (torch.cat(part) for part in zip(*parts, strict=True))
    truth = pipeline.denoiser.to_residual(latents[None], latents[:1])[0]
    return Prediction(piece.frames[0], latents[:1], piece.frames, truth, mean, sample)


def affordable(spoken: list[Prediction]) -> list[Prediction]:
    """The clips with so few frames of each that `MAX_PIXELS` are not exceeded, and at least one."""
    share = MAX_PIXELS // sum(each.face[..., 0].size for each in spoken)
    return [each.fewer(max(1, share)) for each in spoken]


def total(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(parts)).sum(0)


def factor(upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """upper / lower, [h, w], each first averaged over neighbouring cells and with the mirror image."""
    upper, lower = (
        F.avg_pool2d(F.pad((each + each.flip(1))[None, None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0, 0]
        for each in (upper, lower)
    )
    return upper / lower.clamp(min=1e-8)


def moved(residuals: torch.Tensor) -> torch.Tensor:
    """Squared differences of consecutive frames of [T, C, h, w], summed cell by cell: [h, w]."""
    return (residuals[1:] - residuals[:-1]).square().sum((0, 1))


@torch.no_grad()
def shrinkage(pipeline: TalkingHeadPipeline, spoken: list[Prediction], best: torch.Tensor) -> torch.Tensor:
    """What to multiply the factors `best` [h, w] by, [h, w]: one of `FACTORS_TRIED` in the mouth, one around it.

    The largest whose frames, shown as `best` times it of the mean, have a mean PSNR there within `MAX_PSNR_LOSS_DB` of
    the highest.
    """
    denoiser = pipeline.denoiser
    reached = torch.zeros(len(FACTORS_TRIED), 2)
    for each in progress(spoken, len(spoken), "calibrate"):
        truth = frames_to_pixels(each.frames)
        inside = torch.from_numpy(mouth_mask(truth.shape[-1]))
        for row, tried in zip(reached, FACTORS_TRIED, strict=True):
            shown = denoiser.from_residual((tried * best * each.mean)[None], each.reference)[0]
            errors = (decode_pixels(pipeline.autoencoder, shown) - truth).square().mean(1)
            for place, region in enumerate((inside, 1 - inside)):
                row[place] -= 10 * ((errors * region).sum((1, 2)) / region.sum()).clamp(min=1e-8).log10().mean()
    reached = reached / len(spoken)
    mouth, around = (
        max(tried for tried, psnr in zip(FACTORS_TRIED, column, strict=True) if psnr >= column.max() - MAX_PSNR_LOSS_DB)
        for column in reached.T
    )
    blend = mouth_blend(denoiser.config.latent_size)
    return mouth * blend + around * (1 - blend)


@torch.no_grad()
def lost_and_missing(pipeline: TalkingHeadPipeline, spoken: Prediction) -> torch.Tensor:
    """sum(lost * missing) and sum(lost^2) over frames, colours and pixels of each cell, [2, h, w]: `lost` is what the
    autoencoder loses of the reference, `missing` what the pictures that would be shown lack."""
    denoiser = pipeline.denoiser
    shown = denoiser.from_residual(denoiser.shown(spoken.mean, spoken.sample)[None], spoken.reference)[0]
    lost = pipeline.lost_detail(spoken.face, spoken.reference[0])
    missing = frames_to_pixels(spoken.frames) - decode_pixels(pipeline.autoencoder, shown)
    products = torch.stack([(lost * missing).sum((0, 1)), len(missing) * lost.square().sum(0)])
    return F.adaptive_avg_pool2d(products, denoiser.config.latent_size)
