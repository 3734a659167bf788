"""The model of one process while it goes through the phases of a training, for one client after another.

A client slot holds one, and central pretraining is one with a single client that holds everything.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.strategies import client_weight, load_strategy
from fedtalk_ray.messages import ClientReport
from fedtalk_ray.model.autoencoder import PatchAutoencoder, sees_reference, through
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.speech_code import CodedDenoiser
from fedtalk_ray.model.st_lpips import check_vgg_is_there
from fedtalk_ray.model.sync import SyncNetwork
from fedtalk_ray.recipe import PhaseName, StrategyConfig
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.local import LocalTrainer
from fedtalk_ray.training.phases.calibration import Calibration
from fedtalk_ray.training.phases.decoder import decoder_phase
from fedtalk_ray.training.phases.faces import Faces
from fedtalk_ray.training.phases.hearing import Hearing, check_can_hear
from fedtalk_ray.training.phases.identity import identity_phase
from fedtalk_ray.training.phases.mouths import Mouths, check_can_open
from fedtalk_ray.training.phases.phase import Fitted, Phase, Task
from fedtalk_ray.training.phases.sharpness import sharpness_phase
from fedtalk_ray.training.phases.speech import hearing_score, speech_phase
from fedtalk_ray.training.phases.sync import sync_phase
from fedtalk_ray.training.phases.units import Units

Results = Mapping[PhaseName, np.ndarray]
"""What each phase that is over ended with, float32 [D], in the order in which they ran."""


class ResidentModel:
    """A pipeline, the phase that it is in, and what trains it there."""

    def __init__(self, pipeline: TalkingHeadPipeline, config: TrainConfig, device: str = "cpu") -> None:
        check_can_be_taught(pipeline, config)
        if "sharpness" in config.phases:
            check_can_be_sharp(pipeline, config.sharpness.vgg)
        check_has_judges(pipeline, config)
        self.pipeline = pipeline.to(device)
        self._config, self._device = config, device
        self._strategy = load_strategy(config.strategy)
        # Scores ask whether lips follow the sound; in phases that say nothing of it, clips count as they are.
        scored = self._strategy.score_alpha is not None
        self._unscored = load_strategy(StrategyConfig(name="fedavg")) if scored else self._strategy
        self._trainer: LocalTrainer | None = None
        self._begun: tuple[Phase, np.ndarray] | None = None
        self._fitted = False
        self.over: list[PhaseName] = []
        self.name: PhaseName = config.phases[0]

    @property
    def trainer(self) -> LocalTrainer:
        """The denoiser with its adapters, from the phase `faces` on. Raises `RunError` before."""
        if self._trainer is None:
            raise RunError(f"the model is in the phase {self.name} and has no adapters yet")
        return self._trainer

    @property
    def phase(self) -> Phase:
        return self._present()[0]

    @property
    def initial(self) -> np.ndarray:
        """The phase's shared vector before its first round, float32 [D], whoever trained here since: what a client's
        training leaves in the model is that client's alone."""
        return self._present()[1]

    def _present(self) -> tuple[Phase, np.ndarray]:
        """The present phase, made when it is first asked for, and what it began with."""
        if self._begun is None:
            phase = self._made(self.name)
            self._begun = phase, phase.initial()
        return self._begun

    def check_shows_nobody(self, parameters: bool) -> None:
        """Raises `RunError` where a client's training may lie in what is shown: with parameters of `faces` outside that
        phase, and without, until `faces` and the present phase are over."""
        if parameters and self.name != "faces":
            raise RunError(
                f"the model is in the phase {self.name}; parameters of `faces` are shown in that phase alone"
            )
        if not parameters and ("faces" not in self.over or (self._fitted and self.name not in self.over)):
            raise RunError(f"the model is in the phase {self.name}, which is not over; there is nothing to show yet")

    def enter(self, name: PhaseName, results: Results) -> None:
        """Takes on the results of the phases before that it has not taken on yet, and begins the named one.

        Raises `RunError` for a way back, and for one out of a phase that somebody trained in without its result: what a
        client left in the model would go along.
        """
        for earlier, vector in results.items():
            if earlier not in self.over:
                self._begin(earlier)
                self.phase.finish(vector)
                self.over.append(earlier)
        self._begin(name)

    def finish(self, vector: np.ndarray) -> None:
        """Takes on the result of the phase that it is in, which is over then."""
        if self.name not in self.over:
            self.phase.finish(vector)
            self.over.append(self.name)

    def fit(self, task: Task, frames: int) -> tuple[ClientReport, Fitted]:
        """One client's work, and its report; frames: those that it trains on.

        Raises `RunError` in a phase that is over: its result is what the model shows from then on.
        """
        if self.name in self.over:
            raise RunError(f"the phase {self.name} is over, and nobody trains in it any more")
        self._fitted = True
        fitted = self.phase.fit(task)
        scores = fitted.reliability
        strategy = self._strategy if scores else self._unscored
        score = scores.score if scores else None
        samples, weight = client_weight(strategy, frames, score, self._config.weight_bounds)
        id_sim, temp_stab = (scores.id_sim, scores.temp_stab) if scores else (None, None)
        return ClientReport(task.client, samples, weight, score, id_sim, temp_stab, fitted.losses), fitted

    def _begin(self, name: PhaseName) -> None:
        if name == self.name:
            return
        order = self._config.phases
        if name not in order or order.index(name) < order.index(self.name):
            raise RunError(f"the model is in the phase {self.name} and does not go back to {name}")
        if self._fitted and self.name not in self.over:
            raise RunError(f"the model is in the phase {self.name}, which has no result yet: it does not go to {name}")
        self.name, self._begun, self._fitted = name, None, False

    def _made(self, name: PhaseName) -> Phase:
        config, pipeline, device = self._config, self.pipeline, self._device
        base = bare_denoiser(pipeline.denoiser)
        # Noise, and medians over groups, may be what no clips give.
        odd = config.privacy.mechanism != "none" or config.strategy.groups > 1
        if name == "units":
            return Units(base, odd)
        if name == "hearing":
            return Hearing(base, config.hearing.ridge, config.statistics_count_alike, odd)
        if name == "mouths":
            return Mouths(base, config.statistics_count_alike, odd)
        # Under noise sums are divided by one public number, the mean weight in `faces`.
        noisy = config.privacy.mechanism != "none" and name != "faces"
        alpha = None if noisy else self._strategy.score_alpha
        if name == "speech":
            score = None if alpha is None else hearing_score(base, config.local.score_windows, alpha)
            local = config.local
            return speech_phase(
                base, config.speech, config.stream, local.loss.mouth_weight, device, score, local.autocast
            )
        if name == "faces":
            self._trainer = LocalTrainer(pipeline, config, device)
            pipeline.register_modules(denoiser=self._trainer.model)
            score = None if alpha is None else partial(self._trainer.score, alpha=alpha)
            return Faces(self._trainer, config, self._strategy.proximal, score)
        if name == "calibration":
            score = None if alpha is None else partial(self.trainer.score, alpha=alpha)
            return Calibration(pipeline, config.seed, config.calibration.shown, score, noisy)
        if name == "decoder":
            if not isinstance(pipeline.autoencoder, PatchAutoencoder):
                raise RunError("phases: decoder trains the project's own autoencoder, and this pipeline has another")
            return decoder_phase(pipeline.autoencoder, config.decoder, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if name == "sharpness":
                return sharpness_phase(pipeline, config.sharpness, config.stream, config.local.true_lips, device)
            if name == "identity":
                encoder = pipeline.identity_encoder or IdentityEncoder()
                pipeline.register_modules(identity_encoder=encoder)
                if sees_reference(pipeline.autoencoder):
                    # The critic compares what latents say, and these say nothing of the upper face.
                    return identity_phase(encoder, config.identity, device, partial(through, pipeline.autoencoder))
                return identity_phase(encoder, config.identity, device)
            settings = base.config
            network = pipeline.sync_network or SyncNetwork(
                settings.latent_channels,
                settings.latent_size,
                settings.speech_hops,
                settings.mel_bins,
                speech=settings.speech,
                region=base.region,
            )
            network.residual_std.copy_(base.residual_std)
            pipeline.register_modules(sync_network=network)
            return sync_phase(network, pipeline.autoencoder, config.sync, device)


def check_can_be_taught(pipeline: TalkingHeadPipeline, config: TrainConfig) -> None:
    """Raises `RunError` for a phase that the pipeline's backbone knows nothing of."""
    base = bare_denoiser(pipeline.denoiser)
    if "hearing" in config.phases:
        check_can_hear(base)
    if "mouths" in config.phases:
        check_can_open(base)
    if isinstance(base, CodedDenoiser) or config.phases == ["faces"]:
        return
    phases = ", ".join(name for name in config.phases if name != "faces")
    raise RunError(
        f"phases: {phases}: a {type(base).__name__} is taught by the phase faces alone, in rounds: phases: [faces]"
    )


def check_has_judges(pipeline: TalkingHeadPipeline, config: TrainConfig) -> None:
    """Raises `RunError` where the loss asks a network that the pipeline lacks and that no phase teaches."""
    loss = config.local.loss
    of_faces = {"identity": loss.identity, "perceptual": loss.perceptual}
    base = bare_denoiser(pipeline.denoiser)
    if base.taught_on == "pixels" and of_faces.pop("perceptual"):
        check_vgg_is_there("local.loss.perceptual")
    if loss.motion and (base.taught_on == "pixels" or base.takes_bent()):
        raise RunError(f"loss motion is {loss.motion:g}, and this backbone makes no motion of sound alone: set it to 0")
    asked = (
        ("sync", {"sync": loss.sync}, pipeline.sync_network),
        ("identity", of_faces, pipeline.identity_encoder),
    )
    for phase, weights, network in asked:
        for name, weight in weights.items():
            if weight and network is None and phase not in config.phases:
                raise RunError(
                    f"loss {name} is {weight:g}, and neither has this pipeline a network for it nor does a phase "
                    f"{phase} teach one: set it to 0, name that phase, or begin with a model that has one"
                )


def check_can_be_sharp(pipeline: TalkingHeadPipeline, vgg: float) -> None:
    """Raises `RunError` for a pipeline that the phase `sharpness` can teach nothing, and without the network that
    `sharpness.vgg` weighs: before the first phase, not after hours."""
    if not sees_reference(pipeline.autoencoder):
        name = type(pipeline.autoencoder).__name__
        raise RunError(
            f"phases: sharpness needs shards of --autoencoder lower-face; this pipeline has a {name}: name the phases "
            "without it"
        )
    if bare_denoiser(pipeline.denoiser).config.prediction_type == "epsilon":
        raise RunError("phases: sharpness paints the mean, and a network that predicts noise (epsilon) has none")
    if vgg:
        check_vgg_is_there()
