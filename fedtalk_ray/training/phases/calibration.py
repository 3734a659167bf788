"""Phase `calibration`, statistics in three rounds: how much of what the network predicts is worth showing.

A backbone trained on a few clips predicts more than it knows: where a cheek moves, or how this person's chin looks.
On clips that were not trained on, a regression of the truth on the prediction says by what share to shrink it; where a
cell of the face cannot be predicted, the reference stays. Three maps of latent cells, stored in the denoiser:

certainty   of the mean: the least-squares factor, sum(mean * truth) / sum(mean^2), within [0, 1], and all of them in
            the mouth, and all around it, larger or smaller as frames come nearest to true ones (`chosen`).
liveliness  of what a sample adds to the mean, outside the mouth: so much that frames differ as real ones do, the mean
            over clips.
detail      of what the autoencoder loses of the reference face: the least-squares factor, within [0, 1].

Numerators and denominators are means over clips, so clients send those and no picture; who is several clients deals
her clips to them. Each round needs what the one
before gave: products, then how near frames come, then what they lack (`Calibration`).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from fedtalk_ray.errors import NothingToGive, TrainingError
from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.media.face_template import mouth_mask
from fedtalk_ray.media.lips import lips_of
from fedtalk_ray.model.autoencoder import decode_pixels, frames_to_pixels, sees_reference
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.motion_units import mouth_blend
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.sampling import motion_of, sample_parts
from fedtalk_ray.model.told import NOTHING_TOLD, Told, told_of
from fedtalk_ray.recipe import SMALLEST_SHARE
from fedtalk_ray.shards.format import LANDMARKS, Piece
from fedtalk_ray.training.phases.phase import Fitted, Score, Task, state_digest, until_halted
from fedtalk_ray.training.phases.statistics import ROUNDING

MOST_CLIPS = 60
"""Clips of a client that are calibrated by; more say nothing new."""
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
MOST_FRAMES = 15
"""Frames of a clip that are compared with decoded ones, nine times each, evenly out of all: neighbours say the same."""
MAX_PIXELS = 20_000_000
"""Pixels of all those frames together: 1,000 frames of 144 pixels. Of larger ones each clip gives fewer, so that what a
large autoencoder decodes is bounded."""
LEAST_CERTAINTY = 0.5
"""Of the mouth's cells, on average. Models of drawn people have 0.86 to 1.07, one of GRID's speakers (six rounds of
`faces`) 0.65; by what clients of one of drawn people send, a liar among eight could bring it to 0.12, and hardly a lip
would move. Lips of a network that bends its reference move in any case, and it may add nothing."""
DETAIL_UNIT = 100.0
"""What products of lost and missing detail are multiplied by, being squares of a tenth and less: all figures are about
1, as the vector is clipped and noise is added to all of it alike."""


@dataclass
class Prediction:
    """One clip spoken from its first frame.

    face: that frame, uint8 [S, S, 3], and `reference`, its latents [1, C, h, w]. frames: the true ones, uint8
    [T, S, S, 3]. motion: of the reference bent to each frame's lips, residuals [T, C, h, w]; 0 for a network that takes
    none. truth, mean, sample: what they are beyond that, residuals alike. told: what the network was told of lips, and
    places the numbers of the frames in that.
    """

    face: np.ndarray
    reference: torch.Tensor
    frames: np.ndarray
    truth: torch.Tensor
    mean: torch.Tensor
    sample: torch.Tensor
    motion: torch.Tensor
    told: Told = NOTHING_TOLD
    places: torch.Tensor | None = None

    def fewer(self, count: int) -> "Prediction":
        """At most so many of its frames, evenly out of all."""
        count = min(count, len(self.frames))
        kept = ((np.arange(count) + 0.5) * len(self.frames) / count).astype(int)
        names = ("frames", "truth", "mean", "sample", "motion", *(("places",) if self.places is not None else ()))
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


class Calibration:
    """Statistics of what a model predicts of its clients' held-out clips; sets the denoiser's three maps.

    The vector is three sections, one a round, each begun by a 1 that the rest of it is divided by: products [7, h, w],
    gains in PSNR [factors, 2], and products [2, h, w].
    """

    def __init__(
        self,
        pipeline: TalkingHeadPipeline,
        seed: int,
        shown: float = 1.0,
        score: Score | None = None,
        noisy: bool = False,
    ) -> None:
        """Nothing is calibrated of a network that predicts noise: it has no mean. shown: `CalibrationConfig.shown`.
        score: None where nobody asks. noisy: whether means have noise in them, and may be what no clips give."""
        self._pipeline, self._seed, self._shown, self._score, self._noisy = pipeline, seed, shown, score, noisy
        self._base: TalkingHeadDenoiser = bare_denoiser(pipeline.denoiser)
        side = int(self._base.config.latent_size)
        self._shapes = ((7, side, side), (len(FACTORS_TRIED), 2), (2, side, side))
        self._means = self._base.config.prediction_type != "epsilon"

    def initial(self) -> np.ndarray:
        return np.zeros(sum(1 + int(np.prod(shape)) for shape in self._shapes), np.float32)

    def fit(self, task: Task) -> Fitted:
        update = np.zeros_like(task.shared)
        if not self._means:
            return Fitted(update)
        sections = self._sections(task.shared)
        if task.index and sections[0] is None:
            raise NothingToGive("the round before gave nothing to calibrate by")
        self._pipeline.denoiser.eval()
        columns = ("frames", "latents", "speech", *((LANDMARKS,) if self._told() else ()))
        pieces = list(until_halted(task, task.people.pieces(task.client, "val", columns)))
        if not pieces:
            raise NothingToGive("it has no held-out clip to calibrate by")
        # A person's clips are dealt to the clients that she is; each of them by all would say the same.
        turn, count = task.people.turn(task.client)
        pieces = pieces[turn % len(pieces) :: count]
        few = pieces[:: -(-len(pieces) // MOST_CLIPS)]
        if task.index == 2 and sees_reference(self._pipeline.autoencoder):
            few = []  # `lacking_and_lost` is 0 then, whatever is said
        spoken = [predict(self._pipeline, piece, self._seed) for piece in until_halted(task, few)]
        if task.index == 0:
            figures = products(spoken)
        elif task.index == 1:
            figures = nearness(self._pipeline, affordable(spoken), self._best(sections[0]))
        else:
            self._show(sections[0], sections[1])
            figures = lacking_and_lost(self._pipeline, affordable(spoken))
        if not bool(figures.isfinite().all()):
            raise TrainingError("what is predicted of its clips holds values that are no numbers")
        begin = sum(1 + int(np.prod(shape)) for shape in self._shapes[: task.index])
        update[begin] = 1
        update[begin + 1 : begin + 1 + figures.numel()] = figures.flatten().cpu().numpy()
        return Fitted(update, reliability=self._score(task) if self._score else None)

    def finish(self, vector: np.ndarray) -> None:
        sections = self._sections(vector)
        if sections[0] is not None:
            self._show(sections[0], sections[1])
        if sections[2] is not None:
            lacking, lost = sections[2]
            self._base.detail.copy_(factor(lacking, lost).clamp(0, 1))

    def frozen(self) -> bytes:
        state = self._pipeline.denoiser.state_dict()
        # Where adapters lie around the denoiser, its names have a prefix.
        return state_digest(state, (name for name in state if name.endswith(("certainty", "liveliness"))))

    def _sections(self, vector: np.ndarray) -> list[torch.Tensor | None]:
        """What every round gave, float32 on the CPU; None where it gave nothing. Raises `TrainingError` for what no
        mean of clients' figures is."""
        found: list[torch.Tensor | None] = []
        begin = 0
        for shape in self._shapes:
            count = int(np.prod(shape))
            share, figures = float(vector[begin]), vector[begin + 1 : begin + 1 + count]
            if not self._noisy and abs(share) > ROUNDING and not SMALLEST_SHARE <= share <= 1 + ROUNDING:
                raise TrainingError(
                    f"the mean of what clients sent to calibrate by is counted {share:.3g} times: one sent other "
                    "figures than its own; begin another run without it"
                )
            found.append(torch.from_numpy(np.array(figures / share)).view(shape) if share > 0 else None)
            begin += 1 + count
        return found

    def _told(self) -> bool:
        return bool(self._base.takes_reference_lips() or self._base.takes_bent())

    def _best(self, first: torch.Tensor | None) -> torch.Tensor:
        if first is None:
            raise TrainingError("the round before gave nothing to calibrate by")
        return factor(first[0], first[1]).clamp(0, 1)

    def _show(self, first: torch.Tensor | None, second: torch.Tensor | None) -> None:
        """Sets certainty and liveliness from the first two sections; without the second, from least squares alone."""
        base, best = self._base, self._best(first)
        assert first is not None
        certainty = best if second is None else best * chosen(second, len(best), base.region)
        if base.takes_bent():
            certainty = self._shown * certainty
        else:
            # Raised alike, so that cells which cannot be predicted stay below the others.
            mouth = base.mouth()
            certainty = certainty + mouth * max(0.0, LEAST_CERTAINTY - float((certainty * mouth).sum() / mouth.sum()))
        _, _, true, mean, added, bent, together = first
        # What is shown without a sample: the bent reference, and of what the network adds to it as much as is certain.
        still = bent + 2 * certainty * together + certainty.square() * mean
        lively = factor(true - still, added).clamp(min=0).sqrt()
        base.certainty.copy_(certainty)
        base.liveliness.copy_(lively.clamp(max=MAX_LIVELINESS) * (1 - mouth_blend(len(best), base.region)))


def predict(pipeline: TalkingHeadPipeline, piece: Piece, seed: int) -> Prediction:
    """Spoken as from a photo: of the first frame's lips what it shows itself is told, where that is taken."""
    base = bare_denoiser(pipeline.denoiser)
    latents, speech = (torch.tensor(values).float() for values in (piece.latents, piece.speech))
    who = torch.tensor(piece.identity).float() if piece.identity.size else None
    generator = torch.Generator().manual_seed(seed)
    told = NOTHING_TOLD
    if len(piece.landmarks):
        told = told_of(base, latents[0], piece.landmarks[0], speech, lips_of(piece.landmarks[:1], 0))
    given = pipeline.denoiser, pipeline.scheduler, latents[0], speech
    parts = sample_parts(*given, generator=generator, identity=who, told=told)
    mean, sample = (torch.cat(part) for part in zip(*parts, strict=True))
    latents, places = latents.to(base.device), torch.arange(len(latents))
    truth = base.to_residual(latents[None], latents[:1])[0]
    motion = motion_of(base, latents[:1], told, places) + torch.zeros_like(truth)
    truth, mean, sample = (each - motion for each in (truth, mean, sample))
    return Prediction(piece.frames[0], latents[:1], piece.frames, truth, mean, sample, motion, told, places)


def products(spoken: list[Prediction]) -> torch.Tensor:
    """[7, h, w], means over clips: of mean * truth, of mean^2, and of how the true frames, the mean, what the sample
    adds and the bent reference move, and that together with the mean.

    The last five in units of each clip's own motion, or who moves most would have everybody tremble; a still clip says
    nothing.
    """
    parts = []
    for each in spoken:
        true = each.motion + each.truth
        amount = float(moved(true).sum())
        unit = each.truth[0, 0].numel() / amount if amount else 0.0
        parts.append(
            torch.stack(
                [
                    (each.mean * each.truth).mean((0, 1)),
                    each.mean.square().mean((0, 1)),
                    unit * moved(true),
                    unit * moved(each.mean),
                    unit * moved(each.sample - each.mean),
                    unit * moved(each.motion),
                    unit * (moved(each.motion + each.mean) - moved(each.motion) - moved(each.mean)) / 2,
                ]
            )
        )
    return torch.stack(parts).mean(0)


def affordable(spoken: list[Prediction]) -> list[Prediction]:
    """The clips with at most `MOST_FRAMES` of each, so few that `MAX_PIXELS` are not exceeded, and at least one."""
    pixels = sum(each.face[..., 0].size for each in spoken)
    share = min(MOST_FRAMES, MAX_PIXELS // max(1, pixels))
    return [each.fewer(max(1, share)) for each in spoken]


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
def nearness(pipeline: TalkingHeadPipeline, spoken: list[Prediction], best: torch.Tensor) -> torch.Tensor:
    """[factors, 2], dB: how much nearer frames come in the mouth and around it, the mean over frames and clips, when
    `best` [h, w] times each of `FACTORS_TRIED` is shown of the mean, than when the first is."""
    base = bare_denoiser(pipeline.denoiser)
    best = best.to(base.device)
    reached = torch.zeros(len(FACTORS_TRIED), 2)
    for each in spoken:
        truth = frames_to_pixels(each.frames).to(base.device)
        bent = None if each.places is None else pipeline.bent(each.face, each.told, each.places)
        inside = torch.from_numpy(mouth_mask(truth.shape[-1])).to(base.device)
        around = 1 - inside
        if sees_reference(pipeline.autoencoder):
            # Only what is laid over the reference can come nearer.
            around = around * torch.from_numpy(mask_of(truth.shape[-1]) > 0).to(around)
        for row, tried in zip(reached, FACTORS_TRIED, strict=True):
            shown = base.from_residual((each.motion + tried * best * each.mean)[None], each.reference)[0]
            made = decode_pixels(pipeline.autoencoder, shown, frames_to_pixels(each.face[None]), bent=bent)
            errors = (made - truth).square().mean(1)
            for place, region in enumerate((inside, around)):
                row[place] -= 10 * ((errors * region).sum((1, 2)) / region.sum()).clamp(min=1e-8).log10().mean().cpu()
    return (reached - reached[:1]) / len(spoken)


def chosen(reached: torch.Tensor, side: int, region: str = "face") -> torch.Tensor:
    """What to multiply the least-squares factors by, [side, side]: one of `FACTORS_TRIED` in the mouth, one around it.

    reached: `nearness`. The largest factor whose frames come within `MAX_PSNR_LOSS_DB` of the nearest.
    """
    mouth, around = (
        max(tried for tried, psnr in zip(FACTORS_TRIED, column, strict=True) if psnr >= column.max() - MAX_PSNR_LOSS_DB)
        for column in reached.T
    )
    blend = mouth_blend(side, region)
    return mouth * blend + around * (1 - blend)


@torch.no_grad()
def lacking_and_lost(pipeline: TalkingHeadPipeline, spoken: list[Prediction]) -> torch.Tensor:
    """[2, h, w], means over frames and clips: lost * missing, and lost^2.

    `lost` is what the autoencoder loses of the reference, `missing` what the pictures that would be shown lack. 0
    for an autoencoder that takes detail from the reference itself.
    """
    base = bare_denoiser(pipeline.denoiser)
    if sees_reference(pipeline.autoencoder):
        return torch.zeros(2, base.config.latent_size, base.config.latent_size)
    parts = []
    for each in spoken:
        residual = each.motion + base.shown(each.mean, each.sample)
        shown = base.from_residual(residual[None], each.reference)[0]
        lost = pipeline.lost_detail(each.face, each.reference[0])
        missing = frames_to_pixels(each.frames) - decode_pixels(pipeline.autoencoder, shown).float().cpu()
        pairs = torch.stack([(lost * missing).mean((0, 1)), lost.square().mean(0)])
        parts.append(DETAIL_UNIT * F.adaptive_avg_pool2d(pairs, base.config.latent_size))
    return torch.stack(parts).mean(0)
