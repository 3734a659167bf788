"""What a training goes through: its phases in their order, and every setting of what clients compute in them.

A phase is rounds of one kind, and all kinds are alike to who aggregates: a vector goes out, every client answers with a
vector that is to be added, and their weighted mean is added to it.

units        statistics, one round: the latents' units, and along which axes lips move
decoder      the autoencoder's decoder learns the detail that its encoder drops
identity     the identity encoder learns who is who; a client of one person has nothing to say
sync         the sync network learns which lips belong to which sound
speech       the sound is regressed on lip shapes, and on motion where no reference is bent to them
hearing      statistics, one round: the same regression in closed form, of what a pretrained speech encoder hears
mouths       statistics, one round: what opened lips show, where references are bent to lips
faces        the denoiser learns what lips of a shape look like on a face: a shared adapter, or all of it
calibration  statistics, three rounds: how much of what is predicted is worth showing
sharpness    the decoder of the autoencoder "lower-face" learns to paint what is predicted as sharp as the reference
"""

from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

PhaseName = Literal[
    "units", "decoder", "identity", "sync", "speech", "hearing", "mouths", "faces", "calibration", "sharpness"
]

PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
"""All phases in the order in which they run."""

STATISTICS_ROUNDS = {"units": 1, "hearing": 1, "mouths": 1, "calibration": 3}
"""Phases in which clients send statistics of their clips, and in how many rounds."""

VERSION = 19
"""Of what rounds compute from the same settings: a run of another one is not resumed. Raise it with every change."""

STATISTICS_FROM = 1000
"""Clients a round, real or simulated, from which statistics stand out of the noise that protects them, at weights of
about 1 (`privacy.samples_cap`). At 200 and epsilon 8 two of five lip axes were noise (GRID)."""

LARGEST_STATISTICS = 40.0
"""Bound on a client's statistics, where there is no noise. Honest ones are 14 to 67 long, of
`hearing` about 9, of `mouths` 1 to 13; one that is cut counts for less."""

SMALLEST_SHARE = 0.25
"""Without noise: the least mean of the 1 that every client's statistics hold. Below it one wrote another figure there,
and all that is divided by it is as large as that one likes."""

STATISTICS_NORM = 10.0
"""With noise: bound on a client's weighted statistics. At weight 1 their norm is 14 to 53, at the weight of a few clips
far less. What is clipped keeps its proportions, the 1 among them that it is divided by."""


@dataclass(frozen=True)
class PhaseRounds:
    """The rounds of one phase, by their number in the run, both ends included."""

    name: PhaseName
    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first + 1


BETAS = (0.9, 0.999)
"""AdamW's: how much of the mean of gradients, and of their squares, a step keeps."""

WARM_UP = 20
"""One of so many of a phase's steps goes by until the learning rate is at its highest."""


@dataclass(frozen=True)
class Pace:
    """The learning rate of each step. peak: the highest. before: the phase's steps before this round.

    total: the phase's steps in all; None for the same rate throughout.
    """

    peak: float
    before: int = 0
    total: int | None = None

    @classmethod
    def in_round(cls, number: int, phase: PhaseRounds, peak: float, steps: int) -> "Pace":
        """Over all rounds of a phase, of so many steps each, as it is in one of them (its number in the run)."""
        return cls(peak, (number - phase.first) * steps, phase.count * steps)

    def rate(self, step: int) -> float:
        """Of this round's step, from 0: a linear warm-up, then a cosine down to nothing at the phase's end."""
        if self.total is None:
            return self.peak
        place = self.before + step
        return self.peak * min(1.0, (place + 1) / max(1, self.total // WARM_UP)) * cosine(place / self.total)


def cosine(done: float) -> float:
    return 0.5 * (1 + cos(pi * done))


def longest_step(step: int) -> float:
    """How many learning rates a round's step, from 0, of AdamW may move a value, whatever its gradients are.

    Of gradients k steps back the mean and the mean square hold the shares a_k and b_k; by Cauchy and Schwarz mean over
    root of mean square is at most sqrt(sum a_k^2 / b_k), and is that where gradients rise by a ninth a step. Decay of
    weights comes on top.

    >>> [round(longest_step(step), 2) for step in (0, 9, 19, 79)]
    [1.0, 1.04, 1.16, 2.02]
    """
    first, second, steps = BETAS[0], BETAS[1], step + 1
    squared = (1 - first) ** 2 / (1 - second) * (1 - second**steps) / (1 - first**steps) ** 2
    ratio = first**2 / second
    return sqrt(squared * (1 - ratio**steps) / (1 - ratio))


class Section(BaseModel):
    """A part of the tree: immutable, no unknown keys, field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class LossConfig(Section):
    """Weights of the training loss; 0 switches a term off."""

    tdc: float = Field(0.25, ge=0)
    """Temporal-Denoising Consistency: error of frame differences (lambda_tdc in the paper)."""
    motion: float = Field(0.0, ge=0)
    """Squared error of the motion that the sound alone suggests, against the frame's true residual on the reference.
    The phase `speech` does this better: nothing where it comes before. Refused where
    references are bent instead."""
    identity: float = Field(0.0, ge=0)
    """1 - cosine similarity of identity embeddings, generated against true frame."""
    perceptual: float = Field(0.0, ge=0)
    """Distance of the identity encoder's inner features, generated against true frame; of a backbone that is taught on
    pixels that of VGG-16's (`model.st_lpips`)."""
    sync: float = Field(0.0, ge=0)
    """How little a sync network believes that the predicted lips speak the sound (`model.sync.sync_loss`)."""
    mouth_weight: float = Field(5.0, ge=1)
    """How much more the mouth region counts in the diffusion and TDC terms (of a backbone that is taught on pixels: in
    its L1) than the rest of the face. MuseTalk has 1."""
    noise_bias: float = Field(8.0, ge=1)
    """Timesteps are drawn as T * (1 - u^bias), u uniform: 1 is uniform, more dwells on noisy steps, where motion must
    come from the sound; at 8 two windows of five begin from nothing at all. On GRID after 600 steps 4 / 8 / 16 gave the
    mouth 29.61 / 29.75 / 29.80 dB (seen speakers) and 28.37 / 28.42 / 28.40 (unseen)."""
    speech_dropout: float = Field(0.1, ge=0, le=1)
    """Share of windows trained without sound, so that generation can be guided by sound (classifier-free)."""


class LocalConfig(Section):
    """One client's work in one round of the phase `faces`."""

    steps: int = Field(20, ge=1)
    """Optimiser steps on the shared parameters."""
    batch_size: int = Field(4, ge=1)
    """Windows per step (per accumulation micro-step)."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches whose gradients are summed before each step: more windows per step in the same memory."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or plain sgd, whose single step sends the gradient itself (FedSGD)."""
    learning_rate: float = Field(1e-3, gt=0)
    """The optimiser's; its state does not outlive the round. sgd needs a far larger one."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes over all rounds of the phase `faces`. cosine: a short warm-up, then down to nothing at
    the last round, so that a run cannot be given more rounds later. constant: the same in every round."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's, on the shared parameters."""
    vary: bool = True
    """Pictures and voices are varied a little in every window (`training.augment`): a few dozen clips hold a few voices
    and a few heads. False: windows as they were prepared, for clients of so many clips that reading frames costs."""
    true_lips: float = Field(0.9, ge=0, le=1)
    """Share of windows that train with their true lip shapes in place of those that the sound suggests. Nothing where
    the backbone knows no lip axes (the phase `units` fixes them). At 0 the reference's own lips are not told either."""
    clip_norm: float = Field(1.0, gt=0)
    """A step's gradients are scaled down to this global norm. `privacy.clip_norm` is for the client's update."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    autocast: bool = True
    """bf16 where the device has it natively (recent GPUs, CPUs with AVX512-BF16 or AMX), weights in float32. On such a
    CPU a step takes two thirds of the time."""
    identity_steps: int = Field(5, ge=0)
    """Steps on the client's own identity adapter, after the shared ones and with those frozen; it never leaves the
    client."""
    identity_learning_rate: float | None = Field(None, gt=0)
    """The optimiser's on the identity adapter, in rounds and in `fedtalk personalize`. null: `learning_rate`."""
    score_windows: int = Field(12, ge=2)
    """Held-out windows that a client generates to score itself (IDSim, TempStab)."""
    loss: LossConfig = LossConfig()


class AdapterConfig(Section):
    """The LoRA adapters (PEFT): `shared` is federated, `identity` stays with its client."""

    rank: int = Field(8, ge=1)
    """Of `shared`: more can be learned, more is sent."""
    alpha: float = Field(16.0, gt=0)
    """LoRA's scale is alpha / rank."""
    identity_rank: int = Field(4, ge=1)
    """Of `identity`; its alpha is twice this."""


class StrategyConfig(Section):
    """How client updates are weighted and what each client minimises."""

    name: str = "isfa"
    """fedavg: w_k ~ n_k. fedprox: fedavg with a proximal term. isfa: w_k ~ n_k exp(gamma s_k).
    A file in `fedtalk_ray/federation/strategies` adds one under its own name."""
    gamma: float = Field(8.0, ge=0)
    """ISFA: how strongly the reliability score bends the weights; 0 is fedavg. At 8 a client that fails one of the two
    scores counts a fiftieth of one that passes both."""
    alpha: float = Field(0.5, ge=0, le=1)
    """ISFA: s = alpha * IDSim + (1 - alpha) * TempStab."""
    mu: float = Field(0.01, ge=0)
    """FedProx: weight of mu / 2 * ||theta - theta_round||^2 in the client's loss."""
    groups: int = Field(1, ge=1)
    """Secure sums without noise: the cohort is dealt at random to so many groups of 8 at least, each with a sum of its
    own; the update is the median of their averages, value by value. 3 or more, so that one bad group is outvoted."""


class StepsConfig(Section):
    """A phase in which every client takes optimiser steps (AdamW), its learning rate falling over the whole phase."""

    rounds: int = Field(10, ge=1)
    """Rounds of this phase."""
    steps: int = Field(20, ge=1)
    """Optimiser steps of a client in one round."""
    batch_size: int = Field(8, ge=1)
    """Examples a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """At its highest; warm-up and cosine over all rounds."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's."""
    clip_norm: float | None = Field(None, gt=0)
    """`privacy.clip_norm` of this phase: for the client's update, not for a step's gradients. null: that one."""


class SpeechConfig(StepsConfig):
    """The phase `speech`: examples are windows of a few frames."""

    rounds: int = Field(20, ge=1)
    """Rounds of this phase."""
    steps: int = Field(10, ge=1)
    """Optimiser steps of a client in one round."""
    batch_size: int = Field(32, ge=1)
    """Windows a step."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's."""
    dropout: float = Field(0.2, ge=0, le=0.9)
    """Of the speech encoder in this phase (in `faces` it keeps 0.2): with it a few speakers are learned less by heart;
    hundreds need none. `fedtalk-tiny`, whom 1,100 people had taught, was taught by 825 more for five minutes. The
    apertures of sixty strangers then correlate with the true ones by 0.962 without dropout and 0.961 with 0.2 (0.958
    before; 0.985 is as much as can be heard), and move 1.07 and 1.13 times as far as is right."""


class HearingConfig(Section):
    """The phase `hearing`, for sound features of a pretrained encoder (`fedtalk prepare --speech`)."""

    ridge: float = Field(0.5, gt=0)
    """How much weights cost (ridge regression), in units of the features' mean variance. On GRID values between 1/3 and
    1 make no difference; with noise as of a cohort of 1,000 at epsilon 8 added to its sum 3 to 10 did best."""


class CalibrationConfig(Section):
    """The phase `calibration`."""

    shown: float = Field(0.75, ge=0, le=1)
    """How much is shown of what is certain of what a network adds to a bent reference. Certainty is fitted on clips of
    people who taught it, and of others less of it is right. Over mouths that are filled (phase `mouths`) none / 0.05 /
    0.1 / 0.25 of it brought eight GRID speakers by whom settings are chosen to 29.63 29.65 29.67 29.74 dB in the mouth,
    ST-LPIPS to 0.0293 0.0294 0.0295 0.0298 (a still: 0.0300), sharpness to 0.91 0.90 0.89 0.86 of the truth's and lips
    to 0.86 0.86 0.85 0.85: GRID's recipes show a twentieth. (More, with mouths filled as before: 0.5 / 0.75 / 1 of it
    0.0318 0.0325 0.0337 where 0.25 gave 0.0314.) Drawn people are more alike: lips of the demo's were 0.73 at a
    quarter (with `mouths`), 0.88 at three (without), and 0.75 / 0.85 / 1 brought 24 of them from a still's 27.94 dB and
    ST-LPIPS of 0.0227 to 28.97 28.98 28.97 dB and 0.0142 0.0139 0.0136: `fedtalk-tiny` shows 0.85."""


class DecoderConfig(StepsConfig):
    """The phase `decoder`: examples are frames."""


class IdentityConfig(StepsConfig):
    """The phase `identity`: examples are people, three frames of each."""

    batch_size: int = Field(12, ge=2)
    """People a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """At its highest; warm-up and cosine over all rounds."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's."""


class SharpnessConfig(StepsConfig):
    """The phase `sharpness`: examples are windows of a few frames, some of which are painted."""

    steps: int = Field(10, ge=1)
    """Optimiser steps of a client in one round; one takes as long as two in `faces`."""
    batch_size: int = Field(4, ge=1)
    """Windows a step."""
    frames: int = Field(2, ge=1)
    """Frames of a window that are painted."""
    learning_rate: float = Field(5e-4, gt=0)
    """At its highest; warm-up and cosine over all rounds."""
    adversarial: float = Field(0.015, ge=0)
    """Weight of the adversarial (GAN) loss; 0 gives the blurred mean."""
    gradient_penalty: float = Field(1e-4, ge=0)
    """Weight of the discriminator's R1 penalty: its squared gradient at true pictures. On unseen GRID speakers
    mouths were 0.97 times as sharp as the truth's after some 3,000 steps, and clean (0.76 after 800 with `adversarial`
    0.01). Without the penalty `adversarial` 0.004 made them 0.99 times as sharp after 600 steps and 1.22 after 2,000,
    ragged, and 0.02 streaked them."""
    perceptual: float = Field(0.1, ge=0)
    """Weight of the perceptual loss: how far the discriminator's features of made and of true pictures lie apart."""
    vgg: float = Field(0.0, ge=0)
    """Weight of a second one: how far the features of VGG-16 lie apart (`model.st_lpips`; its package is not installed
    by default, and parts of it are for non-commercial use only). With 2, ST-LPIPS came to 1.11
    times a still's (docs/results.md, one seed); a step takes half as long again."""


class SyncConfig(StepsConfig):
    """The phase `sync`: examples are stretches of clips."""

    batch_size: int = Field(16, ge=2)
    """Stretches a step."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's."""
