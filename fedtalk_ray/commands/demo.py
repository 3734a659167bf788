"""The whole main job on drawn faces, in a few minutes on two cores: what `make demo` runs.

It starts from `fedtalk-tiny`, the model inside the package, which other drawn people's clips made. The people here are
clients, and two whom nobody trains on.
"""

from pathlib import Path
from time import monotonic

from fedtalk_ray.actors.connection import connect
from fedtalk_ray.config import parse_config
from fedtalk_ray.corpora.listing import list_synthetic
from fedtalk_ray.evaluation.evaluate import evaluate_run, metrics_table, write_metrics
from fedtalk_ray.generation.generate import generate
from fedtalk_ray.model.embedded import EMBEDDED
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.progress import ticker
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.prepare import prepare
from fedtalk_ray.training.personalize import personalize

CLIENTS, UNSEEN, CLIPS, SEED = 6, 2, 5, 0
PERSONALIZE_STEPS = 40


def run_demo(out: Path, overwrite: bool = False) -> None:
    """Everything lands in `out`: shards, pretrained model, run, video. Prints where."""
    started = monotonic()
    with new_folder(out, overwrite):
        pass  # refuse a folder in use before minutes are spent
    connect()
    print("1/5 drawing people and preparing their clips")
    private = out / "shards"
    prepare("synthetic", list_synthetic(CLIENTS + UNSEEN, CLIPS, SEED), private, unseen=UNSEEN)
    print(f"2/5 federated rounds from {EMBEDDED}: clients are Ray actors, ISFA weights, TDC loss")
    run = train(demo_config(out))
    folder = RunFolder(run)
    client, unseen = "id0000", f"id{CLIENTS:04d}"
    print(f"3/5 personalising {client}, on its own side")
    with ticker(PERSONALIZE_STEPS, "personalize") as tick:
        personalize(run, client, PERSONALIZE_STEPS, lambda _: tick())
    print("4/5 generating")
    videos = {who: out / f"{who}.mp4" for who in (client, unseen)}
    for who, video in videos.items():
        generate(run, f"{who}/clip0002", f"{who}/clip0002", video, client if who == client else None, str(private))
    print("5/5 evaluating on held-out clips")
    result = evaluate_run(run, private, "test")
    write_metrics(result, folder.metrics)
    print(metrics_table(result))
    print(f"done in {(monotonic() - started) / 60:.1f} minutes")
    print(f"video of a client:             {videos[client]}")
    print(f"video of somebody never seen:  {videos[unseen]}")
    print(f"contact sheets:                {folder.samples}")
    print(f"adapters:                      {folder.shared_adapter} (clients' own: {folder.client(client).path.parent})")
    print(f"TensorBoard:                   tensorboard --logdir {folder.tensorboard}")


def demo_config(out: Path) -> TrainConfig:
    """A small run: every part at work, none for long."""
    return parse_config(
        {
            "run": str(out / "run"),
            "shards": str(out / "shards"),
            "pretrained": EMBEDDED,
            "rounds": 3,
            "cohort": {"size": 4},
            # So few people that a sum says much about each: secure aggregation at work, not a guarantee.
            "privacy": {"insecure_min_survivors": 3},
            "local": {"steps": 6, "identity_steps": 3, "score_windows": 2},
            "evaluation": {"sample_every": 3, "windows": 2, "clients": 4},
        },
        "demo",
    )
