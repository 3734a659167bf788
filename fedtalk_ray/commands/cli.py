"""The `fedtalk` command: one sub-command per job. Heavy imports happen inside, so that `--help` is quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedtalk_ray.commands import authority, cluster_options, service, sites, speaking
from fedtalk_ray.commands import privacy as privacy_commands
from fedtalk_ray.commands.speaking import Guidance, Model, Steps
from fedtalk_ray.errors import UserError

app = typer.Typer(
    name="fedtalk",
    help="Federated talking-head diffusion on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

for name, group in (("privacy", privacy_commands.app), ("authority", authority.app), ("site", sites.app)):
    app.add_typer(group, name=name)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Address = Annotated[str, typer.Option(help='Ray cluster: "default", "local", "auto", or host:port.')]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    overwrite: Overwrite = False,
) -> None:
    """The whole main job on drawn faces: data, federated rounds, personalising, two videos, figures.

    Example: `fedtalk demo --out runs/demo`
    """
    from fedtalk_ray.commands.demo import run_demo

    run_demo(out, overwrite)


@app.command()
def prepare(
    corpus: Annotated[
        str,
        typer.Option(
            help="grid, folder, synthetic, puppets, ravdess, crema-d, lrs3, voxceleb2 or hdtf (docs/corpora.md)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Shards folder to write.")],
    root: Annotated[
        Path | None,
        typer.Option(help="The corpus as it was unpacked; grid and folder: ROOT/IDENTITY/CLIP."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Everything as this model takes it: a run's pipeline, or a folder laid out as MuseTalk 1.5's models/. "
            "The options below win."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the face crops in pixels: a multiple of 48 for lower-face, of 16 for patch. [default: 144]"
        ),
    ] = None,
    autoencoder: Annotated[
        str | None,
        typer.Option(
            help='"lower-face", "patch" (whole faces), a folder, or a hub id of diffusers. [default: lower-face]'
        ),
    ] = None,
    speech: Annotated[
        str | None,
        typer.Option(
            help='"log-mel", or a folder or hub id of Whisper, wav2vec2, HuBERT or WavLM. Without it '
            "openai/whisper-tiny for real voices, log-mel for drawn people's."
        ),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(help='"none", "dlib", "facenet", "facenet:WEIGHTS.pt", or an ONNX face network. [default: none]'),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Only these identities, comma-separated.")] = None,
    max_clips: Annotated[
        int | None, typer.Option(help="At most so many clips per identity, spread evenly over its clips.")
    ] = None,
    identities: Annotated[int, typer.Option(help="synthetic, puppets: how many people.")] = 8,
    clips: Annotated[int, typer.Option(help="synthetic, puppets: clips per person.")] = 6,
    seed: Annotated[int, typer.Option(help="synthetic, puppets: which people.")] = 0,
    unseen: Annotated[
        str | None,
        typer.Option(
            help="Keep these for testing only: a number (the last N; 0: nobody), or comma-separated names. Else the "
            "test set that lrs3 and voxceleb2 define; elsewhere who has one clip."
        ),
    ] = None,
    address: Address = "default",
    overwrite: Overwrite = False,
) -> None:
    """Turn clips into shards: aligned face crops, sound features, latents.

    Example: `fedtalk prepare --corpus grid --root data/grid --out shards/grid`
    """
    from fedtalk_ray.actors.connection import connect
    from fedtalk_ray.corpora.listing import at_most, list_corpus, only_identities, own_test_set, usual_speech
    from fedtalk_ray.shards.prepare import REJECTS, parse_unseen
    from fedtalk_ray.shards.prepare import prepare as run_prepare
    from fedtalk_ray.training.backbone import ShardSettings, shard_settings

    fit = ShardSettings("lower-face", usual_speech(corpus), 144) if backbone is None else shard_settings(backbone)
    sources = list_corpus(corpus, root, identities=identities, clips=clips, seed=seed)
    if only is not None:
        sources = only_identities(sources, [name.strip() for name in only.split(",")])
    if max_clips is not None:
        sources = at_most(sources, max_clips)
    held_back = None if unseen is None else parse_unseen(unseen, [source.identity for source in sources])
    if unseen is None and (held_out := own_test_set(sources)):
        print(f"unseen: the {len(held_out)} identities of {corpus}'s own test set (--unseen says otherwise)")
    connect(address)
    manifest = run_prepare(
        corpus,
        sources,
        out,
        size=size or fit.size,
        autoencoder=autoencoder or fit.autoencoder,
        speech=speech or fit.speech,
        framing=fit.framing,
        identity=identity or fit.identity,
        unseen=held_back,
        overwrite=overwrite,
    )
    kept = sum(len(entries) for entries in manifest.identities.values())
    print(
        f"shards: {out} ({kept} clips, {len(manifest.clients())} clients, {len(manifest.unseen())} unseen identities)"
    )
    if manifest.rejected:
        print(f"rejected: {manifest.rejected} clips, reasons in {out / REJECTS}")


@app.command()
def pretrain(
    shards: Annotated[Path, typer.Option(help="Shards whose clips may be public.")],
    out: Annotated[Path, typer.Option(help="Folder for the pretrained pipeline (diffusers layout).")],
    minutes: Annotated[
        float,
        typer.Option(min=0, help="Time for the denoiser or a single phase; lower-face's decoder takes as much again."),
    ] = 20.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoiser steps instead of minutes: reproducible.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Size of the backbone: tiny (else), base or large (docs/presets.md).")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Go on from this pipeline: a folder, fedtalk-tiny or a hub id.")
    ] = None,
    loss: Annotated[list[str] | None, typer.Option(help="A loss weight, as in tdc=0 or sync=0.05; repeatable.")] = None,
    phase: Annotated[
        list[str] | None, typer.Option(help="Only this phase, of a network that knows the others; repeatable.")
    ] = None,
    shown: Annotated[
        float | None, typer.Option(min=0, max=1, help="How much is painted over bent photos (calibration.shown).")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="While hearing is taught (speech.dropout): 0 for many speakers."),
    ] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for the curves of all losses.")] = None,
    device: Annotated[str, typer.Option(help="Of the training: auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of all random choices: weights, windows, noise.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train decoder, identity encoder, sync network and the shared backbone centrally, on the train split of SHARDS.

    Example: `fedtalk pretrain --shards shards/grid --from fedtalk-tiny --out models/grid --minutes 20`
    """
    from fedtalk_ray.config import parse_loss, parse_phases
    from fedtalk_ray.training.pretrain import pretrain as run_pretrain

    result = run_pretrain(
        shards,
        out,
        minutes=minutes,
        steps=steps,
        seed=seed,
        loss_config=parse_loss(loss or []),
        shown=shown,
        dropout=dropout,
        only=parse_phases(phase or []),
        size=preset,
        start=start,
        tensorboard=tensorboard,
        device=device,
        overwrite=overwrite,
    )
    print(f"autoencoder: {result.psnr_before:.1f} dB before, {result.psnr_after:.1f} dB after (held-out frames)")
    if result.steps:
        print(f"denoiser: {result.steps} steps, diffusion loss {result.loss:.3f}")
    print(f"pretrained pipeline: {out}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; jobs/configs holds examples.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dots reach inside sections.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Federated rounds on Ray.

    Example: `fedtalk train jobs/configs/grid.yaml rounds=10 strategy.name=fedavg run=runs/fedavg`
    """
    from fedtalk_ray.config import load_config
    from fedtalk_ray.rounds import train as run_train
    from fedtalk_ray.runs.folder import RunFolder

    folder = RunFolder(run_train(load_config(config, overrides), resume))
    print(f"run: {folder.path}")
    adapter = f" and {folder.shared_adapter}" if folder.has_shared_adapter() else ""
    print(f"model: {folder.pipeline}{adapter}; videos: {folder.samples}")
    print(f"TensorBoard: tensorboard --logdir {folder.tensorboard}")


@app.command()
def personalize(
    run: Annotated[Path, typer.Option(help="Run folder.")],
    client: Annotated[str, typer.Option(help="Whose adapter.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps on the adapter.")] = 150,
    shards: Annotated[str | None, typer.Option(help="The client's clips; else those the run was trained on.")] = None,
) -> None:
    """Train one client's own identity adapter on its own clips; it stays in the client's folder.

    Somebody who took no part in the run is personalised from shards of their own.

    Example: `fedtalk personalize --run runs/grid --client s1 --steps 150`
    """
    from fedtalk_ray.progress import ticker
    from fedtalk_ray.training.personalize import personalize as run_personalize

    with ticker(steps, "personalize") as tick:
        result = run_personalize(run, client, steps, lambda _: tick(), shards)
    print(f"held-out loss of {client}: {result.loss_before:.4f} before, {result.loss_after:.4f} after")
    print(f"identity adapter: {result.folder}")


@app.command()
def evaluate(
    run: Model,
    shards: Annotated[Path, typer.Option(help="Shards with held-out clips.")],
    out: Annotated[Path, typer.Option(help="metrics.json to write.")],
    split: Annotated[str, typer.Option(help="test, val, or held-out for both.")] = "test",
    judge: Annotated[Path | None, typer.Option(help="Folder with fr_feature.onnx; adds `identity`.")] = None,
    shared_only: Annotated[bool, typer.Option("--shared-only", help="Leave the clients' own adapters out.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Noise seeds to average over.")] = 1,
    clips: Annotated[int | None, typer.Option(min=1, help="At most so many clips a group, for a quick look.")] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Leave these people out, comma-separated: those by whom settings were chosen.")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Measure held-out clips, beside copying the reference frame and the autoencoder alone.

    Example: `fedtalk evaluate --run runs/grid --shards shards/grid --out runs/grid/metrics.json`
    """
    from fedtalk_ray.evaluation.evaluate import evaluate_run, load_instruments, metrics_table, write_metrics
    from fedtalk_ray.evaluation.held_out import SPLITS

    if split not in SPLITS:
        raise UserError(f"--split is {split!r}; known: {', '.join(SPLITS)}")
    instruments, missing = load_instruments(judge)
    excluded = [name.strip() for name in (exclude or "").split(",") if name.strip()]
    sampling = speaking.sampling(steps, guidance)
    result = evaluate_run(run, shards, split, instruments, not shared_only, samples, clips, excluded, sampling=sampling)
    write_metrics(result, out)
    print(metrics_table(result))
    for line in missing:
        print(line)
    print(f"metrics: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Page to write; else RUN/report.html.")] = None,
    client: Annotated[
        str | None, typer.Option(help="Also show this client's face, with its own identity adapter; private.")
    ] = None,
    metrics: Annotated[Path | None, typer.Option(help="What `fedtalk evaluate` wrote; else RUN/metrics.json.")] = None,
) -> None:
    """A run as one HTML page that opens from disk: videos side by side, tables, plots, configuration.

    Example: `fedtalk report runs/grid --client s1`
    """
    from fedtalk_ray.report.page import write_report

    print(f"report: {write_report(run, out, client=client, metrics=metrics)}")


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    fast: Annotated[bool, typer.Option("--fast", help="A quick look: fewer people, canaries and steps.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="An attack by name; repeatable. Else all.")] = None,
) -> None:
    """Attack a run as the field does, and print what an attacker gets beside what the accountant claims.

    Exits with 1 where a promise is broken. Needs people whom the run was not trained on (`prepare --unseen`).

    Example: `fedtalk audit runs/grid --only membership --only canaries`
    """
    from fedtalk_ray.audits.audit import audit as run_audit

    run_audit(run, fast=fast, only=only or ())


@app.command()
def compare(
    experiment: Annotated[Path, typer.Argument(help="YAML file; jobs/configs/compare holds examples.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, over the experiment's base.")] = None,
    out: Annotated[str | None, typer.Option(help="Output folder instead of the experiment's.")] = None,
) -> None:
    """Run methods x seeds and put their figures side by side: tables with 95% intervals, and plots.

    Started again, it leaves what is complete and goes on with the rest.

    Example: `fedtalk compare jobs/configs/compare/methods.yaml rounds=20`
    """
    from fedtalk_ray.comparison.compare import compare as run_compare
    from fedtalk_ray.comparison.experiment import load_experiment

    folder = run_compare(load_experiment(experiment, out), settings)
    print((folder / "table.md").read_text(encoding="utf-8"))
    print(f"tables: {folder}/table.csv, table.md, table.tex; plots: {folder / 'plots'}; all figures: results.json")


@app.command()
def corrupt(
    shards: Annotated[Path, typer.Option(help="Clean shards.")],
    out: Annotated[Path, typer.Option(help="Folder for the corrupted copy.")],
    share: Annotated[float, typer.Option(help="Share of the clients that become unreliable.")] = 1 / 3,
    who: Annotated[str | None, typer.Option(help="These clients, comma-separated, and not a share of them.")] = None,
    kinds: Annotated[
        str, typer.Option(help="What is done to them in turn, comma-separated.")
    ] = "shuffled frames,wrong sound,mixed identities",
    seed: Annotated[int, typer.Option(min=0, help="Which clients, and how.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Copy shards with some clients made unreliable: their clips to train on and to score with are corrupted.

    Test clips stay clean. Example: `fedtalk corrupt --shards shards/grid --out shards/grid-unreliable --seed 0`
    """
    from fedtalk_ray.shards.unreliable import corrupt_shards

    named = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    chosen = None if who is None else [name.strip() for name in who.split(",") if name.strip()]
    victims = corrupt_shards(shards, out, share=share, who=chosen, kinds=named, seed=seed, overwrite=overwrite)
    print(f"shards: {out}; unreliable: " + ", ".join(f"{who} ({kind})" for who, kind in sorted(victims.items())))


app.command(context_settings=cluster_options.PASSED_ON)(cluster_options.submit)
for command in (speaking.generate, speaking.verify, cluster_options.status, sites.serve, sites.join, sites.fetch):
    app.command()(command)
app.command("app")(service.app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: what the user can mend is one line on stderr and exit status 1."""
    from fedtalk_ray.commands.command_file import expanded

    try:
        app(expanded(typer.main.get_command(app), sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        line = " ".join(str(error).split())
        # Names of files come from anywhere: none may move the terminal's cursor.
        print("fedtalk: " + "".join(sign if sign.isprintable() else "?" for sign in line), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
