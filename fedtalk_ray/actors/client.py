"""What a client slot does: one resident model stands for one client after another, trains, scores, answers, samples.

A plain class; `actors.pool` makes Ray actors of it. Everything private happens between reading a client's shards and
returning from these methods: what they return is listed in `fedtalk_ray.messages`, all else stays in the
client's folder.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.errors import NothingToGive, RunError, TrainingError, UserError
from fedtalk_ray.evaluation.clip_figures import lip_agreement
from fedtalk_ray.federation.aggregation import WeightedSum
from fedtalk_ray.federation.lora_factors import Pair
from fedtalk_ray.federation.secure_aggregator import clip_norm_of
from fedtalk_ray.generation.samples import write_sample
from fedtalk_ray.messages import Answers, ClientReport, FitReport, HeldOutFigure, PlainUpdate
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.released import release_model
from fedtalk_ray.privacy.protocol import Aborted, Code
from fedtalk_ray.recipe import PhaseName
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import People, only_watched, people_of
from fedtalk_ray.training.backbone import start_of
from fedtalk_ray.training.phases.phase import Halted, task_of
from fedtalk_ray.training.resident import ResidentModel, Results
from fedtalk_ray.training.secure_clients import SecureClients
from fedtalk_ray.training.told_lips import lips_wanted


class ClientSlot:
    """Holds the model and works through chunks of clients."""

    ASKED = frozenset(
        {"start", "enter", "lora_pairs", "backbone", "enrol", "train", "answer", "fit"}
        | {"held_out_loss", "lip_agreement", "sample", "export"}
    )
    """All that whoever calls a slot may ask of it. None of it signs what the caller likes, and none returns a client's
    figures where these are secret."""

    def __init__(self, config: TrainConfig, people: Callable[[TrainConfig], People] = people_of) -> None:
        """people: whose clips it reads."""
        self._config, self._open_shards = config, people
        self._stopped = 0
        self.working_on = ""
        """The round and the client that it stands for."""

    def start(self) -> np.ndarray:
        """Loads the model; returns the shared vector before round 1, float32 [D], the same in every slot.

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
        self._people = self._open_shards(config)
        self._model = ResidentModel(start_of(config, self._people.manifest), config, device)
        return self.enter(config.phases[0], {})

    def enter(self, phase: PhaseName, results: Results) -> np.ndarray:
        """Goes over to a phase; returns its shared vector before its first round, float32 [D].

        results: of all phases before.
        """
        self._model.enter(phase, results)
        vector = self._model.initial
        if self._config.aggregation == "secure":
            self._secure = SecureClients(self._config, phase, len(vector), self._model.phase.frozen())
        return vector

    def lora_pairs(self) -> tuple[Pair, ...]:
        """The pairs that the phase's vector is made of, where the server must know (`federation.lora_factors`)."""
        both = self._model.name == "faces" and self._config.trained_factors in ("alternate", "svd")
        return adapters.lora_pairs(self._model.trainer.shared()) if both else ()

    def backbone(self) -> bytes:
        """SHA-256 of what this slot's model has frozen; all clients of a secure round must have the same."""
        return self._secure.backbone

    def enrol(self, clients: list[str]) -> dict[str, bytes]:
        """These clients' public signing keys."""
        return self._secure.enrol(clients)

    def stop(self, call: int) -> None:
        """Lets a call of `fit` or `train`, by its number, end with the clients that are done. Heard while it works."""
        self._stopped = max(self._stopped, call)

    def train(self, clients: list[str], shared: np.ndarray, plan: bytes, call: int = 1) -> Answers:
        """Secure rounds: trains these clients and keeps their updates here; says only who is ready.

        plan: the server's signed one; the round is the one that it names, by which clients know what they answered.
        call: its number for `stop`, larger than those before.
        """
        ready, refused = [], Counter[str]()
        try:
            round_number = self._secure.open_round(plan).round
        except Aborted as error:
            return Answers((), {str(error.code): len(clients)})
        for client in clients:
            try:
                self._secure.join(client, shared)
                report, update = self._fit_one(round_number, client, shared, call)
                self._secure.offer(client, update, report.weight)
                ready.append(client)
            except Aborted as error:
                print(f"{client} takes no part in round {round_number}: {error}", flush=True)
                refused[str(error.code)] += 1
            except Halted:
                break
            except TrainingError as error:
                code = self._left_out(client, round_number, error)
                if self._secure.offer_nothing(client):
                    ready.append(client)
                else:
                    refused[str(code)] += 1
            except (UserError, OSError) as error:
                # Trouble of its own is no other client's.
                print(f"{client} takes no part in round {round_number}: {error}", flush=True)
                refused[str(Code.CANNOT_GO_ON)] += 1
        return Answers(tuple(ready), dict(refused))

    def answer(self, stage: str, frames: dict[str, bytes]) -> tuple[Answers, list[np.ndarray]]:
        """Secure rounds: every client's signed answer to one stage of the protocol."""
        return self._secure.answer(stage, frames)

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
                refused[str(self._left_out(client, round_number, error))] += 1
                continue
            done.append(client)
            if self._config.privacy.mechanism == "none":
                total.add(update, report.weight)
                reports.append(report)
            else:
                total.add_clipped(update, report.weight, clip_norm_of(self._config, round_number, len(update)))
        if not done:
            return FitReport((), refused=dict(refused)), None
        return FitReport(tuple(done), tuple(reports), dict(refused)), PlainUpdate(
            round_number, total.vector(), total.total_weight
        )

    def held_out_loss(self, clients: list[str], round_number: int, shared: np.ndarray) -> HeldOutFigure:
        """Loss on held-out windows, each with its client's own adapter as it is after `round_number`.

        Of clients the val clips, where nothing is promised to them; of people whom nobody trains on the test clips.
        """
        losses = []
        if not (self._config.in_the_clear or self._people.unseen.issuperset(clients)):
            raise RunError("clients' losses are not told where anything is promised to them; ask about unseen people")
        self._model.check_shows_nobody(True)
        for client in clients:
            self._note(round_number, client)
            self._load(client, shared, round_number + 1)
            trainer = self._model.trainer
            lips = lips_wanted(bare_denoiser(trainer.model), 0.0)
            windows = self._people.windows(client, trainer.window, self._config.evaluation.windows, lips)
            losses.append(trainer.held_out_loss(windows, seed=0))
        return HeldOutFigure(float(np.sum(losses)), len(losses))

    def lip_agreement(self, people: list[str], round_number: int, shared: np.ndarray) -> HeldOutFigure:
        """How far lips agree with the true ones while somebody speaks (`lip_agreement`), of people whom nobody trains
        on: of each the first test clip."""
        if not self._people.unseen.issuperset(people):
            raise RunError("how clients' lips move is not told; ask about unseen people")
        self._model.check_shows_nobody(True)
        total = 0.0
        for person in people:
            self._note(round_number, person)
            self._load(person, shared, round_number + 1)
            self._model.trainer.model.eval()
            total += lip_agreement(self._model.pipeline, next(self._people.pieces(person, "test")))
        return HeldOutFigure(total, len(people))

    def sample(self, identities: list[str], round_number: int, shared: np.ndarray | None) -> None:
        """Writes a video and a contact sheet of a held-out clip of each, with the adapters as after the round.

        A client's to its own folder, because it shows the client's face; of others to the run's samples. shared: None
        for the model as it is, where the phase `faces` is over.
        """
        self._model.check_shows_nobody(shared is not None)
        for identity in identities:
            unseen = identity in self._people.unseen
            place = self._run.samples if unseen else self._run.client(identity).samples
            self._note(round_number, identity)
            self._load(identity, shared, round_number + 1)
            piece = next(self._people.pieces(identity, self._people.judged_by(identity)))
            write_sample(self._model.pipeline, piece, place, self._run.sample(round_number))

    def export(self, shared: np.ndarray | None, round_number: int) -> None:
        """Makes these parameters the run's released model, as after the round; None for the model as it is."""
        self._model.check_shows_nobody(shared is not None)
        trainer = self._model.trainer
        if shared is not None:
            trainer.load(shared, None)
        pipeline, kind = self._model.pipeline, self._config.shared
        release_model(self._run, round_number, pipeline, trainer.model, kind, anew=shared is None)

    def _note(self, round_number: int, client: str) -> None:
        self.working_on = f"round {round_number}, {client}"
        # Into the actor's log, which the dashboard shows.
        print(self.working_on, flush=True)

    def _left_out(self, client: str, round_number: int, error: TrainingError) -> Code:
        """Why a client has no update, for the counts; its name and the reason go to the slot's log alone."""
        print(f"{client} is left out of round {round_number}: {error}", flush=True)
        return Code.NOTHING_TO_GIVE if isinstance(error, NothingToGive) else Code.NOT_FINITE

    def _only_in_the_clear(self, what: str) -> None:
        """Whatever the caller asks: no client's figures leave in the clear where aggregation is secure."""
        if self._config.aggregation == "secure":
            raise RunError(f"clients' {what} are not sent in the clear under aggregation: secure")

    def _fit_one(
        self, round_number: int, client: str, shared: np.ndarray, call: int
    ) -> tuple[ClientReport, np.ndarray]:
        self._note(round_number, client)
        identity = self._identity(client, round_number) if self._model.name == "faces" else None
        task = task_of(
            self._config, self._people, client, round_number, shared, identity, lambda: self._stopped >= call
        )
        report, fitted = self._model.fit(task, self._people.frames(client))
        if fitted.identity is not None:
            model = self._model.trainer.model
            self._run.client(client).keep_adapter(
                round_number, lambda place: adapters.save_adapter(model, adapters.IDENTITY, place)
            )
        return report, fitted.update

    def _identity(self, client: str, round_number: int) -> np.ndarray | None:
        folder = self._run.client(client).adapter_before(round_number)
        return adapters.load_identity(self._model.trainer.model, folder)

    def _load(self, client: str, shared: np.ndarray | None, round_number: int) -> None:
        trainer = self._model.trainer
        if shared is None:
            shared = adapters.to_vector(trainer.shared())
        trainer.load(shared, self._identity(client, round_number), derive_seed(self._config.seed, "identity", client))


def slot_without_clients(config: TrainConfig) -> ClientSlot:
    """The coordinator's own, where clients are sites: it exports, and looks at people whom nobody trains on."""
    return ClientSlot(config, only_watched)
