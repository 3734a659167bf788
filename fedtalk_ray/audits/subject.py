"""The run that is attacked: its model before and after, its people, and fresh rounds of its own local training."""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.audits.attack import Round
from fedtalk_ray.audits.effort import Effort
from fedtalk_ray.client_settings import PopulationConfig
from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.secure_aggregator import clip_norm_of, limits_of
from fedtalk_ray.federation.strategies import client_weight, load_strategy
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.privacy.client_record import ClientRecord
from fedtalk_ray.privacy.ledger import Ledger
from fedtalk_ray.privacy.protocol import Aborted
from fedtalk_ray.progress import progress
from fedtalk_ray.runs.client_folder import ClientFolder
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.shards.people import people_of
from fedtalk_ray.shards.population import Population
from fedtalk_ray.shards.windows import Wanted, WindowBatch, cut_windows, held_out_windows
from fedtalk_ray.training.backbone import start_of
from fedtalk_ray.training.local import LocalTrainer, batches_needed, released_trainer
from fedtalk_ray.training.phases.faces import Faces
from fedtalk_ray.training.phases.phase import Task
from fedtalk_ray.training.told_lips import tell

FEWEST = 4
"""Members, and outsiders, below which nothing can be told."""


class Subject:
    """A run's folder, opened for its attackers.

    members: clients that took part. outsiders: people of the same shards who did not. start, released: the shared
    parameters before round 1 and after the last one, float32 [D]. lips: whether windows come with their lips.
    """

    def __init__(self, run: RunFolder, effort: Effort) -> None:
        """Raises `RunError` for a folder that cannot be audited, with what would make it one that can."""
        self.run, self.effort = run, effort
        config = run.config()
        check_can_be_audited(run.path, config)
        checkpoint = run.checkpoint()
        if checkpoint is None or not checkpoint.round or not run.has_model():
            raise RunError(f"run {run.path} has no finished round yet, so there is nothing to attack")
        released = run.released_round()
        self.rounds = checkpoint.round if released is None else released
        self.ledger = Ledger(run.ledger)
        self.people = people_of(config)
        self.trainer = LocalTrainer(start_of(config, self.people.manifest), config)
        # A reference is bent from its own lips; what is said of lips to a network that moves them itself is left out.
        self.lips = bare_denoiser(self.trainer.model).takes_bent()
        self.start = adapters.to_vector(self.trainer.shared())
        # An attack trains at the phase's highest rate, and so as far as any round may go.
        largest = max(clip_norm_of(config, number, len(self.start)) for number in range(1, config.all_rounds + 1))
        self.config = as_it_is_now(config, checkpoint.clip_norm or largest)
        self.released = adapters.to_vector(released_trainer(run, self.config).shared())
        if len(self.start) != len(self.released):
            raise RunError(
                f"the model of run {run.path} has {len(self.released)} shared parameters, and this version trains "
                f"{len(self.start)}: audit it with the version that trained it"
            )
        if np.array_equal(self.start, self.released):
            raise RunError(f"the model of run {run.path} never moved, so it tells of nobody")
        clients, manifest = self.clients, self.people.manifest
        took_part = [who for who in clients if was_summed(run.client(who), self.config.aggregation, self.rounds)]
        never = [who for who in manifest.clients() if who not in clients]
        # As many as a sum needs to be opened, and one more to leave.
        needed = limits_of(self.config.privacy).floor + 1 if self.config.aggregation == "secure" else 0
        self.members = spread(took_part, max(effort.people, needed))
        self.outsiders = spread([*manifest.unseen(), *never], effort.people)
        for people, what in ((self.members, "clients that took part"), (self.outsiders, "people who did not")):
            if len(people) < FEWEST:
                raise RunError(
                    f"run {run.path} has {len(people)} {what}, and an audit needs {FEWEST} of them; `fedtalk prepare "
                    "--unseen N` keeps people out, and cohort.clients does"
                )

    @property
    def clients(self) -> Population:
        assert self.people.clients is not None
        return self.people.clients

    def pieces(self, person: str, split: str | None = None) -> list[Piece]:
        """A person's clips: those that members trained on, all of outsiders; or those of one split."""
        if person not in self.clients:
            splits = {entry.split for entry in self.people.manifest.identities[person]}
            # People who are kept for testing have no clips to train on.
            split = split if split in splits else "train" if "train" in splits else sorted(splits)[-1]
        return list(self.people.pieces(person, split or "train", Wanted(lips=self.lips).columns))

    def windows(self, person: str) -> WindowBatch:
        """Windows of a person's clips, always the same."""
        return held_out_windows(self.pieces(person), self.trainer.window, self.effort.windows, self.lips)

    def loss(self, vector: np.ndarray, person: str) -> float:
        """The diffusion loss of the model with these shared parameters on a person's clips, without its own adapter."""
        self.trainer.load(vector, None)
        return self.trainer.held_out_loss(self.windows(person), seed=1, draws=self.effort.draws)

    @cached_property
    def round(self) -> Round:
        """One more round of all members from the released model, trained and weighed as the run does it."""
        strategy = load_strategy(self.config.strategy)
        alpha = strategy.score_alpha
        score_of = None if alpha is None else partial(self.trainer.score, alpha=alpha)
        faces, updates, weights = Faces(self.trainer, self.config, strategy.proximal, score_of), {}, {}
        for client in progress(self.members, len(self.members), "one more round"):
            seed = derive_seed(self.config.seed, "audit", client)
            phase = self.config.plan[0]
            result = faces.fit(Task(self.people, client, self.released, phase.last, phase, seed))
            score = result.reliability.score if result.reliability else None
            updates[client] = result.update
            frames = self.people.frames(client)
            weights[client] = client_weight(strategy, frames, score, self.config.weight_bounds)[1]
        return Round(self.config, self.released, self.trainer.frozen_digest(), updates, weights)

    def fit_from(
        self, shared: np.ndarray, person: str, split: str | None, seed: int, face: torch.Tensor | None = None
    ) -> np.ndarray:
        """float32 [D]: what local training on a person's clips of that split changes, as an attacker repeats it.

        face: latents [C, h, w] in place of the person's own as the reference.
        """
        pieces, rng = self.pieces(person, split), np.random.default_rng(seed)
        count = self.config.local.batch_size
        batches = [self._batch(pieces, count, rng) for _ in range(batches_needed(self.config.local))]
        for batch in batches:
            if face is not None:
                self.borrow(batch, face)
            tell(bare_denoiser(self.trainer.model), batch, self.config.local.true_lips, rng)
        return self.trainer.fit(shared, None, batches, seed=seed % 2**32).update

    def borrow(self, windows: WindowBatch, face: torch.Tensor) -> None:
        """Has windows spoken by another face, latents [C, h, w], of which all else is the outsiders' mean."""
        windows.reference = face.expand_as(windows.reference)
        for name, mean in self.nobody.items():
            setattr(windows, name, mean.expand_as(getattr(windows, name)))

    @cached_property
    def nobody(self) -> dict[str, torch.Tensor]:
        """The outsiders' means of what goes with a reference: its embedding [D], and of `WindowBatch` the rest. Empty
        tensors where there is none."""
        windows = [self.windows(person) for person in self.outsiders]
        names = ("identity", "reference_lips", "reference_points")
        return {name: torch.stack([getattr(each, name).mean(0) for each in windows]).mean(0) for name in names}

    def _batch(self, pieces: list[Piece], count: int, rng: np.random.Generator) -> WindowBatch:
        chosen = [pieces[place] for place in rng.integers(0, len(pieces), count)]
        wanted = Wanted(lips=self.lips)
        cut = [cut_windows(each, self.trainer.window, 1, str(rng.integers(2**63)), wanted) for each in chosen]
        return WindowBatch(
            **{name: torch.from_numpy(np.concatenate([each[name] for each in cut])).float() for name in cut[0]}
        )


def check_can_be_audited(folder: Path, config: TrainConfig) -> None:
    """Raises `RunError` for runs that no attack here says anything true about."""
    if config.population != PopulationConfig():
        raise RunError(f"run {folder} has virtual clients; an audit asks who took part, so take one per identity")
    if config.pretrained is None:
        raise RunError(
            f"run {folder} began from random weights; an audit asks what clients added to a `pretrained` one"
        )
    if config.phases != ["faces"]:
        raise RunError(
            f"run {folder} has the phases {', '.join(config.phases)}; an audit asks what clients add to one model, so "
            "set phases: [faces]"
        )
    if config.lora_aggregation in ("alternate", "svd"):
        raise RunError(
            f"run {folder} has lora_aggregation: {config.lora_aggregation}, whose factors attackers here do not follow "
            "from round to round; set ab or ffa"
        )
    if config.local.vary:
        raise RunError(f"run {folder} varies pictures, which attackers here do not know; set local.vary: false")
    if config.privacy.simulated_cohort is not None:
        raise RunError(
            f"run {folder} simulates a cohort of {config.privacy.simulated_cohort}: its clients get less privacy than "
            "its epsilon says, so there is no claim to hold it to; leave out privacy.simulated_cohort"
        )


def as_it_is_now(config: TrainConfig, clip_norm: float) -> TrainConfig:
    """The configuration for more rounds like the last one, with a clip norm of their own."""
    fixed = config.privacy.model_copy(update={"clipping": "fixed", "clip_norm": clip_norm})
    return config.model_copy(update={"privacy": fixed})


def was_summed(client: ClientFolder, aggregation: str, rounds: int) -> bool:
    """Whether the client's update went into a sum of the first `rounds` rounds: it trained, and under secure
    aggregation sent its masked update."""
    kept = client.adapters()
    if not kept:
        return False
    # Of a run that has gone on only the last few adapters are kept; how often the client took part tells the rest.
    oldest = kept[-1]
    before = client.adapter_before(rounds + 1) is not None
    if not before and client.participations(oldest) <= (client.written_after(oldest) or 0) - rounds:
        return False
    if aggregation == "plain":
        return True
    try:
        return client.protocol_state.exists() and ClientRecord(client.protocol_state).read().masked > 0
    except Aborted as error:
        raise RunError(str(error)) from error


def spread(people: list[str], most: int) -> list[str]:
    """At most so many of them, evenly over the list."""
    count = min(most, len(people))
    return [people[place * len(people) // count] for place in range(count)]


def mode(config: TrainConfig) -> str:
    """Which of the two promises a run makes."""
    names: Mapping[tuple[bool, bool], str] = {
        (False, False): "no privacy",
        (True, False): "secure aggregation only",
        (False, True): "differential privacy only",
        (True, True): "both",
    }
    return names[config.aggregation == "secure", config.privacy.mechanism != "none"]
