"""One client's work, in plain torch: fit the shared parameters, then its own adapter, then score itself.

A `LocalTrainer` is the resident model of one slot. It works for one client after another: everything that belongs to a
client comes in as arguments and goes out as results, nothing stays behind.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from fedtalk_ray.errors import TrainingError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline, make_critic, make_sync_loss
from fedtalk_ray.model.released import fill_released
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import LocalConfig, TrainConfig
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.losses import window_loss
from fedtalk_ray.training.optimise import cosine
from fedtalk_ray.training.reliability import Reliability, score_client


@dataclass
class LocalResult:
    """What one fit leaves. `update` may leave the client; `identity` must not.

    update: float32 [D], trained minus received shared parameters. identity: float32 [E], the client's own adapter.
    losses: mean terms over the shared steps. reliability: None where the strategy needs no score.
    """

    update: np.ndarray
    identity: np.ndarray
    losses: dict[str, float]
    reliability: Reliability | None


def released_trainer(run: RunFolder, config: TrainConfig, device: str = "cpu") -> "LocalTrainer":
    """A trainer that holds a run's released model. Raises `RunError` where there is none."""
    trainer = LocalTrainer(load_pipeline(str(run.pipeline)), config, device)
    fill_released(trainer.model, run)
    return trainer


class Halted(Exception):
    """The caller asked for an end before the client was done; nothing of its work is kept."""


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
        self.critic = make_critic(pipeline)
        self.sync_loss = make_sync_loss(pipeline)
        base = self.model.get_base_model()
        base.gradient_checkpointing = config.local.gradient_checkpointing
        self.window: int = base.config.window

    def shared(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The federated parameters; all actors list them in the same order."""
        return list(adapters.shared_parameters(self.model, self._config.shared, self._config.trained_factors))

    def frozen_digest(self) -> bytes:
        """SHA-256 of what all clients must have in common beside the shared parameters."""
        return adapters.frozen_digest(self.model, self._config.shared, self._config.trained_factors)

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
        held_out: WindowBatch,
        enrolment: torch.Tensor,
        *,
        seed: int,
        proximal: float = 0.0,
        score_alpha: float | None = None,
        halted: Callable[[], bool] = lambda: False,
    ) -> LocalResult:
        """Local training of one client in one round.

        shared: float32 [D] from the server. identity: float32 [E] or None for a first time. batches: at least
        `batches_needed(local)` of them. held_out, enrolment: what `score_client` judges by. proximal: FedProx's mu.
        score_alpha: ISFA's alpha; None skips the score. halted: asked before every step; `Halted` is raised at a yes.
        """
        local = self._config.local
        generator = torch.Generator().manual_seed(seed)
        source = _until(halted, batches)
        self.load(shared, identity, seed)
        losses = self._optimise(self.shared(), source, local.steps, generator, proximal)
        update = adapters.to_vector(self.shared()) - shared
        if not np.isfinite(update).all():
            raise TrainingError("the local update holds values that are not finite; lower local.learning_rate")
        if local.identity_steps:
            adapters.use_adapters(self.model)
            self._optimise(self.identity(), source, local.identity_steps, generator, 0.0)
        identity = adapters.to_vector(self.identity())
        if not np.isfinite(identity).all():
            raise TrainingError("the identity adapter holds values that are not finite; lower local.learning_rate")
        self.model.eval()
        reliability = None
        if score_alpha is not None:
            moved = held_out.to(self._device)
            reliability = score_client(self.model, self.scheduler, moved, enrolment, self.critic, score_alpha, seed)
        return LocalResult(update, identity, losses, reliability)

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
        self._optimise(self.identity(), batches, steps, generator, 0.0, tick, cosine)
        self.model.eval()

    @torch.no_grad()
    def held_out_loss(self, held_out: WindowBatch, seed: int, draws: int = 4) -> float:
        """Diffusion loss on held-out windows: the same timesteps and noise every time, so that rounds compare."""
        generator = torch.Generator().manual_seed(seed)
        self.model.eval()
        off = dict.fromkeys(("tdc", "motion", "identity", "perceptual", "sync", "speech_dropout"), 0.0)
        config = self._config.local.loss.model_copy(update=off)
        moved = held_out.to(self._device)
        losses = [window_loss(self.model, self.scheduler, moved, config, generator).diffusion for _ in range(draws)]
        return float(torch.stack(losses).mean())

    def _optimise(
        self,
        parameters: list[tuple[str, torch.nn.Parameter]],
        source: Iterator[WindowBatch],
        steps: int,
        generator: torch.Generator,
        proximal: float,
        tick: Callable[[dict[str, float]], None] = lambda _: None,
        pace: Callable[[float], float] = lambda _: 1.0,
    ) -> dict[str, float]:
        """`local.optimizer` on the given parameters only; returns the mean loss terms.

        pace: what the learning rate is multiplied by, given the share of the steps done.
        """
        local = self._config.local
        # Dropout draws from torch's global generator, whatever it was left at by the client before.
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        trained = adapters.train_only(self.model, parameters)
        anchors = [parameter.detach().clone() for parameter in trained] if proximal else []
        optimiser: torch.optim.Optimizer
        if local.optimizer == "sgd":
            optimiser = torch.optim.SGD(trained, lr=local.learning_rate)
        else:
            optimiser = torch.optim.AdamW(trained, lr=local.learning_rate, weight_decay=0.0)
        self.model.train()
        history: list[dict[str, float]] = []
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = local.learning_rate * pace(step / steps)
            optimiser.zero_grad(set_to_none=True)
            parts: list[dict[str, float]] = []
            for batch in islice(source, local.accumulate):
                with self._autocast():
                    terms = window_loss(
                        self.model,
                        self.scheduler,
                        batch.to(self._device),
                        local.loss,
                        generator,
                        self.critic,
                        self.sync_loss,
                    )
                (terms.total / local.accumulate).backward()
                parts.append(terms.floats())
            if len(parts) < local.accumulate:
                raise ValueError(f"the stream ended after {len(history)} of {steps} steps")
            # FedProx (Li et al. 2020): the gradient of mu / 2 * ||theta - theta_round||^2.
            for parameter, anchor in zip(trained, anchors, strict=False):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - anchor, alpha=proximal)
            torch.nn.utils.clip_grad_norm_(trained, local.clip_norm)
            optimiser.step()
            history.append({name: float(np.mean([part[name] for part in parts])) for name in parts[0]})
            tick(history[-1])
        return {name: float(np.mean([terms[name] for terms in history])) for name in history[0]}

    def _autocast(self) -> torch.autocast:
        device = torch.device(self._device).type
        wanted = self._config.local.autocast and device == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(device, torch.bfloat16, enabled=wanted)


def _until(halted: Callable[[], bool], batches: Iterable[WindowBatch]) -> Iterator[WindowBatch]:
    if halted():
        raise Halted
    for batch in batches:
        yield batch
        if halted():
            raise Halted


def batches_needed(local: LocalConfig) -> int:
    """Batches that one fit consumes."""
    return (local.steps + local.identity_steps) * local.accumulate
