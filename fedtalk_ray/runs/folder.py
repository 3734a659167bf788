"""The owner of a run's folders: what lies where in RUN/ and RUN.clients/, and which model is released.

    RUN/config.yaml                    every setting of the run
    RUN/history.jsonl                  a line for each finished round (`runs.history`)
    RUN/checkpoints/round-00003/       the shared parameters by round (`runs.checkpoints`)
    RUN/checkpoints/ledger.json        privacy charged (`privacy.ledger`); beside it exchange.json and server.key
    RUN/roster.jsonl                   everybody's public signing key (`federation.roster`); of sites, in its place:
    RUN/members  federation.json       the list that their authority signed, and by which key, for which run
    RUN/pipeline/                      the backbone, a diffusers pipeline
    RUN/adapters/shared/               the federated adapter, a PEFT folder
    RUN/samples/round-00003.mp4, .png  what the model made of people whom nobody trained on
    RUN/tensorboard/  audit/  metrics.json  figures.json  report.html
    RUN.clients/<client>/              what is a client's own (`runs.client_folder`), apart: RUN is what one shows

**The released model** is the one in RUN/pipeline and RUN/adapters: the last that was exported, of the round that
`released.json` beside its weights names. Checkpoints may be ahead of it, and one of them alone is not what
`server.average` releases. Nobody else builds a path in a run or decides which model is meant.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtalk_ray.config import load_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.runs.checkpoints import Checkpoint, load_checkpoint
from fedtalk_ray.runs.client_folder import ClientFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.settings import TrainConfig

_RELEASED = "released.json"
_SAMPLE = re.compile(r"round-(\d{5})")


@dataclass(frozen=True)
class RunFolder:
    """Where everything of one run lies. Nothing is made or read until it is asked for."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def history_file(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def ledger(self) -> Path:
        return self.checkpoints / "ledger.json"

    @property
    def exchange_number(self) -> Path:
        """The number of the last secure exchange, which never repeats."""
        return self.checkpoints / "exchange.json"

    @property
    def left_out(self) -> Path:
        """Who sits out rounds, and why; for the server alone."""
        return self.checkpoints / "left_out.json"

    @property
    def server_log(self) -> Path:
        """Whole records of rounds, where the history may not tell all (`privacy.publication`)."""
        return self.checkpoints / "rounds.jsonl"

    @property
    def server_key(self) -> Path:
        return self.checkpoints / "server.key"

    @property
    def roster(self) -> Path:
        return self.path / "roster.jsonl"

    @property
    def members(self) -> Path:
        """Of a run whose clients are sites: the list of members, as the authority signed it."""
        return self.path / "members"

    @property
    def federation(self) -> Path:
        """Of a run whose clients are sites: its random name, and the authority's public key."""
        return self.path / "federation.json"

    @property
    def coordinator_log(self) -> Path:
        """Of a run whose clients are sites: which of them refused, was late, or replied twice, and when."""
        return self.checkpoints / "coordinator.log"

    @property
    def served(self) -> Path:
        """What sites fetch by its SHA-256: the model to start from, results of phases, shared parameters."""
        return self.path / "served"

    @property
    def pipeline(self) -> Path:
        """RUN/pipeline, or RUN itself where that is a pretrained pipeline, or MuseTalk's folder."""
        return self.path if _is_pipeline(self.path) else self.path / "pipeline"

    @property
    def shared_adapter(self) -> Path:
        return self.path / "adapters" / "shared"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def metrics(self) -> Path:
        """What `fedtalk evaluate` wrote, where the report looks for it."""
        return self.path / "metrics.json"

    @property
    def figures(self) -> Path:
        """What `fedtalk compare` measured."""
        return self.path / "figures.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def audit(self) -> Path:
        """The folder of `fedtalk audit`."""
        return self.path / "audit"

    @property
    def audit_results(self) -> Path:
        return self.audit / "audit.json"

    def client(self, name: str) -> ClientFolder:
        """Where a client keeps what is its own. Raises `RunError` for a name that is no folder's."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise RunError(f"client {name!r} cannot be the name of a folder in {self.clients_folder}")
        return ClientFolder(self.clients_folder / name)

    @property
    def clients_folder(self) -> Path:
        """RUN.clients, beside the run's own folder, not where a link to it lies."""
        plain = self.path.name not in ("", "..") and not self.path.is_symlink()
        run = self.path if plain else self.path.resolve()
        return run.with_name(f"{run.name}.clients")

    def clients(self) -> list[str]:
        """Clients that keep something here."""
        folder = self.clients_folder
        places = folder.iterdir() if folder.is_dir() else ()
        return sorted(place.name for place in places if place.is_dir() and not place.name.startswith("."))

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.is_file()

    def check(self) -> "RunFolder":
        """This folder. Raises `RunError` for one in which no run was started."""
        if not self.exists():
            raise RunError(f"{self.path} is no run folder (no config.yaml); `fedtalk train` makes one")
        return self

    def changed(self) -> float:
        """When a round was finished last, or the run begun, in seconds since the epoch; 0 where there is none."""
        found = [place.stat().st_mtime for place in (self.history_file, self.config_file) if place.is_file()]
        return max(found, default=0.0)

    def config(self) -> TrainConfig:
        """The run's settings. Raises `RunError` where no run was started, `ConfigError` for a damaged file."""
        return load_config(self.check().config_file)

    def history(self) -> list[dict[str, Any]]:
        """The finished rounds' records, by round. Raises `RunError` for a damaged file."""
        return read_history(self.history_file)

    def whole_records(self) -> list[dict[str, Any]]:
        """The rounds' records with all that the server wrote down; of a round that was repeated the last one."""
        kept = read_history(self.server_log) or self.history()
        return list({record["round"]: record for record in kept}.values())

    def recorded(self) -> int:
        """The last round that the history tells of."""
        return max((record["round"] for record in self.history()), default=0)

    def checkpoint(self, config: TrainConfig | None = None) -> Checkpoint | None:
        """What the next round starts from (`load_checkpoint`). config: whose it has to be."""
        return load_checkpoint(self.checkpoints, config)

    def sample(self, round_number: int) -> str:
        """What the files of a round's samples are called, here and in clients' folders, without their suffix."""
        return f"round-{round_number:05d}"

    def newest_sample(self, client: str | None = None) -> tuple[int, Path] | None:
        """The round and the video of the last sample of somebody whom nobody trained on, or of a client."""
        folder = self.samples if client is None else self.client(client).samples
        found = [(int(name[1]), path) for path in folder.glob("*.mp4") if (name := _SAMPLE.fullmatch(path.stem))]
        return max(found, default=None)

    # The released model

    def has_model(self) -> bool:
        """Whether there is a released model, or a pretrained pipeline."""
        return _is_pipeline(self.pipeline)

    def has_shared_adapter(self) -> bool:
        return self.shared_adapter.exists()

    def released_round(self) -> int | None:
        """The round after which the released model was exported.

        None where there is no such model, and for runs of older versions, which did not write it down.
        """
        for folder in (self.shared_adapter.parent, self.pipeline):
            try:
                return int(json.loads((folder / _RELEASED).read_text())["round"])
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RunError(f"{folder / _RELEASED} is damaged ({error}); the run's next export mends it") from error
        return None

    def release(
        self, round_number: int, backbone: Callable[[Path], None] | None, adapter: Callable[[Path], None] | None
    ) -> None:
        """Replaces the released model by the one of a round.

        backbone, adapter: each writes its part into a new folder; None leaves that part as it is. The round is written
        beside the weights that are federated, so that both appear at once.
        """
        record = json.dumps({"round": round_number})
        if backbone is not None:
            with new_folder(self.pipeline, overwrite=True) as place:
                backbone(place)
                if adapter is None:
                    (place / _RELEASED).write_text(record)
        if adapter is not None:
            with new_folder(self.shared_adapter.parent, overwrite=True) as place:
                adapter(place / self.shared_adapter.name)
                (place / _RELEASED).write_text(record)

    def identity_adapter(self, client: str) -> Path | None:
        """The client's own adapter that goes with the released model; None for a client that has none.

        A run that was cut short, or goes on, has newer ones: the newest from before or beside the released round is
        taken, or the oldest that is kept.
        """
        kept = self.client(client).adapters()
        released = self.released_round()
        if not kept or released is None:
            return kept[0] if kept else None
        written = {place: ClientFolder.written_after(place) or 0 for place in kept}
        return max((place for place in kept if written[place] <= released), key=written.__getitem__, default=kept[-1])

    def own_adapter(self, client: str) -> Path:
        """As `identity_adapter`. Raises `RunError` for a client that has none."""
        place = self.identity_adapter(client)
        if place is None:
            known = [name for name in self.clients() if self.client(name).adapters()]
            raise RunError(
                f"client {client!r} has no identity adapter in {self.path}; there are: {', '.join(known) or 'none'}"
            )
        return place


def _is_pipeline(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("model_index.json", "musetalkV15/unet.pth"))
