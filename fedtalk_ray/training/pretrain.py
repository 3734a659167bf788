"""Central pretraining on clips that may be public: a federation of one, whose client holds everything.

The phases are those of a federated training (`recipe`, `ResidentModel`), in the same rounds and with the same server's
step; here they run one after another in this process. `fedtalk train` with the settings of `federation_of_one` gives
the same weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import ShardError
from fedtalk_ray.federation.server_optimizer import make_optimizer
from fedtalk_ray.media.speech import LOG_MEL
from fedtalk_ray.model.autoencoder import LOWER_FACE, PatchAutoencoder, sees_reference
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.model.presets import PresetError, preset, sizes
from fedtalk_ray.model.released import save_backbone
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.progress import progress, ticker
from fedtalk_ray.recipe import PHASES, STATISTICS_ROUNDS, LossConfig, PhaseName, PhaseRounds
from fedtalk_ray.settings import ServerConfig, TrainConfig
from fedtalk_ray.shards.format import Manifest, load_manifest
from fedtalk_ray.shards.people import People, people_of
from fedtalk_ray.shards.population import EVERYBODY, HELD_BACK
from fedtalk_ray.shards.storage import is_remote
from fedtalk_ray.tracking.tensorboard import TensorBoardLog
from fedtalk_ray.training.backbone import SpeechPhase, build_pipeline
from fedtalk_ray.training.model_card import Recipe, model_card
from fedtalk_ray.training.phases.decoder import autoencoder_psnr
from fedtalk_ray.training.phases.mouths import can_open
from fedtalk_ray.training.phases.phase import task_of
from fedtalk_ray.training.phases.sync import sync_accuracy
from fedtalk_ray.training.resident import ResidentModel

SHARES: dict[PhaseName, tuple[float, float]] = {
    "decoder": (0.07, 75.0),
    "identity": (0.07, 75.0),
    "sync": (0.1, 150.0),
    "speech": (0.13, 200.0),
    "sharpness": (1.0, math.inf),
}
"""Phases beside the denoiser's: share of its time, and the seconds after which more taught nothing (one core, 1,100
clips at most). How long `sharpness` goes on teaching was not measured."""
STEPS_PER_ROUND = 25
GUESS = 1000
"""Rounds that a phase which is given time, and not rounds, is taken to have until its first one was timed."""
MOST_JUDGED = 60
"""Clips that the sync network is judged by."""
MIN_PSNR = 28.0
"""dB that the autoencoder must reach on held-out frames before anything trains on its latents."""


@dataclass(frozen=True)
class Pretrained:
    """What was reached. PSNRs in dB on held-out frames; loss: mean diffusion loss of the last tenth of the rounds, NaN
    where none was of the denoiser."""

    psnr_before: float
    psnr_after: float
    steps: int
    loss: float


def federation_of_one(
    manifest: Manifest,
    shards: str | Path,
    out: str | Path,
    *,
    patch: bool = True,
    sharp: bool = False,
    speech: SpeechPhase = "speech",
    mouths: bool = False,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    loss: LossConfig | None = None,
    shown: float | None = None,
    dropout: float | None = None,
    start: str | None = None,
) -> TrainConfig:
    """The settings under which `fedtalk train` does what `pretrain` does.

    patch: whether the autoencoder is "patch", whose decoder can be taught; sharp: whether it is "lower-face", whose
    decoder is taught last. speech: which phase teaches the speech encoder. mouths: whether the denoiser
    can be taught what opened lips show (`phases.mouths.can_open`). steps: of the denoiser, in whole rounds; half as
    many go to each other phase that takes any. shown, dropout: `CalibrationConfig.shown` and `SpeechConfig.dropout`,
    None as they are there. Nothing is calibrated of clips too few to keep any aside. Raises `ShardError` for shards
    without training clips.
    """
    people = sum(manifest.frames(name, "train") > 0 for name in manifest.identities)
    if not people:
        raise ShardError(f"shards {shards} hold no training clip; an identity needs two clips for one to be trained on")
    pieces = sum(manifest.pieces(name, "train") for name in manifest.identities)
    held_out = any(manifest.frames(name, "val") for name in manifest.identities) or pieces >= HELD_BACK
    able = {"decoder": patch, "sharpness": sharp, "identity": people > 1, "calibration": held_out}
    able |= {"speech": speech == "speech", "hearing": speech == "hearing", "mouths": mouths}
    wanted = steps or STEPS_PER_ROUND
    before = {"rounds": -(-wanted // (2 * STEPS_PER_ROUND)), "steps": min(-(-wanted // 2), STEPS_PER_ROUND)}
    return parse_config(
        {
            "run": str(out),
            "shards": str(shards),
            "pretrained": start,
            "seed": seed,
            "shared": "backbone",
            "aggregation": "plain",
            "population": {"pooled": True},
            "cohort": {"size": 1},
            "strategy": {"name": "uniform"},
            "phases": [name for name in PHASES if able.get(name, True)],
            "rounds": -(-wanted // STEPS_PER_ROUND),
            **dict.fromkeys(SHARES, before),
            "speech": before | ({} if dropout is None else {"dropout": dropout}),
            "local": {
                "steps": min(wanted, STEPS_PER_ROUND),
                "identity_steps": 0,
                "weight_decay": 0.02,
                "loss": (loss or LossConfig()).model_dump(),
            },
            "calibration": {} if shown is None else {"shown": shown},
            # One client holds everything, which makes a large one, and no cluster is there to read ahead.
            "stream": {"reader": "auto" if is_remote(shards) else "direct"},
            "slots": {"count": 1, "threads": threads},
        },
        "pretrain",
    )


def pretrain(
    shards: str | Path,
    out: str | Path,
    *,
    minutes: float,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    loss_config: LossConfig | None = None,
    shown: float | None = None,
    dropout: float | None = None,
    only: Sequence[PhaseName] = (),
    size: str | None = None,
    start: str | None = None,
    tensorboard: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Pretrained:
    """All phases in turn, on the train split of `shards`; writes a pipeline in diffusers' layout to `out`.

    What is shown of its predictions is calibrated on val clips, or on training clips kept aside (`population`).

    The denoiser trains for `minutes` (or `steps`, in whole rounds), the phases before it for a share of that each, and
    the decoder of "lower-face" after it for as long again; the only one that is gone through takes all of it, beside
    those that need no time (`STATISTICS_ROUNDS`).
    size: a name of `model.presets`, None for tiny. start: a pipeline to go on from (`model.pipeline.load_pipeline`), in
    place of random weights of that size. shown, dropout: as in `federation_of_one`. only: the phases to go
    through, all where none is named. tensorboard: where the phases' losses are logged, by round. device: "auto" is a
    GPU where there is one. Raises `ShardError` for shards without training clips, that do not fit `start`, or of an
    autoencoder that is too poor to build on, and `PresetError` for an unknown size, for one beside `start`, for single
    phases without one, or for what is set of a phase that is not gone through.
    """
    device = pick_device(device)
    if size and start:
        raise PresetError(f"preset {size!r} cannot be chosen beside a start: {start} has a size already")
    if only and not start:
        raise PresetError(f"phase {only[0]!r} alone needs a network that was taught the others: name it as the start")
    began, settings_of_size = monotonic(), sizes(preset(size or "tiny"))
    torch.set_num_threads(threads)
    manifest = load_manifest(shards)
    with new_folder(out, overwrite) as place:
        speech = speech_phase_for(manifest, start)
        pipeline = build_pipeline(
            start, seed, manifest, hears_anew=speech, sees_anew=True, opens_anew=True, **settings_of_size
        )
        patch = isinstance(pipeline.autoencoder, PatchAutoencoder)
        config = federation_of_one(
            manifest,
            shards,
            out,
            patch=patch,
            sharp=sees_reference(pipeline.autoencoder),
            speech=speech,
            mouths=can_open(bare_denoiser(pipeline.denoiser)),
            steps=steps,
            seed=seed,
            threads=threads,
            loss=loss_config,
            shown=shown,
            dropout=dropout,
            start=start,
        )
        if unable := [name for name in only if name not in config.phases]:
            raise ShardError(f"phase {unable[0]!r} has nothing to teach {start} from shards {shards}")
        plan = [phase for phase in config.plan if not only or phase.name in only]
        names = [phase.name for phase in plan]
        for option, value, of in (("shown", shown, "calibration"), ("dropout", dropout, "speech")):
            if value is not None and of not in names:
                said = f"{option} {value:g} is that of phase {of!r}, which is not gone through here"
                raise PresetError(f"{said} ({', '.join(names)})")
        alone = sum(name not in STATISTICS_ROUNDS for name in names) == 1
        people = people_of(config)
        check = frames_to_judge(people)
        before = after = autoencoder_psnr(pipeline.autoencoder, check)
        model = ResidentModel(pipeline, config, device)
        losses: list[float] = []
        with logged(tensorboard) as log:
            for phase in plan:
                model.enter(phase.name, {})
                seconds = None if steps is not None else seconds_of(phase.name, minutes, alone)
                for number, terms in run_phase(model, people, config, phase, seconds):
                    log(number, {f"{phase.name}/{name}": value for name, value in terms.items()})
                    if phase.name == "faces":
                        losses.append(terms["diffusion"])
                if phase.name == ("decoder" if patch else "units"):
                    after = autoencoder_psnr(pipeline.autoencoder.to("cpu"), check)
                    check_autoencoder(after, manifest.autoencoder, shards)
                    pipeline.autoencoder.to(device)
        loss = float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else math.nan
        pipeline.to("cpu")
        save_backbone(pipeline, pipeline.denoiser, place)
        done = len(losses) * config.local.steps
        recipe = Recipe(
            str(shards), size or "tiny", start, minutes, steps, seed, threads, config.local.loss, shown, dropout, only
        )
        figures = {"autoencoder, dB on held-out frames": after}
        figures |= {"diffusion loss at the end": loss} if losses else {}
        figures |= judged_sync(pipeline, people)
        trained_on = people.identities(EVERYBODY)
        clips = sum(manifest.pieces(name, "train") for name in trained_on)
        card = model_card(manifest, recipe, clips, len(trained_on), done, monotonic() - began, figures)
        (place / "README.md").write_text(card)
    return Pretrained(before, after, done, loss)


def speech_phase_for(manifest: Manifest, start: str | None) -> SpeechPhase:
    """`hearing` for features of a pretrained encoder, where a network of ours bends references to what it hears; else
    `speech`. start: what is gone on from."""
    if manifest.speech == LOG_MEL or manifest.autoencoder != LOWER_FACE:
        return "speech"
    ours = start is None or isinstance(bare_denoiser(load_pipeline(start).denoiser), TalkingHeadDenoiser)
    return "hearing" if ours else "speech"


def run_phase(
    model: ResidentModel, people: People, config: TrainConfig, phase: PhaseRounds, seconds: float | None
) -> Iterator[tuple[int, dict[str, float]]]:
    """All rounds of a phase with everybody's clips, and its end; yields each round's number and mean loss terms.

    seconds: how long it may take, in place of the configured number of rounds.
    """
    shared = model.initial
    statistics = phase.name in STATISTICS_ROUNDS
    settings = ServerConfig() if statistics else config.server
    server = make_optimizer(settings, len(shared))
    history: list[np.ndarray] = []
    timed = seconds is not None and not statistics
    for index, count in until(seconds or 0.0, phase.name) if timed else steady(phase):
        known = PhaseRounds(phase.name, phase.first, phase.first + count - 1)
        task = task_of(config, people, EVERYBODY, phase.first + index, shared, phase=known)
        report, fitted = model.fit(task, people.frames(EVERYBODY))
        shared = server.step(shared, fitted.update)
        history = [*history, shared][-settings.average :]
        yield index + 1, report.losses
    model.finish(np.stack(history).mean(0, dtype=np.float64).astype(np.float32))


def steady(phase: PhaseRounds) -> Iterator[tuple[int, int]]:
    """The rounds of a phase from 0, and how many there are, under a progress bar."""
    for index in progress(range(phase.count), phase.count, phase.name):
        yield index, phase.count


def until(seconds: float, what: str) -> Iterator[tuple[int, int]]:
    """Rounds from 0 for so many seconds, and how many there will be as far as one can tell, under a progress bar.

    The learning rate goes by how much of the phase is over, so it needs to know.
    """
    began, index, count = monotonic(), 0, GUESS
    with percent(what) as show:
        while index < count:
            yield index, count
            index += 1
            count = max(index, round(index * seconds / (monotonic() - began)))
            show(100 * index // count)


@contextmanager
def percent(what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar in hundredths, to be told how many are done."""
    with ticker(100, what) as tick:
        shown = 0

        def show(done: int) -> None:
            nonlocal shown
            for _ in range(shown, done):
                tick()
            shown = max(shown, done)

        yield show
        show(100)


@contextmanager
def logged(folder: str | Path | None) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """What writes scalars to TensorBoard in `folder`, or nowhere."""
    if folder is None:
        yield lambda step, scalars: None
        return
    log = TensorBoardLog(Path(folder))

    def write(step: int, scalars: dict[str, float]) -> None:
        log.scalars(step, scalars)
        log.flush()

    try:
        yield write
    finally:
        log.close()


def seconds_of(phase: PhaseName, minutes: float, alone: bool = False) -> float:
    """How long a phase may take where the denoiser has so many minutes. alone: no other phase takes time."""
    if alone:
        return 60 * minutes
    share, most = SHARES.get(phase, (1.0, 60 * minutes))
    return min(60 * minutes * share, most)


def check_autoencoder(psnr: float, name: str, shards: str | Path) -> None:
    """Raises `ShardError` for one that loses too much."""
    if psnr < MIN_PSNR:
        raise ShardError(
            f"autoencoder {name!r} reaches {psnr:.1f} dB on held-out frames of {shards}; at least {MIN_PSNR:g} dB are "
            "needed to build on: prepare the shards with a better one"
        )


def frames_to_judge(people: People) -> np.ndarray:
    """Some held-out frames, or training frames of shards with too few clips to spare any: uint8 [n, S, S, 3]."""
    found = [piece.frames[::10] for piece in people.pieces(EVERYBODY, "val", ("frames",))]
    if not found:
        found = [piece.frames[::10] for piece in people.pieces(EVERYBODY, "train", ("frames",))]
    return np.concatenate(found)[:200]


def judged_sync(pipeline: TalkingHeadPipeline, people: People) -> dict[str, float]:
    """How well the sync network does on held-out clips; nothing without any."""
    pieces = list(people.pieces(EVERYBODY, "val", ("latents", "speech")))
    if not pieces or pipeline.sync_network is None:
        return {}
    accuracy = sync_accuracy(pipeline.sync_network, pieces[:: -(-len(pieces) // MOST_JUDGED)])
    return {"sync network, held-out clips in time within 2 frames (chance 0.45)": accuracy.within_2}
