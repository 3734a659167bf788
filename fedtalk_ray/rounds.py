"""THE main loop: rounds of federated training, as the paper writes them.

every round t:   cohort S_t <- sample
                 server -> slots: shared parameters theta_t
                 every client k in S_t, in parallel: Delta_k, s_k <- fit, score        (training/local.py)
                 theta_{t+1} <- server step on sum_k w_k Delta_k / sum_k w_k,  w_k ~ n_k exp(gamma s_k)
                 evaluate, checkpoint, log

Under `aggregation: secure` the sum is opened over masked vectors only (`actors/exchange.py`, `privacy/`), and with a
`privacy.mechanism` over clipped and noisy ones.
"""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from fedtalk_ray.actors.cluster import connect
from fedtalk_ray.actors.deaths import RoundLost
from fedtalk_ray.actors.exchange import secure_round
from fedtalk_ray.actors.parameter_server import ask, start_server
from fedtalk_ray.actors.plain_round import plain_round
from fedtalk_ray.actors.pool import SlotPool, results
from fedtalk_ray.config import TrainConfig, save_config
from fedtalk_ray.data.population import Population
from fedtalk_ray.data.shards import Manifest, load_manifest
from fedtalk_ray.data.video import read_video
from fedtalk_ray.errors import RunError, UserError
from fedtalk_ray.federation.checkpoint import config_fingerprint, drop_checkpoint, load_checkpoint
from fedtalk_ray.federation.cohort import sample_cohort
from fedtalk_ray.federation.failure_policy import FailurePolicy
from fedtalk_ray.federation.history import HISTORY, History, read_history
from fedtalk_ray.federation.privacy_plan import sampling_rate, with_noise
from fedtalk_ray.federation.roster import ROSTER, RosterFile, extend_roster
from fedtalk_ray.federation.sampler import Sampler
from fedtalk_ray.federation.secure_aggregator import SERVER_KEY, BudgetSpent, limits_of
from fedtalk_ray.messages import HeldOutLoss, StatisticsUpdate
from fedtalk_ray.observability import progress
from fedtalk_ray.outputs import new_file, writing
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.privacy.protocol import Code
from fedtalk_ray.ray_metrics import RoundMetrics
from fedtalk_ray.run_log import RunLog

Result = TypeVar("Result")


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Runs (or with `resume` goes on with) one federated training; returns the run's folder.

    Raises `errors.UserError` with one line for whatever the user can mend.
    """
    manifest = load_manifest(config.shards)
    config, population = settled(config, manifest)
    sampler = Sampler(config, population)
    run, first = open_run(config, resume)
    try:
        connect(config.address, dashboard=True, debug=config.debug)
        pool = SlotPool(config)
    except UserError:
        # Nothing ran: a second try must not meet a folder that looks like a run. A resumed one is left as it was.
        if not resume:
            (run / "config.yaml").unlink(missing_ok=True)
            run.rmdir()
        raise
    log, metrics = RunLog(run / "tensorboard", first), RoundMetrics(config.run)
    log.settings(config.model_dump(mode="json"))
    history = History(run / HISTORY, keep=first - 1)
    try:
        if config.pretrained is None:
            agree_on_units(pool, sample_cohort(population, config.cohort.size, config.seed, 1))
        rate = sampling_rate(config, len(population))
        server = start_server(config, run / "checkpoints", pool.vector, rate)
        roster = RosterFile(run / ROSTER)
        # Whose held-out loss is looked at: where clients are promised anything, they tell none.
        examined = (population if config.in_the_clear else manifest.unseen())[: config.evaluation.clients]

        def sample(number: int) -> None:
            with_shared(
                config,
                server,
                lambda shared: write_samples(pool, manifest, population[0], run, number, shared, log),
                "released",
            )

        def close_round(record: dict[str, Any], started: float) -> None:
            number, last = record["round"], record["round"] == config.rounds
            stages = record.setdefault("stage_seconds", {})
            begun = monotonic()
            if last or number % config.evaluation.every == 0:
                if examined:
                    record["held_out_loss"], _ = with_shared(
                        config, server, lambda shared: evaluate(pool, examined, number, shared), "released"
                    )
                if config.privacy.mechanism == "gaussian":
                    # Up to a second of arithmetic; secure rounds tell it themselves.
                    record |= ask(server, "spent")
                stages["evaluate"] = round(monotonic() - begun, 3)
            begun = monotonic()
            if last or number % config.evaluation.sample_every == 0:
                sample(number)
                stages["sample"] = round(monotonic() - begun, 3)
            record["seconds"] = round(monotonic() - started, 2)
            history.append(record)
            log.round(record)
            metrics.observe(record, len(pool.ready))

        if missing := first - 1 if recorded_rounds(run) < first - 1 else 0:
            # The run died after this round was applied, and it may not be repeated.
            close_round({"round": missing, "aggregation": config.aggregation, "interrupted": True}, monotonic())
        for number in progress(range(first, config.rounds + 1), config.rounds + 1 - first, "train"):
            started = monotonic()
            past = read_history(run / HISTORY) if sampler.looks_back else []
            spent = ask(server, "participations") if config.privacy.participation_cap else {}
            cohort = sampler.cohort(number, past, spent)
            pool.fit_to(len(cohort))
            try:
                record = run_round(config, pool, server, roster, number, cohort)
                if sampler.looks_back:
                    record["cohort"] = cohort
            except BudgetSpent:
                # The rounds before are paid for: their model is the result.
                sample(number - 1)
                raise
            close_round(record, started)
    finally:
        log.close()
        pool.close()
    return run


def run_round(
    config: TrainConfig, pool: SlotPool, server: Any, roster: RosterFile, number: int, cohort: list[str]
) -> dict[str, Any]:
    """Trains the cohort and moves the shared parameters on; returns the round's line for the history."""
    fewest = limits_of(config).floor if config.aggregation == "secure" else 1
    if len(cohort) < fewest:
        figures = ask(server, "finish", number, str(Code.TOO_FEW))
        counts = {"cohort": len(cohort)}
        return {"round": number, "aggregation": config.aggregation, "counts": counts, **figures}
    enough = config.cohort.size if config.cohort.over_select else None
    one_round = secure_round if config.aggregation == "secure" else plain_round
    if config.aggregation == "secure":
        enrol(pool, cohort, roster)
    record, attempts = with_shared(
        config, server, lambda shared: one_round(config, pool, server, number, cohort, shared, enough)
    )
    return record | {"attempts": attempts} if attempts > 1 else record


def with_shared(
    config: TrainConfig, server: Any, work: Callable[[Any], Result], which: str = "shared"
) -> tuple[Result, int]:
    """What `work` on the shared parameters returns, and at which attempt: it begins again where they were lost.

    which: "shared" to go on from, or "released" to look at (`ParameterServer`).
    """
    policy, attempts = FailurePolicy(config.failures), 1
    while True:
        try:
            # One numpy array in the store, read by every slot without a copy.
            return work(getattr(server, which).remote()), attempts
        except RoundLost:
            if not policy.tries_again(attempts):
                raise
            attempts += 1


def enrol(pool: SlotPool, cohort: list[str], roster: RosterFile) -> None:
    """Adds the public keys of those who take part for the first time to the roster, which only ever grows."""
    known = roster.read()[0].clients if roster.path.is_file() else {}
    if new := [client for client in cohort if client not in known]:
        outcomes = pool.run("enrol", new)
        keys = {name: key for outcome in outcomes for name, key in results(outcome).items()}
        server = SigningKey.kept_in(roster.path.parent / "checkpoints" / SERVER_KEY)
        extend_roster(roster.path, server.public, keys)


def settled(config: TrainConfig, manifest: Manifest) -> tuple[TrainConfig, Population]:
    """The configuration with its noise settled for this population, and the population."""
    population = Population(manifest, config.population, config.seed, config.cohort.clients)
    return with_noise(config, len(population)), population


def open_run(config: TrainConfig, resume: bool) -> tuple[Path, int]:
    """The run's folder and the first round to run. A new run refuses a folder that is in use; a resume needs one."""
    run = Path(config.run)
    checkpoint = load_checkpoint(run / "checkpoints", config_fingerprint(config)) if resume else None
    if resume and not (run / "config.yaml").is_file():
        raise RunError(f"run {run} does not exist, so it cannot be resumed; leave out --resume to start it")
    if checkpoint is not None and checkpoint.round > recorded_rounds(run) and config.in_the_clear:
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


def recorded_rounds(run: Path) -> int:
    """The last round that the run's history tells of."""
    return max((record["round"] for record in read_history(run / HISTORY)), default=0)


def agree_on_units(pool: SlotPool, clients: list[str]) -> None:
    """Without a pretrained backbone, the first cohort's summed latent statistics fix the units for everybody."""
    parts: list[StatisticsUpdate] = [results(outcome) for outcome in pool.run("statistics", clients)]
    pool.tell_all("use_statistics", StatisticsUpdate(np.sum([part.sums for part in parts], axis=0)))


def evaluate(pool: SlotPool, clients: list[str], number: int, shared: Any) -> float:
    """Mean held-out loss over the clients, each on its own clips with its own adapter."""
    outcomes = pool.run("held_out_loss", clients, number, shared)
    parts: list[HeldOutLoss] = [results(outcome) for outcome in outcomes]
    return sum(part.total for part in parts) / sum(part.clients for part in parts)


def write_samples(
    pool: SlotPool, manifest: Manifest, first: str, run: Path, number: int, shared: Any, log: RunLog
) -> None:
    """Exports the model, and lets it speak a held-out clip of somebody nobody trained on and of the first client.

    The client's sample stays in the client's folder, since it shows the client's face.
    """
    pool.one("export", shared, str(run))
    for outcome in pool.run("sample", [first, *manifest.unseen()[:1]], number, shared):
        results(outcome)
    for sheet in (run / "samples").glob(f"round-{number:05d}.png"):
        video = read_video(sheet.with_suffix(".mp4"))
        log.sample(number, np.asarray(Image.open(sheet)), video.frames, video.audio)
