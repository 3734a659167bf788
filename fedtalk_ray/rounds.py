"""THE main loop: rounds of federated training, as the paper writes them.

every round t:   cohort S_t <- sample
                 server -> slots: shared parameters theta_t
                 every client k in S_t, in parallel: Delta_k, s_k <- fit, score        (training/local.py)
                 theta_{t+1} <- server step on sum_k w_k Delta_k / sum_k w_k,  w_k ~ n_k exp(gamma s_k)
                 evaluate, checkpoint, log
"""

from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from PIL import Image

from fedtalk_ray.actors.cluster import connect
from fedtalk_ray.actors.pool import SlotPool, fetch, start_server
from fedtalk_ray.config import TrainConfig, save_config
from fedtalk_ray.data.shards import Manifest, load_manifest
from fedtalk_ray.data.video import FPS, read_video
from fedtalk_ray.errors import RunError, UserError
from fedtalk_ray.federation.aggregation import normalised
from fedtalk_ray.federation.checkpoint import config_fingerprint, drop_checkpoint, load_checkpoint
from fedtalk_ray.federation.cohort import sample_cohort
from fedtalk_ray.federation.history import History, read_history
from fedtalk_ray.messages import HeldOutLoss, PlainUpdate, StatisticsUpdate
from fedtalk_ray.observability import RunLog, progress
from fedtalk_ray.outputs import new_file, writing

HISTORY = "history.jsonl"


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Runs (or with `resume` goes on with) one federated training; returns the run's folder.

    Raises `errors.UserError` with one line for whatever the user can mend.
    """
    manifest = load_manifest(config.shards)
    population = choose_population(config, manifest)
    run, first = open_run(config, resume)
    try:
        connect(config.address, dashboard=True)
        pool = SlotPool(config)
    except UserError:
        # Nothing ran: a second try must not meet a folder that looks like a run. A resumed one is left as it was.
        if not resume:
            (run / "config.yaml").unlink(missing_ok=True)
            run.rmdir()
        raise
    log = RunLog(run / "tensorboard", first)
    history = History(run / HISTORY, keep=first - 1)
    try:
        if config.pretrained is None:
            agree_on_units(pool, sample_cohort(population, config.cohort.size, config.seed, 1))
        server = start_server(config, run / "checkpoints", pool.vector)
        for number in progress(range(first, config.rounds + 1), config.rounds + 1 - first, "train"):
            started = monotonic()
            cohort = sample_cohort(population, config.cohort.size, config.seed, number)
            shared = server.shared.remote()  # one numpy array in the store, read by every slot without a copy
            updates = pool.map("fit", cohort, number, shared, label=f"round{number}.fit")
            norm = fetch(server.apply.options(name=f"round{number}.apply").remote(number, *updates))
            record = summary(number, cohort, fetch(updates), norm)
            shared = server.shared.remote()
            last = number == config.rounds
            if last or number % config.evaluation.every == 0:
                record["held_out_loss"] = evaluate(pool, population[: config.evaluation.clients], number, shared)
            if last or number % config.evaluation.sample_every == 0:
                write_samples(pool, manifest, population, run, number, shared, log)
            record["seconds"] = round(monotonic() - started, 2)
            history.append(record)
            log_round(log, record)
    finally:
        log.close()
        pool.close()
    return run


def choose_population(config: TrainConfig, manifest: Manifest) -> list[str]:
    """The clients of this run, sorted. Raises `ShardError` for one that the shards cannot serve."""
    names = manifest.clients() if config.cohort.clients is None else sorted(config.cohort.clients)
    manifest.check_clients(names)
    if not names:
        raise RunError(f"shards {config.shards} hold no client: an identity needs two clips, one of them held out")
    return names


def open_run(config: TrainConfig, resume: bool) -> tuple[Path, int]:
    """The run's folder and the first round to run. A new run refuses a folder that is in use; a resume needs one."""
    run = Path(config.run)
    checkpoint = load_checkpoint(run / "checkpoints", config_fingerprint(config)) if resume else None
    if resume and not (run / "config.yaml").is_file():
        raise RunError(f"run {run} does not exist, so it cannot be resumed; leave out --resume to start it")
    recorded = max((record["round"] for record in read_history(run / HISTORY)), default=0)
    if checkpoint is not None and checkpoint.round > recorded:
        # The round was applied, but the run died before it was evaluated and written down: repeat it.
        drop_checkpoint(run / "checkpoints", checkpoint.round)
        checkpoint = load_checkpoint(run / "checkpoints", config_fingerprint(config))
    if not resume and run.exists() and any(run.iterdir()):
        raise RunError(f"run {run} already exists; go on with it by --resume, or give another `run` folder")
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
        with new_file(run / "config.yaml") as place:
            save_config(config, place)
    return run, checkpoint.round + 1 if checkpoint else 1


def agree_on_units(pool: SlotPool, clients: list[str]) -> None:
    """Without a pretrained backbone, the first cohort's summed latent statistics fix the units for everybody."""
    parts: list[StatisticsUpdate] = fetch(pool.map("statistics", clients))
    total = StatisticsUpdate(np.sum([part.sums for part in parts], axis=0))
    fetch(pool.each("use_statistics", total))


def evaluate(pool: SlotPool, clients: list[str], number: int, shared: Any) -> float:
    """Mean held-out loss over the clients, each on its own clips with its own adapter."""
    parts: list[HeldOutLoss] = fetch(
        pool.map("held_out_loss", clients, number, shared, label=f"round{number}.evaluate")
    )
    return sum(part.total for part in parts) / sum(part.clients for part in parts)


def write_samples(
    pool: SlotPool, manifest: Manifest, population: list[str], run: Path, number: int, shared: Any, log: RunLog
) -> None:
    """Exports the model, and lets it speak a held-out clip of somebody nobody trained on and of the first client.

    The client's sample stays in the client's folder, since it shows the client's face.
    """
    fetch(pool.one("export", shared, str(run)))
    own = run / "clients" / population[0] / "samples"
    places = {population[0]: own} | dict.fromkeys(manifest.unseen()[:1], run / "samples")
    calls = [
        pool.one("sample", identity, number, shared, str(place), slot=slot)
        for slot, (identity, place) in enumerate(places.items())
    ]
    fetch(calls)
    for sheet in (run / "samples").glob(f"round-{number:05d}.png"):
        log.image(number, "sample/unseen", np.asarray(Image.open(sheet)))
        log.video(number, "sample/speaking", read_video(sheet.with_suffix(".mp4")).frames, FPS)


def summary(number: int, cohort: list[str], updates: list[PlainUpdate], norm: float) -> dict[str, Any]:
    """One line of history.jsonl."""
    reports = {report.client: report for update in updates for report in update.reports}
    shares = normalised(reports[client].weight for client in cohort)
    losses = [reports[client].losses for client in cohort]
    return {
        "round": number,
        "aggregation": "plain",
        "update_norm": norm,
        "loss": {name: float(np.mean([terms[name] for terms in losses])) for name in losses[0]},
        "clients": [asdict(reports[client]) | {"share": share} for client, share in zip(cohort, shares, strict=True)],
        "bytes_up": sum(update.nbytes() for update in updates),
    }


def log_round(log: RunLog, record: dict[str, Any]) -> None:
    """The round's figures on TensorBoard."""
    values = {f"loss/{name}": value for name, value in record["loss"].items()}
    values |= {"server/update_norm": record["update_norm"], "round/seconds": record["seconds"]}
    if "held_out_loss" in record:
        values["held_out/loss"] = record["held_out_loss"]
    for report in record["clients"]:
        values[f"weight/{report['client']}"] = report["share"]
        for name in ("score", "id_sim", "temp_stab"):
            if report[name] is not None:
                values[f"{name}/{report['client']}"] = report[name]
    log.scalars(record["round"], values)
    log.flush()
