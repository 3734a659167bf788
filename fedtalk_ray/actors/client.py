"""What a client slot does: one resident model stands for one client after another, trains, scores, answers, samples.

A plain class; `actors.pool` makes Ray actors of it. Everything private happens between reading a client's shards and
returning from these methods: what they return is listed in `fedtalk_ray.messages`, all else stays in the
client's folder.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.errors import RunError, TrainingError
from fedtalk_ray.federation.aggregation import WeightedSum
from fedtalk_ray.federation.secure_aggregator import clip_norm_of
from fedtalk_ray.federation.strategies import client_weight, load_strategy
from fedtalk_ray.generation.samples import write_sample
from fedtalk_ray.messages import Answers, ClientReport, FitReport, HeldOutLoss, PlainUpdate, StatisticsUpdate
from fedtalk_ray.model import adapters
from fedtalk_ray.model.released import release_model
from fedtalk_ray.privacy.protocol import Aborted, Code
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import people_of
from fedtalk_ray.training.backbone import build_pipeline, set_statistics, statistics_of
from fedtalk_ray.training.local import Halted, LocalTrainer, batches_needed
from fedtalk_ray.training.secure_clients import SecureClients


class ClientSlot:
    """Holds the model and works through chunks of clients."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._stopped = 0
        self.working_on = ""
        """The round and the client that it stands for."""

    def start(self) -> np.ndarray:
        """Loads the model; returns the shared parameters before round 1, float32 [D], the same in every slot.

        Apart from the constructor, because Ray tells the caller of a method what went wrong, and of a constructor only
        that the actor died.
        """
        config = self._config
        torch.set_num_threads(config.slots.threads)
        device = "cuda" if config.slots.num_gpus and torch.cuda.is_available() else "cpu"
        if device == "cuda" and config.slots.num_gpus < 1:
            # A fraction of a GPU is only admission control to Ray: hold this slot to its share of the memory.
            torch.cuda.set_per_process_memory_fraction(config.slots.num_gpus)
        self._run = RunFolder(Path(config.run))
        self._people = people_of(config)
        self._strategy = load_strategy(config.strategy)
        self._pipeline = build_pipeline(config.pretrained, config.seed, self._people.manifest)
        self._trainer = LocalTrainer(self._pipeline, config, device)
        self._pipeline.register_modules(denoiser=self._trainer.model)
        vector = adapters.to_vector(self._trainer.shared())
        if config.aggregation == "secure":
            self._secure = SecureClients(config, len(vector), self._trainer.frozen_digest())
        return vector

    def backbone(self) -> bytes:
        """SHA-256 of what this slot's model has frozen; all clients of a secure round must have the same."""
        return self._secure.backbone

    def enrol(self, clients: list[str]) -> dict[str, bytes]:
        """These clients' public signing keys."""
        return self._secure.enrol(clients)

    def stop(self, call: int) -> None:
        """Lets a call of `fit` or `train`, by its number, end with the clients that are done. Heard while it works."""
        self._stopped = max(self._stopped, call)

    def train(self, clients: list[str], round_number: int, shared: np.ndarray, plan: bytes, call: int = 1) -> Answers:
        """Secure rounds: trains these clients and keeps their updates here; says only who is ready.

        call: its number for `stop`, larger than those before.
        """
        ready, refused = [], Counter[str]()
        try:
            self._secure.open_round(plan)
        except Aborted as error:
            return Answers((), {str(error.code): len(clients)})
        for client in clients:
            try:
                self._secure.join(client, shared)
                report, update = self._fit_one(round_number, client, shared, call)
                self._secure.offer(client, update, report.weight)
                ready.append(client)
            except Aborted as error:
                refused[str(error.code)] += 1
            except Halted:
                break
            except TrainingError as error:
                # A score or an update that is not finite: the client abstains.
                print(error, flush=True)
                refused[str(Code.NOT_FINITE)] += 1
        return Answers(tuple(ready), dict(refused))

    def answer(self, stage: str, frames: dict[str, bytes]) -> tuple[Answers, list[np.ndarray]]:
        """Secure rounds: every client's signed answer to one stage of the protocol."""
        return self._secure.answer(stage, frames)

    def statistics(self, clients: list[str]) -> StatisticsUpdate:
        """Sums over these clients' training latents, for a backbone that nobody pretrained."""
        self._only_in_the_clear("statistics")
        parts = [statistics_of(self._people.pieces(client, "train", ("latents",))) for client in clients]
        return StatisticsUpdate(np.sum(parts, axis=0))

    def use_statistics(self, total: StatisticsUpdate) -> None:
        """Fixes the units of latents and residuals from everybody's sums."""
        set_statistics(self._trainer.model.get_base_model(), total.sums)

    def fit(
        self, clients: list[str], round_number: int, shared: np.ndarray, call: int = 1
    ) -> tuple[FitReport, PlainUpdate | None]:
        """Trains these clients one after another from the same shared parameters; who is done, and their weighted sum.

        Where the server is to add noise, every client's update is weighted and clipped first, and counts once.
        call: its number for `stop`, larger than those before. Without a client that is done there is no sum.
        """
        self._only_in_the_clear("updates")
        total, reports, done = WeightedSum(), [], []
        refused: Counter[str] = Counter()
        for client in clients:
            try:
                report, update = self._fit_one(round_number, client, shared, call)
            except Halted:
                break
            except TrainingError as error:
                # A score or an update that is not finite: the client abstains, as in secure rounds.
                print(error, flush=True)
                refused[str(Code.NOT_FINITE)] += 1
                continue
            done.append(client)
            if self._config.privacy.mechanism == "none":
                total.add(update, report.weight)
                reports.append(report)
            else:
                total.add_clipped(update, report.weight, clip_norm_of(self._config.privacy))
        if not done:
            return FitReport((), refused=dict(refused)), None
        return FitReport(tuple(done), tuple(reports), dict(refused)), PlainUpdate(
            round_number, total.vector(), total.total_weight
        )

    def held_out_loss(self, clients: list[str], round_number: int, shared: np.ndarray) -> HeldOutLoss:
        """Loss on held-out windows, each with its client's own adapter as it is after `round_number`.

        Of clients the val clips, where nothing is promised to them; of people whom nobody trains on the test clips.
        """
        losses = []
        if not (self._config.in_the_clear or self._people.unseen.issuperset(clients)):
            raise RunError("clients' losses are not told where anything is promised to them; ask about unseen people")
        for client in clients:
            self._note(round_number, client)
            self._load(client, shared, round_number + 1)
            windows = self._people.windows(client, self._trainer.window, self._config.evaluation.windows)
            losses.append(self._trainer.held_out_loss(windows, seed=0))
        return HeldOutLoss(float(np.sum(losses)), len(losses))

    def sample(self, identities: list[str], round_number: int, shared: np.ndarray) -> None:
        """Writes a video and a contact sheet of a held-out clip of each, with the adapters as after the round.

        A client's to its own folder, because it shows the client's face; of others to the run's samples.
        """
        for identity in identities:
            unseen = identity in self._people.unseen
            place = self._run.samples if unseen else self._run.client(identity).samples
            self._note(round_number, identity)
            self._load(identity, shared, round_number + 1)
            piece = next(self._people.pieces(identity, self._people.judged_by(identity)))
            write_sample(self._pipeline, piece, place, self._run.sample(round_number))

    def export(self, shared: np.ndarray, round_number: int) -> None:
        """Makes these parameters the run's released model, as after the round."""
        self._trainer.load(shared, None)
        release_model(self._run, round_number, self._pipeline, self._trainer.model, self._config.shared)

    def _note(self, round_number: int, client: str) -> None:
        self.working_on = f"round {round_number}, {client}"
        # Into the actor's log, which the dashboard shows.
        print(self.working_on, flush=True)

    def _only_in_the_clear(self, what: str) -> None:
        """Whatever the caller asks: no client's figures leave in the clear where aggregation is secure."""
        if self._config.aggregation == "secure":
            raise RunError(f"clients' {what} are not sent in the clear under aggregation: secure")

    def _fit_one(
        self, round_number: int, client: str, shared: np.ndarray, call: int
    ) -> tuple[ClientReport, np.ndarray]:
        config, local = self._config, self._config.local
        self._note(round_number, client)
        seed = derive_seed(config.seed, "fit", round_number, client)
        identity = self._identity(client, round_number)
        result = self._trainer.fit(
            shared,
            identity,
            self._people.batches(
                client,
                window=self._trainer.window,
                windows=batches_needed(local) * local.batch_size,
                batch_size=local.batch_size,
                seed=seed,
                stream=config.stream,
            ),
            self._people.windows(client, self._trainer.window, local.score_windows),
            torch.from_numpy(self._people.enrolment(client)),
            seed=seed,
            proximal=self._strategy.proximal,
            score_alpha=self._strategy.score_alpha,
            halted=lambda: self._stopped >= call,
        )
        self._run.client(client).keep_adapter(
            round_number, lambda place: adapters.save_adapter(self._trainer.model, adapters.IDENTITY, place)
        )
        scores = result.reliability
        score = scores.score if scores else None
        samples, weight = client_weight(self._strategy, self._people.frames(client), score, config.weight_bounds)
        report = ClientReport(
            client,
            samples,
            weight,
            score,
            scores.id_sim if scores else None,
            scores.temp_stab if scores else None,
            result.losses,
        )
        return report, result.update

    def _identity(self, client: str, round_number: int) -> np.ndarray | None:
        return adapters.load_identity(self._trainer.model, self._run.client(client).adapter_before(round_number))

    def _load(self, client: str, shared: np.ndarray, round_number: int) -> None:
        seed = derive_seed(self._config.seed, "identity", client)
        self._trainer.load(shared, self._identity(client, round_number), seed)
