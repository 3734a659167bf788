"""What a run's folder tells about it: its configuration, its rounds, what it spent; its headline figures, and how
numbers are written."""

from dataclasses import dataclass
from typing import Any

from fedtalk_ray.errors import RunError
from fedtalk_ray.privacy.ledger import Ledger, Spent
from fedtalk_ray.privacy.publication import simulation
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import Manifest

Record = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """history: the rounds' records, by round, at least one. spent: None where there is no ledger."""

    folder: RunFolder
    config: TrainConfig
    yaml: str
    history: list[Record]
    spent: Spent | None

    @property
    def last(self) -> int:
        """The last round that was gone through."""
        return int(self.history[-1]["round"])

    def series(self, name: str) -> list[tuple[int, Any]]:
        """(round, what the record holds under that name) of every round that tells it."""
        return [(record["round"], record[name]) for record in self.history if record.get(name) is not None]


@dataclass(frozen=True)
class KeyFigure:
    name: str
    value: str
    note: str


def read_facts(folder: RunFolder) -> Facts:
    """Raises `RunError` for what is no run's folder, has no finished round, or is damaged, and `ConfigError`."""
    config, history = folder.config(), folder.history()
    if not history:
        raise RunError(
            f"run {folder.path} has no finished round yet; a report needs one: fedtalk train --resume goes on"
        )
    ledger = Ledger(folder.ledger) if config.privacy.mechanism != "none" else None
    privacy = config.privacy
    spent = ledger.spent(privacy.delta, privacy.participation_cap) if ledger and ledger.charges else None
    return Facts(folder, config, folder.config_file.read_text(encoding="utf-8"), history, spent)


def sentence(run: Facts, manifest: Manifest | None) -> str:
    """What was run. manifest: the shards', where they can be reached."""
    config, strategy, privacy = run.config, run.config.strategy, run.config.privacy
    weights = {
        "isfa": f"ISFA weights (gamma {strategy.gamma:g})",
        "fedavg": "FedAvg weights",
        "fedprox": f"FedProx (mu {strategy.mu:g})",
        "uniform": "equal weights",
    }.get(strategy.name, f"strategy {strategy.name}")
    clients = population_size(config, manifest)
    size = config.cohort.size if clients is None or config.poisson else min(config.cohort.size, clients)
    of = f" of {clients}" if clients else ""
    about = "about " if config.poisson and size != clients else ""
    cohort = f"{about}{size}{of} clients a round"
    noise = {
        "none": "no noise for differential privacy",
        "skellam": "Skellam noise that the clients add",
        "gaussian": "Gaussian noise that the server adds",
    }[privacy.mechanism]
    if privacy.epsilon is not None:
        noise += f" for a budget of epsilon {privacy.epsilon:g} ({privacy.view} view{simulation(privacy, '; ')})"
    shared = "all weights of the denoiser"
    if config.shared == "adapter":
        trained = {
            "ffa": ", of which only B is trained",
            "alternate": ", of which B and A are trained in turn",
            "svd": ", of which B is trained on an A made anew from every sum",
        }
        factors = f"LoRA adapter{trained.get(config.trained_factors, '')}"
        shared = f"a shared {factors} (rank {config.adapter.rank}) on the frozen backbone {config.pretrained}"
    rounds = f"{run.last} of {config.all_rounds}" if run.last < config.all_rounds else str(config.all_rounds)
    return (
        f"{rounds} rounds of federated training of {shared}: {cohort}, {weights}, {config.aggregation} aggregation, "
        f"{noise}; clips of {config.shards}."
    )


def population_size(config: TrainConfig, manifest: Manifest | None) -> int | None:
    named = config.cohort.clients
    return config.population.clients or (len(named) if named else len(manifest.clients()) if manifest else None)


def whose_loss(config: TrainConfig) -> str:
    """On whose clips the held-out loss is measured (`rounds.train`)."""
    if not config.in_the_clear:
        return f"test clips of people nobody trained on (at most {config.evaluation.clients})"
    return f"the val clips of the first clients (at most {config.evaluation.clients}), each with its own adapter"


def key_figures(run: Facts) -> list[KeyFigure]:
    losses = run.series("held_out_loss")
    loss = KeyFigure("Held-out loss", "not measured", f"evaluation.every is {run.config.evaluation.every}")
    if losses:
        at, value = losses[-1]
        on = "on clients' own val clips" if run.config.in_the_clear else "on people nobody trained on"
        loss = KeyFigure("Held-out loss", f"{value:.3f}", f"after round {at}, {on}; lower is better")
    by_whom = "masked updates of clients" if run.config.aggregation == "secure" else "one sum for each slot's clients"
    times = [value for _, value in run.series("seconds")]
    known = [KeyFigure("Rounds", f"{run.last} of {run.config.all_rounds}", _lost(run)), loss, privacy_figure(run)]
    if run.config.privacy.hides_cohorts:
        return known
    if sites := run.series("sites"):
        at, seen = sites[-1]
        members = f"members that the run began with, as round {at} began"
        known.append(KeyFigure("Sites on line", f"{seen['on_line']} of {seen['members']}", members))
    return [
        *known,
        KeyFigure("Sent up", size(sum(value for _, value in run.series("bytes_up"))), f"{by_whom}, all rounds"),
        KeyFigure("Time", duration(sum(times)), "all rounds, evaluation and samples included"),
    ]


def privacy_figure(run: Facts) -> KeyFigure:
    privacy = run.config.privacy
    if privacy.mechanism == "none":
        return KeyFigure("Privacy spent, epsilon", "∞", "no noise: infinite in both views")
    release, server = epsilons(run)
    if release is None or server is None:
        return KeyFigure("Privacy spent, epsilon", "not known", "neither a ledger nor the history tells")
    note = f"release view / server view, at delta {privacy.delta:g}{simulation(privacy, '; ')}"
    return KeyFigure("Privacy spent, epsilon", f"{release:.2f} / {server:.2f}", note)


def epsilons(run: Facts) -> tuple[float | None, float | None]:
    """Epsilon spent in the release and in the server view: the ledger's, which misses no charge, else the history's."""
    if run.spent is not None:
        return run.spent.release, run.spent.server
    found = [run.series(name) for name in ("epsilon", "epsilon_server")]
    release, server = (series[-1][1] if series else None for series in found)
    return release, server


def size(count: float) -> str:
    """Bytes in decimal units: 7.33 MB."""
    unit, name = unit_of(count)
    value = count / unit
    return f"{value:.{0 if value >= 100 or unit == 1 else 1 if value >= 10 else 2}f} {name}"


def unit_of(count: float) -> tuple[float, str]:
    """The decimal unit in which so many bytes are written: (1e6, "MB")."""
    return next((unit for unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= unit[0]), (1, "B"))


def duration(seconds: float) -> str:
    """Two units at most: 4 min 10 s."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [
        f"{days} d" * (days > 0),
        f"{hours} h" * (hours > 0),
        f"{minutes} min" * (minutes > 0),
        f"{rest} s" * (rest > 0),
    ]
    return " ".join([part for part in parts if part][:2])


def _lost(run: Facts) -> str:
    if run.config.privacy.hides_cohorts:
        return "how many came to each only the server knows"
    without = sum(bool(record.get("aborted")) for record in run.history)
    return f"{without} of them without a sum" if without else "all of them changed the model"
