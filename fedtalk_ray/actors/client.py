"""A client slot: one resident model that stands for one client after another.

A plain class; `actors.pool` makes Ray actors of it. Everything private happens between reading a client's shards and
returning from these methods: what they return is listed in `fedtalk_ray.messages`, all else stays in the
client's folder.
"""

from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.config import TrainConfig
from fedtalk_ray.data.shards import load_manifest
from fedtalk_ray.errors import RunError, TrainingError
from fedtalk_ray.evaluation.samples import write_sample
from fedtalk_ray.federation.aggregation import WeightedSum
from fedtalk_ray.federation.secure_aggregator import clip_norm_of
from fedtalk_ray.federation.seeding import derive_seed
from fedtalk_ray.federation.strategies import load_strategy
from fedtalk_ray.messages import Answers, ClientReport, Fitted, HeldOutLoss, PlainUpdate, StatisticsUpdate
from fedtalk_ray.model import adapters
from fedtalk_ray.privacy.protocol import Aborted, Code
from fedtalk_ray.training.backbone import build_pipeline, set_statistics, statistics_of
from fedtalk_ray.training.client_data import ClientData
from fedtalk_ray.training.client_state import client_folder, load_identity, save_identity
from fedtalk_ray.training.export import export_model
from fedtalk_ray.training.local import Halted, LocalTrainer
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
        self._manifest = load_manifest(config.shards)
        self._strategy = load_strategy(config.strategy)
        self._pipeline = build_pipeline(config, self._manifest)
        self._trainer = LocalTrainer(self._pipeline, config, device)
        self._pipeline.register_modules(denoiser=self._trainer.model)
        self._data = ClientData(config, self._manifest, self._trainer.window)
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
        ready, refused = [], {}
        try:
            self._secure.open_round(plan)
        except Aborted as error:
            return Answers((), dict.fromkeys(clients, str(error.code)))
        for client in clients:
            try:
                self._secure.join(client, shared)
                report, update = self._fit_one(round_number, client, shared, call)
                self._secure.offer(client, update, report.weight)
                ready.append(client)
            except Aborted as error:
                refused[client] = str(error.code)
            except Halted:
                break
            except TrainingError:
                # A score or an update that is not finite: the client abstains.
                refused[client] = str(Code.NOT_FINITE)
        return Answers(tuple(ready), refused)

    def answer(self, stage: str, frames: dict[str, bytes]) -> tuple[Answers, list[np.ndarray]]:
        """Secure rounds: every client's signed answer to one stage of the protocol."""
        return self._secure.answer(stage, frames)

    def statistics(self, clients: list[str]) -> StatisticsUpdate:
        """Sums over these clients' training latents, for a backbone that nobody pretrained."""
        self._only_in_the_clear("statistics")
        parts = [statistics_of(self._data.pieces(client, "train", ("latents",))) for client in clients]
        return StatisticsUpdate(np.sum(parts, axis=0))

    def use_statistics(self, total: StatisticsUpdate) -> None:
        """Fixes the units of latents and residuals from everybody's sums."""
        set_statistics(self._trainer.model.get_base_model(), total.sums)

    def fit(
        self, clients: list[str], round_number: int, shared: np.ndarray, call: int = 1
    ) -> tuple[Fitted, PlainUpdate | None]:
        """Trains these clients one after another from the same shared parameters; who is done, and their weighted sum.

        Where the server is to add noise, every client's update is weighted and clipped first, and counts once.
        call: its number for `stop`, larger than those before. Without a client that is done there is no sum.
        """
        self._only_in_the_clear("updates")
        total, reports, done = WeightedSum(), [], []
        for client in clients:
            try:
                report, update = self._fit_one(round_number, client, shared, call)
            except Halted:
                break
            done.append(client)
            if self._config.privacy.mechanism == "none":
                total.add(update, report.weight)
                reports.append(report)
            else:
                total.add_clipped(update, report.weight, clip_norm_of(self._config))
        if not done:
            return Fitted(()), None
        return Fitted(tuple(done), tuple(reports)), PlainUpdate(round_number, total.vector(), total.total_weight)

    def held_out_loss(self, clients: list[str], round_number: int, shared: np.ndarray) -> HeldOutLoss:
        """Loss on held-out windows, each with its client's own adapter as it is after `round_number`.

        Of clients the val clips, where nothing is promised to them; of people whom nobody trains on the test clips.
        """
        losses = []
        if not (self._config.in_the_clear or self._data.unseen.issuperset(clients)):
            raise RunError("clients' losses are not told where anything is promised to them; ask about unseen people")
        for client in clients:
            self._turn_to(round_number, client)
            self._load(client, shared, round_number + 1)
            losses.append(
                self._trainer.held_out_loss(self._data.windows(client, self._config.evaluation.windows), seed=0)
            )
        return HeldOutLoss(float(np.sum(losses)), len(losses))

    def sample(self, identities: list[str], round_number: int, shared: np.ndarray) -> None:
        """Writes a video and a contact sheet of a held-out clip of each, with the adapters as after the round.

        A client's to its own folder, because it shows the client's face; of others to RUN/samples.
        """
        for identity in identities:
            run = Path(self._config.run)
            place = (run if identity in self._data.unseen else client_folder(run, identity)) / "samples"
            self._turn_to(round_number, identity)
            self._load(identity, shared, round_number + 1)
            piece = next(self._data.pieces(identity, self._data.held_out(identity)))
            write_sample(self._pipeline, piece, place, f"round-{round_number:05d}")

    def export(self, shared: np.ndarray, run: str) -> None:
        """Writes what others load: RUN/pipeline (diffusers) and RUN/adapters/shared (PEFT)."""
        self._trainer.load(shared, None)
        export_model(self._pipeline, self._trainer.model, self._config.shared, Path(run))

    def _turn_to(self, round_number: int, client: str) -> None:
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
        config = self._config
        self._turn_to(round_number, client)
        seed = derive_seed(config.seed, "fit", round_number, client)
        identity = self._identity(client, round_number)
        result = self._trainer.fit(
            shared,
            identity,
            self._data.batches(client, seed),
            self._data.windows(client, config.local.score_windows),
            self._data.enrolment(client),
            seed=seed,
            proximal=self._strategy.proximal,
            score_alpha=self._strategy.score_alpha,
            halted=lambda: self._stopped >= call,
        )
        save_identity(self._trainer.model, config.run, client, round_number)
        scores = result.reliability
        score = scores.score if scores else None
        samples, weight = self._data.weigh(self._strategy, client, score)
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
        return load_identity(self._trainer.model, self._config.run, client, round_number)

    def _load(self, client: str, shared: np.ndarray, round_number: int) -> None:
        seed = derive_seed(self._config.seed, "identity", client)
        self._trainer.load(shared, self._identity(client, round_number), seed)
