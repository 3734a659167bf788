"""A new run's folder, or the state in which one that was cut short is taken up again."""

from fedtalk_ray.config import save_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import new_file, writing
from fedtalk_ray.runs.checkpoints import drop_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig


def open_run(run: RunFolder, config: TrainConfig, resume: bool) -> int:
    """Writes the settings down; returns the first round to run.

    A new run refuses a folder that is in use, a resume needs one. A round that was applied, but that the history does
    not tell of, is repeated where clients may answer twice; elsewhere it stays (`interrupted_round`).
    """
    if resume and not run.exists():
        raise RunError(f"run {run.path} does not exist, so it cannot be resumed; leave out --resume to start it")
    checkpoint = run.checkpoint(config) if resume else None
    if checkpoint is not None and checkpoint.round > run.recorded() and config.in_the_clear:
        drop_checkpoint(run.checkpoints, checkpoint.round)
        checkpoint = run.checkpoint(config)
    if not resume and run.path.exists() and any(run.path.iterdir()):
        raise RunError(f"run {run.path} already exists; go on with it by --resume, or give another `run` folder")
    if not resume and run.clients():
        raise RunError(
            f"{run.clients_folder} holds what clients of an earlier run keep: their keys, and what they answered; "
            "remove it, or give another `run` folder"
        )
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        # The server's keys, ledger and log, and what each client keeps: for their owner alone, whatever lies in them.
        for private in (run.checkpoints, run.clients_folder):
            private.mkdir(exist_ok=True)
            private.chmod(0o700)
        with new_file(run.config_file) as place:
            save_config(config, place)
    return checkpoint.round + 1 if checkpoint else 1


def forget_run(run: RunFolder) -> None:
    """Removes a folder in which nothing ran yet: a second try must not meet what looks like a run."""
    run.config_file.unlink(missing_ok=True)
    for empty in (run.checkpoints, run.clients_folder):
        empty.rmdir()
    run.path.rmdir()


def interrupted_round(run: RunFolder, first: int) -> int | None:
    """The round before `first` where it was applied, and the run died before it was written down."""
    return first - 1 if run.recorded() < first - 1 else None
