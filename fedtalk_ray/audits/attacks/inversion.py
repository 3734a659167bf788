"""What did the client look like? Gradient matching on one client's update of the LoRA adapter (Zhu et al. 2019).

The client that tells the most: one step of plain gradient descent on one window. The attacker looks for a face and a
motion whose gradient is the update that it holds, layer by layer, by L-BFGS in double precision. It begins at
the mean face of other people and knows how faces differ: along the principal directions of other people's faces, and
around each cell by its deviation.

The result is judged by what makes the client itself: the cosine between the recovered face and the true one, both
without the mean face, and in pixels. The mean face itself is the baseline: cosine 0, and its PSNR stands beside.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedtalk_ray.audits.attack import Figure, Outcome, Round
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.audits.subject import Subject, mode
from fedtalk_ray.audits.views import Views
from fedtalk_ray.errors import RunError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.progress import ticker
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.windows import WindowBatch, held_out_windows
from fedtalk_ray.training.backbone import start_of
from fedtalk_ray.training.local import LocalTrainer
from fedtalk_ray.training.losses import window_loss
from fedtalk_ray.training.told_lips import bends_of, tell_held_out

ORDER, TITLE = 8, "a face out of an update"
KNOWS = (
    "Knows the model, the sound, and the client's random choices (they derive from the run's seed, which is public), "
    "the face embedding where the shards hold one, and faces of other people; where references are bent to lips also "
    "the reference's lip shape, how it is bent, and what is laid between its lips. The client takes one plain gradient "
    "step on one window."
)

CLEAR = "one update in the clear"

_DIRECTIONS = 40
"""Principal directions of other faces."""

_DETAIL = 0.5
"""How much of a cell's deviation is looked for beside them."""

_START = 1e3
"""Scales the misfit, so that L-BFGS' first steps are of a good length."""


ONE_STEP: dict[str, Any] = {
    "optimizer": "sgd",
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "learning_rate": 1.0,
    "identity_steps": 0,
    "autocast": False,
}
"""A client whose update is the gradient of one window: the one that tells the most."""


@dataclass(frozen=True)
class Faces:
    """What other people look like: mean [C, h, w], directions [K, C, h, w] with their deviations in them, deviation of
    each cell [C, h, w], and of each cell's motion [T, C, h, w]."""

    mean: torch.Tensor
    directions: torch.Tensor
    deviation: torch.Tensor
    motion: torch.Tensor


def attack(subject: Subject, effort: Effort) -> Outcome:
    """Cosine and PSNR for one update in the clear, and for what the run's own attackers hold of it."""
    outcome, config = Outcome("inversion", KNOWS), one_step(subject.config)
    trainer = LocalTrainer(start_of(config, subject.people.manifest), config)
    if trainer.critic is None:
        raise RunError("the pipeline has no identity encoder, so what is recovered cannot be shown")
    victim, seed = subject.members[0], derive_seed(subject.config.seed, "inversion")
    outcome.whose = victim
    base = bare_denoiser(trainer.model)
    windows = {
        who: tell_held_out(base, held_out_windows(subject.pieces(who), trainer.window, 1, subject.lips))
        for who in subject.members
    }
    # All clients' random choices differ; the victim's are those that the attacker repeats.
    updates = {
        who: trainer.fit(subject.released, None, [batch], seed=seed if who == victim else seed + 1 + place).update
        for place, (who, batch) in enumerate(windows.items())
    }
    round = Round(subject.config, subject.released, b"", updates, dict.fromkeys(updates, 1.0))
    held = {CLEAR: updates[victim].astype(np.float64)}
    # Where a run promises nothing its attackers hold the update in the clear, and there is nothing more to try.
    if mode(subject.config) != "no privacy":
        held |= Views(round, np.random.default_rng(seed)).of(victim)
    faces = faces_of(subject, trainer.window)
    truth = windows[victim].reference[0]
    show(outcome, trainer, "truth", truth)
    show(outcome, trainer, "mean face", faces.mean)
    recovered: dict[bytes, torch.Tensor] = {}
    for name, seen in held.items():
        # Two attackers may hold the same to within rounding: one try serves both.
        key = np.float32(np.round(seen / max(float(np.abs(seen).max()), 1e-300), 3)).tobytes()
        if key not in recovered:
            recovered[key] = invert(
                trainer, config, subject.released, seen, windows[victim], faces, seed, effort.iterations
            )
        judge(outcome, trainer, name, recovered[key], truth, faces.mean)
    return outcome


def one_step(config: TrainConfig) -> TrainConfig:
    """The run's configuration for clients of `ONE_STEP`, without the loss terms that other networks judge: the attacker
    repeats the loss on the denoiser alone."""
    loss = config.local.loss.model_copy(update={"identity": 0.0, "perceptual": 0.0, "sync": 0.0})
    return config.model_copy(update={"local": config.local.model_copy(update=ONE_STEP | {"loss": loss})})


def invert(
    trainer: LocalTrainer,
    config: TrainConfig,
    shared: np.ndarray,
    seen: np.ndarray,
    window: WindowBatch,
    faces: Faces,
    seed: int,
    iterations: int,
) -> torch.Tensor:
    """The face [C, h, w] whose one step from `shared` makes the update that was seen, float64 [D].

    trainer, config: of the client (`one_step`).
    Of `window` only what `KNOWS` says is used.
    """
    bends = bends_of(bare_denoiser(trainer.model), window)
    trainer.load(shared, None, seed)
    model = copy.deepcopy(trainer.model).double().train()
    base: Any = bare_denoiser(model)
    local = config.local
    copied = dict(model.named_parameters())
    parameters = adapters.train_only(model, ((name, copied[name]) for name, _ in trainer.shared()))
    sizes = [parameter.numel() for parameter in parameters]
    # A step of plain descent with rate 1 is the gradient, turned around.
    wanted = torch.split(torch.from_numpy(-np.asarray(seen, np.float64)), sizes)
    lengths = [part.square().sum().clamp(min=1e-30) for part in wanted]
    faces = Faces(**{name: value.double() for name, value in vars(faces).items()})
    along = torch.zeros(len(faces.directions), dtype=torch.float64, requires_grad=True)
    detail, motion = (torch.zeros_like(part).requires_grad_() for part in (faces.deviation, faces.motion))
    unknown = [along, detail, motion]

    def face() -> torch.Tensor:
        return faces.mean + torch.tensordot(along, faces.directions, dims=1) + _DETAIL * faces.deviation * detail

    def misfit() -> torch.Tensor:
        """Mean squared difference over the layers, each relative to its own length."""
        reference = face()
        latents = reference + faces.motion * motion
        known = window.identity.double(), window.lips.double(), window.reference_lips.double()
        batch = WindowBatch(latents[None], window.speech.double(), reference[None], *known)
        if bends is not None:
            batch.bent = base.latent_bend(reference[None], bends)
        # The same random choices as the client's own (`LocalTrainer.fit`).
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        loss = window_loss(model, trainer.scheduler, batch, local.loss, generator).total
        # A window that is told nothing of its reference's lips leaves out what takes these.
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True)
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        scale = (local.clip_norm / norm).clamp(max=1.0)
        differences = [
            (scale * gradient.flatten() - part).square().sum() / length
            for gradient, part, length in zip(gradients, wanted, lengths, strict=True)
        ]
        return torch.stack(differences).mean()

    optimiser = torch.optim.LBFGS(
        unknown,
        max_iter=iterations,
        max_eval=iterations,
        history_size=40,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    with torch.random.fork_rng(devices=[]), ticker(iterations, "inversion") as tick:

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = _START * misfit()
            loss.backward()
            tick()
            return loss

        optimiser.step(closure)
    return face().detach().float()


def faces_of(subject: Subject, window: int) -> Faces:
    """From the outsiders' clips: their faces, and how they move."""
    pieces = [piece for person in subject.outsiders for piece in subject.pieces(person)]
    faces = torch.from_numpy(np.stack([piece.latents[0] for piece in pieces])).float()
    mean = faces.mean(0)
    _, sizes, axes = torch.linalg.svd((faces - mean).flatten(1), full_matrices=False)
    count = min(_DIRECTIONS, len(faces) - 1)
    directions = axes[:count] * sizes[:count, None] / len(faces) ** 0.5
    moved = torch.from_numpy(np.concatenate([piece.latents[1:] - piece.latents[0] for piece in pieces])).float()
    deviation = faces.std(0) + 0.02
    return Faces(mean, directions.view(count, *mean.shape), deviation, (moved.std(0) + 0.01).repeat(window, 1, 1, 1))


def judge(
    outcome: Outcome, trainer: LocalTrainer, name: str, face: torch.Tensor, truth: torch.Tensor, mean: torch.Tensor
) -> None:
    """Adds the figures of one recovered face [C, h, w], and its picture."""
    cosine = torch.nn.functional.cosine_similarity((face - mean).flatten(), (truth - mean).flatten(), dim=0)
    outcome.figures.append(Figure(f"cosine, {name}", float(cosine), chance=0.0))
    pictures = [
        show(outcome, trainer, key, latent) for key, latent in ((name, face), ("truth", truth), ("mean face", mean))
    ]
    found, chance = (psnr(picture, pictures[1]) for picture in (pictures[0], pictures[2]))
    outcome.figures.append(Figure(f"PSNR in dB, {name}", found, chance=chance))


def show(outcome: Outcome, trainer: LocalTrainer, name: str, latent: torch.Tensor) -> np.ndarray:
    """Decodes a face [C, h, w] to a picture uint8 [S, S, 3], kept under its name."""
    assert trainer.critic is not None
    with torch.no_grad():
        pixels = trainer.critic.pixels(latent[None])[0]
    picture = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    outcome.pictures[name] = picture
    return picture


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """Of two uint8 pictures, in dB; 100 where they are the same."""
    error = float(np.mean((picture.astype(float) - truth.astype(float)) ** 2))
    return min(100.0, 10 * float(np.log10(255**2 / error))) if error else 100.0
