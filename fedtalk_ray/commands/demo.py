"""The whole main job on drawn faces, in a few minutes on two cores: what `make demo` runs.

It starts from `fedtalk-tiny`, the model inside the package, which drawn people's clips made. The clients here are
puppets, whose skins, mouths and voices it has never met (`corpora.drawn.puppets`); so are two whom nobody trains on,
and what the rounds taught is measured on those.
"""

import sys
from pathlib import Path
from shutil import which
from time import monotonic

from fedtalk_ray.actors.connection import connect
from fedtalk_ray.config import parse_config
from fedtalk_ray.corpora.listing import list_synthetic
from fedtalk_ray.corpora.synthetic import PUPPETS
from fedtalk_ray.evaluation.evaluate import AUTOENCODER, COPY, OTHER_SOUND, evaluate_run, metrics_table, write_metrics
from fedtalk_ray.evaluation.statistics import interval
from fedtalk_ray.generation.generate import generate
from fedtalk_ray.generation.samples import write_comparison
from fedtalk_ray.model.embedded import EMBEDDED
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.progress import ticker
from fedtalk_ray.rounds import train
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.shards.prepare import prepare
from fedtalk_ray.training.personalize import personalize

CLIENTS, UNSEEN, CLIPS, SEED = 8, 2, 4, 0
PERSONALIZE_STEPS = 20
BASELINES = (OTHER_SOUND, COPY, AUTOENCODER)
"""What stands in the table beside the model; `fedtalk evaluate` has more, and takes longer."""
TAUGHT = {
    "lip_correlation_spoken": "lips follow the sound (correlation while somebody speaks)",
    "mouth_psnr": "the mouth's picture (PSNR, dB)",
}
"""What the rounds are judged by."""


def run_demo(out: Path, overwrite: bool = False) -> None:
    """Everything lands in `out`: shards, run, videos. Prints where, and what the rounds taught."""
    started = monotonic()
    with new_folder(out, overwrite):
        pass  # refuse a folder in use before minutes are spent
    print("1/5 drawing puppets and preparing their clips")
    connect()
    private = out / "shards"
    prepare(PUPPETS, list_synthetic(CLIENTS + UNSEEN, CLIPS, SEED, PUPPETS), private, unseen=UNSEEN)
    print(f"2/5 federated rounds from {EMBEDDED}, which knows no puppet: secure sums, ISFA weights, TDC loss")
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
    print("5/5 measuring people whom nobody trained on, before the rounds and after")
    manifest = load_manifest(private)
    clients = manifest.clients()
    before = evaluate_run(EMBEDDED, private, "test", excluded=clients, personal=False, rows=())
    after = evaluate_run(run, private, "test", excluded=clients, personal=False, rows=BASELINES)
    write_metrics(after, folder.metrics)
    sheet = out / "before-and-after.png"
    clip = People(private, manifest).clip(unseen, "clip0002")[0]
    write_comparison(clip, {f"{EMBEDDED}, before the rounds": EMBEDDED, "after the rounds": run}, sheet)
    print(metrics_table(after))
    for line in taught(before, after):
        print(line)
    print(f"done in {(monotonic() - started) / 60:.1f} minutes")
    print(f"truth, before and after:       {sheet}")
    print(f"video of a client:             {videos[client]}")
    print(f"video of somebody never seen:  {videos[unseen]}")
    print(f"clients' own adapters:         {folder.client(client).path.parent}")
    print(f"TensorBoard:                   tensorboard --logdir {folder.tensorboard}")
    print(f"try it in a browser:           {program()} app --run {run}")


def program() -> str:
    """How this program is called here: its name, or where it lies if the shell would not find it."""
    if which("fedtalk"):
        return "fedtalk"
    beside = Path(sys.executable).with_name("fedtalk")
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def taught(before: dict, after: dict) -> list[str]:
    """What the rounds taught, on the same clips of people whom nobody trained on: means with their 95% intervals."""
    clips = [result["per_clip"] for result in (before, after)]
    lines = [f"what the rounds taught, on {len(clips[0])} clips of {UNSEEN} puppets whom nobody trained on:"]
    for figure, meaning in TAUGHT.items():
        first, second = ([clip["rows"]["generated"][figure] for clip in measured] for measured in clips)
        gained = interval([b - a for a, b in zip(first, second, strict=True)])
        texts = [f"{each.mean:.2f} ±{each.half_width or 0:.2f}" for each in (interval(first), interval(second), gained)]
        sure = "" if gained.excludes(0) and gained.mean > 0 else "; no gain that these clips can tell from none"
        lines.append(f"  {meaning}: {texts[0]} before, {texts[1]} after, gained {texts[2]}{sure}")
    return lines


def demo_config(out: Path) -> TrainConfig:
    """A small run: every part at work, none for long. Sharpening alone would take as long as all the rest."""
    return parse_config(
        {
            "run": str(out / "run"),
            "shards": str(out / "shards"),
            "pretrained": EMBEDDED,
            "shared": "backbone",
            "phases": ["units", "speech", "faces", "calibration"],
            "rounds": 5,
            "cohort": {"size": CLIENTS},
            "speech": {"rounds": 8, "steps": 10, "batch_size": 16},
            "local": {"steps": 6, "identity_steps": 1, "score_windows": 4, "learning_rate": 2.0e-3},
            "evaluation": {"every": 3, "sample_every": 100, "windows": 2, "clients": 2},
        },
        "demo",
    )
