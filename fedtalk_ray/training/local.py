"""One client's work, in plain torch: fit the shared parameters, then its own adapter, then score itself.

A `LocalTrainer` is the resident model of one slot. It works for one client after another: everything that belongs to a
client comes in as arguments and goes out as results, nothing stays behind.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from fedtalk_ray.errors import RunError, TrainingError
from fedtalk_ray.federation.lora_factors import trains
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.device import fast_arithmetic
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.model.released import fill_released
from fedtalk_ray.recipe import LocalConfig, Pace
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.objective import Objective
from fedtalk_ray.training.optimise import Loss, descend
from fedtalk_ray.training.phases.phase import Fitted, Task, state_digest
from fedtalk_ray.training.reliability import Reliability, score_client
from fedtalk_ray.training.told_lips import tell_held_out


def released_trainer(run: RunFolder, config: TrainConfig, device: str = "cpu") -> "LocalTrainer":
    """A trainer that holds a run's released model. Raises `RunError` where there is none."""
    trainer = LocalTrainer(load_pipeline(str(run.pipeline)), config, device)
    fill_released(trainer.model, run)
    return trainer


class LocalTrainer:
    """The denoiser with its two adapters on one device, and what it takes to train and score them."""

    def __init__(self, pipeline: TalkingHeadPipeline, config: TrainConfig, device: str = "cpu") -> None:
        self._config, self._device = config, device
        # Adapters start from the run's seed, so every slot holds the same ones before the server's arrive.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            # Where the backbone itself is shared there is no shared adapter.
            rank = config.adapter.rank if config.shared == "adapter" else None
            model = adapters.with_adapters(pipeline.denoiser, rank, config.adapter.alpha, config.adapter.identity_rank)
        pipeline.to(device)
        self.model = model.to(device)
        self.pipeline, self.scheduler = pipeline, pipeline.scheduler
        self.loss = Objective(pipeline, perceptual=config.local.loss.perceptual > 0)
        self.critic = self.loss.critic
        base = self.model.get_base_model()
        if config.local.gradient_checkpointing:
            _recompute(base)
            if base.taught_on == "pixels":
                _recompute(pipeline.autoencoder)
        self.window: int = base.config.window

    def shared(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The federated parameters; all actors list them in the same order."""
        config = self._config
        # What is heard bends references, and nothing is learned through the bending.
        heard = "speech" not in config.phases and not bare_denoiser(self.model).takes_bent()
        return list(adapters.shared_parameters(self.model, config.shared, config.trained_factors, heard))

    def _trained(self, index: int) -> list[tuple[str, torch.nn.Parameter]]:
        """Those of the federated parameters that are trained in a round, by its number in the phase from 0."""
        if self._config.shared == "backbone":
            return self.shared()
        factors = self._config.trained_factors
        return [each for each in self.shared() if trains("A" if ".lora_A." in each[0] else "B", factors, index)]

    def frozen_digest(self) -> bytes:
        """SHA-256 of what all clients must have in common beside the shared parameters."""
        moving = (name for name, _ in (*self.shared(), *self.identity()))
        state = self.model.state_dict()
        if self.model.get_base_model().taught_on == "pixels":
            # What the loss is taken through.
            state |= {f"autoencoder.{name}": value for name, value in self.pipeline.autoencoder.state_dict().items()}
        return state_digest(state, moving)

    def identity(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(adapters.identity_parameters(self.model))

    def load(self, shared: np.ndarray, identity: np.ndarray | None, seed: int = 0) -> None:
        """Takes on the server's shared parameters and a client's own adapter (None: a fresh one from `seed`)."""
        adapters.from_vector(self.shared(), shared)
        if identity is None:
            adapters.reset_identity(self.model, torch.Generator().manual_seed(seed))
        else:
            adapters.from_vector(self.identity(), identity)
        # Adding up nothing but zeros is a sixth of a step's time.
        adapters.use_adapters_with_effect(self.model)

    def fit(
        self,
        shared: np.ndarray,
        identity: np.ndarray | None,
        batches: Iterable[WindowBatch],
        *,
        seed: int,
        index: int = 0,
        pace: Pace | None = None,
        proximal: float = 0.0,
    ) -> Fitted:
        """Local training of one client in one round; the client's adapters stay in the model.

        shared: float32 [D] from the server. identity: float32 [E] or None for a first time. batches: at least
        `batches_needed(local)` of them. index: the round's number in the phase, from 0. pace: of the learning rate;
        None for `local.learning_rate` throughout. proximal: FedProx's mu.
        """
        local = self._config.local
        generator, source = torch.Generator().manual_seed(seed), iter(batches)
        self.load(shared, identity, seed)
        chosen = self._trained(index)
        pace = pace or Pace(local.learning_rate)
        losses = self._optimise(chosen, source, local.steps, generator, pace, proximal, local.weight_decay)
        update = adapters.to_vector(self.shared()) - shared
        if not np.isfinite(update).all():
            raise TrainingError("the local update holds values that are not finite; lower local.learning_rate")
        if local.identity_steps:
            adapters.use_adapters(self.model)
            own = Pace(self._identity_rate())
            self._optimise(self.identity(), source, local.identity_steps, generator, own)
        identity = adapters.to_vector(self.identity())
        if not np.isfinite(identity).all():
            setting = "learning_rate" if local.identity_learning_rate is None else "identity_learning_rate"
            raise TrainingError(f"the identity adapter holds values that are not finite; lower local.{setting}")
        self.model.eval()
        return Fitted(update, losses, identity)

    def score(self, task: Task, alpha: float) -> Reliability:
        """A client's score with the model as it is, on `local.score_windows` of its held-out windows."""
        people, lips = task.people, bare_denoiser(self.model).knows_lips()
        held_out = people.windows(task.client, self.window, self._config.local.score_windows, lips)
        enrolment = torch.from_numpy(people.enrolment(task.client))
        moved = held_out.to(self._device)
        return score_client(self.model, self.scheduler, moved, enrolment, self.critic, alpha, task.seed)

    def personalize(
        self,
        batches: Iterator[WindowBatch],
        steps: int,
        seed: int,
        tick: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> None:
        """Trains the loaded client's own adapter alone, `tick`ing with the loss terms of every step."""
        generator = torch.Generator().manual_seed(seed)
        adapters.use_adapters(self.model)
        pace = Pace(self._identity_rate(), total=steps)
        self._optimise(self.identity(), batches, steps, generator, pace, tick=tick)
        self.model.eval()

    def _identity_rate(self) -> float:
        local = self._config.local
        return local.learning_rate if local.identity_learning_rate is None else local.identity_learning_rate

    @torch.no_grad()
    def held_out_loss(self, held_out: WindowBatch, seed: int, draws: int = 4) -> float:
        """Diffusion loss on held-out windows: the same timesteps and noise every time, so that rounds compare."""
        generator = torch.Generator().manual_seed(seed)
        self.model.eval()
        off = dict.fromkeys(("tdc", "motion", "identity", "perceptual", "sync", "speech_dropout"), 0.0)
        config = self._config.local.loss.model_copy(update=off)
        moved = tell_held_out(bare_denoiser(self.model), held_out).to(self._device)
        return self.loss.held_out(self.model, moved, config, generator, draws)

    def _optimise(
        self,
        parameters: list[tuple[str, torch.nn.Parameter]],
        source: Iterator[WindowBatch],
        steps: int,
        generator: torch.Generator,
        pace: Pace,
        proximal: float = 0.0,
        weight_decay: float = 0.0,
        tick: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> dict[str, float]:
        """`local.optimizer` on the given parameters only; returns the mean loss terms."""
        local = self._config.local
        # Dropout draws from torch's global generator, whatever it was left at by the client before.
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        trained = adapters.train_only(self.model, parameters)
        self.model.train()
        return descend(
            trained,
            self._losses(source, generator),
            steps,
            pace.rate,
            optimizer=local.optimizer,
            weight_decay=weight_decay,
            clip_norm=local.clip_norm,
            accumulate=local.accumulate,
            proximal=proximal,
            tick=tick,
        )

    def _losses(self, source: Iterator[WindowBatch], generator: torch.Generator) -> Iterator[Loss]:
        for batch in source:
            with fast_arithmetic(self._device, self._config.local.autocast):
                terms = self.loss(self.model, batch.to(self._device), self._config.local.loss, generator)
            yield terms.total, terms.floats()


def _recompute(network: Any) -> None:
    try:
        network.enable_gradient_checkpointing()
    except ValueError as error:
        raise RunError(
            f"local.gradient_checkpointing: a {type(network).__name__} cannot recompute its activations; leave it out"
        ) from error


def batches_needed(local: LocalConfig) -> int:
    """Batches that one fit consumes."""
    return (local.steps + local.identity_steps) * local.accumulate
