"""How good a run's model is on held-out clips, always beside its floor and its ceiling.

Columns of the table: *generated* (right sound), *other sound* (the same faces driven by another clip's sound: a model
whose lips follow the sound must do worse here), *true lips told* (every frame's true lip shape in place of what is
heard, the first one's as the reference's own: what is wrong here was painted wrongly, the rest misheard), *dubbed*
(the clip's own frames saying another sentence, as `generate` makes it of a video; its lips are held against that
sentence's), *copy* (the first frame repeated: the floor), *autoencoder* (every frame through the autoencoder and back,
with the first one's detail, bent to its true lips where the model bends: the ceiling) and *real/real* (real pictures
against other real pictures: what identity and the Fréchet distance come to when nothing is generated).
Groups: identities that took part, and those nobody trained on.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fedtalk_ray.errors import ShardError, UserError
from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.clip_figures import Alignment, Figures, Truth, measure, measure_truth, real_figures
from fedtalk_ray.evaluation.frechet import FeatureNetwork, frechet_distance, halves, load_features
from fedtalk_ray.evaluation.held_out import GROUPS, UNSEEN, Clip, HeldOut, another_real_clip, choose_clips, read_clips
from fedtalk_ray.evaluation.judge import IdentityJudge
from fedtalk_ray.evaluation.perceptual import PerceptualDistance, load_perceptual
from fedtalk_ray.evaluation.statistics import half_widths, merge
from fedtalk_ray.generation.ahead import ahead
from fedtalk_ray.generation.generate import ONE_PASS
from fedtalk_ray.generation.scene import dubbed_crops
from fedtalk_ray.generation.whole_picture import speak_in
from fedtalk_ray.media.dlib_models import MissingModelError
from fedtalk_ray.media.lips import lip_aperture, lip_motion
from fedtalk_ray.media.speech import spoken
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released, open_model
from fedtalk_ray.model.sampling import USUAL, Sampling
from fedtalk_ray.outputs import new_file
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People, speakers
from fedtalk_ray.training.backbone import check_fits

GENERATED, OTHER_SOUND, TOLD, DUBBED = "generated", "other sound", "true lips told", "dubbed"
COPY, AUTOENCODER, REAL = "copy", "autoencoder", "real/real"
ROWS = (GENERATED, OTHER_SOUND, TOLD, DUBBED, COPY, AUTOENCODER, REAL)


@dataclass(frozen=True)
class Instruments:
    """What measures beyond plain arithmetic; a figure whose instrument is missing is left out."""

    judge: IdentityJudge | None = None
    perceptual: PerceptualDistance | None = None
    frechet: FeatureNetwork | None = None

    def needed(self, figures: Collection[str]) -> "Instruments":
        """Without the slow ones that none of these figures comes from."""
        perceptual = self.perceptual if self.perceptual and self.perceptual.name in figures else None
        frechet = self.frechet if self.frechet and set(self.frechet.names()) & set(figures) else None
        return Instruments(self.judge, perceptual, frechet)

    def names(self) -> list[str]:
        """Figures that are measured beside plain arithmetic and the judge's."""
        found = [self.perceptual.name] if self.perceptual else []
        return [*found, *(self.frechet.names() if self.frechet else ())]


@dataclass
class Measured:
    """One clip: its figures by row, and each row's features by what they are for (`FeatureNetwork.names`), arrays
    [k, D], one dictionary a noise seed (the truth's under REAL)."""

    entry: HeldOut
    rows: dict[str, Figures] = field(default_factory=dict)
    features: dict[str, list[dict[str, np.ndarray]]] = field(default_factory=dict)


def load_instruments(judge: str | Path | None) -> tuple[Instruments, list[str]]:
    """All that can be had, and a line for each that cannot. judge: folder of an `IdentityJudge`; it must be right."""
    found: dict[str, Any] = {"judge": None if judge is None else IdentityJudge(judge)}
    missing = []
    loaders: dict[str, Callable[[], Any]] = {"perceptual": load_perceptual, "frechet": load_features}
    for name, load in loaders.items():
        try:
            found[name] = load()
        except MissingModelError as error:
            missing.append(str(error))
    return Instruments(**found), missing


def evaluate_run(
    run: str | Path,
    shards: str | Path,
    split: str,
    instruments: Instruments | None = None,
    personal: bool = True,
    samples: int = 1,
    limit: int | None = None,
    excluded: Collection[str] = (),
    device: str = "auto",
    rows: Collection[str] = ROWS,
    sampling: Sampling = USUAL,
) -> dict:
    """Figures of the held-out clips, each alone and averaged by group and row, as plain data for JSON.

    Of clients to whom the run promised anything there are means and counts alone.

    run: a run's folder or a pretrained pipeline's. personal: seen clients speak with their own identity adapter where
    the run has one, of virtual clients with that of the first who holds their clips. samples: noise seeds to average
    over. limit: at most so many clips a group. excluded: identities that do not count. rows: which are
    measured beside *generated*, where time counts; distances between sets need all.
    Raises `UserError`s.
    """
    folder, instruments, device = open_model(run), instruments or Instruments(), pick_device(device)
    if set(rows) != set(ROWS):
        instruments = replace(instruments, frechet=None)
    people = People(shards, load_manifest(shards))
    for name in excluded:
        if name not in people.manifest.identities:
            raise ShardError(f"{name!r} is to be left out, and is not in the shards {shards}")
    model = load_released(folder, device=device)
    check_fits(people.manifest, model, str(folder.pipeline), heard=False)
    if sampling != USUAL and bare_denoiser(model.denoiser).each_frame_alone:
        raise UserError(ONE_PASS)
    entries = choose_clips(people.manifest, split, limit, excluded)
    measured = []
    # Clips of one identity lie together: its adapter is loaded once.
    speaker_of, loaded = speakers(folder, personal), None
    adapted: dict[str, str] = {}
    for clip in progress(read_clips(people, split, entries), len(entries), "evaluate"):
        identity = clip.entry.identity
        client = speaker_of(identity)
        if client != loaded:
            model, loaded = load_released(folder, client, device), client
        if client is not None:
            adapted[identity] = client
        other = another_real_clip(people, identity, clip.entry.clip, model.framing) if instruments.judge else None
        measured.append(measure_clip(model, clip, instruments, other, samples, rows, sampling))
    groups = {group: [clip for clip in measured if clip.entry.group == group] for group in GROUPS}
    groups = {group: clips for group, clips in groups.items() if clips}
    promised = folder.exists() and not folder.config().in_the_clear
    return {
        "run": str(folder.path),
        "after_round": folder.released_round(),
        "shards": str(shards),
        "split": split,
        "samples": samples,
        "sampling": asdict(sampling),
        "marks": "none: figures are of pictures as they are made, before a mark is put in",
        "clips": {group: len(clips) for group, clips in groups.items()},
        "identity_adapters": len(adapted),
        "groups": {group: group_figures(clips, instruments.frechet) for group, clips in groups.items()},
        "half_widths_95": {
            group: {row: half_widths([clip.rows[row] for clip in clips if row in clip.rows]) for row in clips[0].rows}
            for group, clips in groups.items()
        },
        "per_clip": [
            {"group": clip.entry.group, "identity": clip.entry.identity, "clip": clip.entry.clip, "rows": clip.rows}
            for clip in measured
            if clip.entry.group == UNSEEN or not promised
        ],
    }


def measure_clip(
    model: TalkingHeadPipeline,
    clip: Clip,
    instruments: Instruments,
    other: np.ndarray | None,
    samples: int,
    rows: Collection[str] = ROWS,
    sampling: Sampling = USUAL,
) -> Measured:
    """One clip's rows; generated ones are the mean over the seeds 0 to samples - 1.

    other: aligned frames uint8 [T, S, S, 3] of another real clip of the person, or None. rows: beside *generated*.
    """
    piece = clip.piece
    aligned = Alignment(piece, model.framing)
    real = aligned(piece.frames)
    truth = measure_truth(replace(piece, frames=real), instruments.judge, other)
    result = Measured(clip.entry)
    count = len(piece.frames)

    def said(sound: np.ndarray, seed: int, lips: np.ndarray | None = None) -> np.ndarray:
        return aligned.of_first(speak(model, piece.frames[0], sound, seed, count, lips, sampling))

    def others() -> Iterator[tuple[str, list[np.ndarray]]]:
        """Rows of clips as long as the truth."""
        if OTHER_SOUND in rows and clip.other_sound is not None:
            yield OTHER_SOUND, [said(clip.other_sound, seed) for seed in range(samples)]
        if TOLD in rows and bare_denoiser(model.denoiser).knows_lips() and len(piece.landmarks):
            lips = lip_motion(piece.landmarks)
            yield TOLD, [said(piece.waveform, seed, lips=lips) for seed in range(samples)]
        if AUTOENCODER in rows:
            yield AUTOENCODER, [aligned(model.from_latents(piece.frames[0], piece.latents, piece.landmarks))]
        if COPY in rows:
            yield COPY, [np.repeat(real[:1], count, axis=0)]

    # Alone: it is timed.
    began = perf_counter()
    generated = [said(piece.waveform, seed) for seed in range(samples)]
    seconds = perf_counter() - began
    # The next row is made while one is measured.
    for row, clips in chain([(GENERATED, generated)], ahead(others(), held=1)):
        result.rows[row] = merge(
            [measure(frames, truth, instruments.judge, instruments.perceptual) for frames in clips]
        )
        if instruments.frechet is not None:
            result.features[row] = [instruments.frechet.features_by_name(frames) for frames in clips]
    result.rows[GENERATED]["frames_per_second"] = samples * count / seconds
    if DUBBED in rows and clip.dubbed_with is not None:
        result.rows[DUBBED] = merge([dubbed_figures(model, clip, truth, seed, sampling) for seed in range(samples)])
    if REAL in rows:
        result.rows[REAL] = real_figures(truth)
    result.rows = {row: result.rows[row] for row in ROWS if row in result.rows}
    if instruments.frechet is not None:
        result.features[REAL] = [instruments.frechet.features_by_name(real)]
    if OTHER_SOUND in rows:
        made = result.rows[GENERATED]
        wrong = result.rows.get(OTHER_SOUND, {}).get("lip_correlation_spoken")
        assert made["lip_correlation_spoken"] is not None  # a correlation is always a number
        made["lip_gap"] = None if wrong is None else made["lip_correlation_spoken"] - wrong
    return result


def dubbed_figures(model: TalkingHeadPipeline, clip: Clip, truth: Truth, seed: int, sampling: Sampling) -> Figures:
    """Of the clip's crops, as far as the other sentence goes: how its lips are followed, and how sharp and how lively
    the pictures are, beside the clip as it was."""
    assert clip.dubbed_with is not None
    waveform, lips = clip.dubbed_with
    count = min(len(lips), len(clip.piece.frames))
    sound = waveform.astype(np.float32) / 32767
    generator = torch.Generator().manual_seed(seed)
    blocks = speak_in(dubbed_crops(clip.piece), model, sound, count, generator, sampling)
    frames = Alignment(clip.piece, model.framing)(np.concatenate(list(blocks)))
    speech = spoken(sound, len(lips))
    speech = slice(speech.start, min(speech.stop, count))
    # Of a sentence that only begins after this clip has ended nothing is said.
    said = speech.stop - speech.start > 1
    agreement = metrics.correlation(lip_aperture(frames)[speech], lips[speech]) if said else None
    return {
        "mouth_sharpness": metrics.sharpness_ratio(frames, truth.frames[:count]),
        "seam": metrics.seam_ratio(frames, truth.frames[:count]),
        "jitter_ratio": metrics.jitter_ratio(frames, truth.frames[:count]),
        "lip_correlation_spoken": agreement,
    }


def speak(
    model: TalkingHeadPipeline,
    face: np.ndarray,
    waveform: np.ndarray,
    seed: int,
    frames: int,
    lips: np.ndarray | None = None,
    sampling: Sampling = USUAL,
) -> np.ndarray:
    """Generated frames for int16 sound, cut to `frames`; the same noise for every clip.

    lips: to be told, of every frame; those of the first are the face's own.
    """
    audio = waveform.astype(np.float32) / 32767
    generator = torch.Generator().manual_seed(seed)
    own = None if lips is None else lips[0]
    return model(face, audio, sampling.steps, sampling.guidance, generator, lips, own).frames[:frames]


def group_figures(clips: list[Measured], frechet: FeatureNetwork | None) -> dict[str, Figures]:
    """Means over clips by row; Fréchet distances between the sets of all frames, the mean over noise seeds."""
    rows = {row: merge([clip.rows[row] for clip in clips if row in clip.rows]) for row in clips[0].rows}
    if frechet is not None:
        for name in frechet.names():
            true = [clip.features[REAL][0][name] for clip in clips]
            for row in set(rows) - {REAL, DUBBED}:
                seeds = zip(*(clip.features[row] for clip in clips), strict=True)
                made = [np.concatenate([each[name] for each in one]) for one in seeds]
                rows[row] |= merge([{name: frechet_distance(each, np.concatenate(true))} for each in made])
            rows[REAL][name] = frechet_distance(*halves(true))
    return rows


def write_metrics(result: dict, path: str | Path) -> None:
    """The result as JSON, beside the target first and then renamed."""
    with new_file(path) as place:
        place.write_text(json.dumps(result, indent=1, allow_nan=False))


LIPS = ("lip_correlation", "lip_correlation_spoken", "lip_gap")
DECIMALS = {"frames_per_second": 1} | dict.fromkeys(("psnr", "mouth_psnr", *LIPS), 2)
"""Digits after the point in the table that is printed, where they are not 3."""
NAME, CELL = 22, 12
"""Characters of a metric's name and of mean and interval: seven rows of the result fit 120 columns."""


def metrics_table(result: dict) -> str:
    """The result as the table that people read: a line a metric, a column a row of the result, mean and interval."""
    lines = []
    for table in group_tables(result, DECIMALS):
        spread = "; ± is half of the mean's 95% interval" if table.clips > 2 else ""
        clips = f"{table.clips} clip{'s' * (table.clips != 1)}{unusual_sampling(result)}"
        lines.append(f"{table.group} identities, {clips}{spread}")
        widths = [max(len(row), CELL) for row in table.columns]
        for name, cells in {"": table.columns, **table.lines}.items():
            padded = [f" {text:>{width}}" for text, width in zip(cells, widths, strict=True)]
            lines.append(f"  {name:<{NAME}}{''.join(padded)}")
    return "\n".join(lines)


def unusual_sampling(result: dict) -> str:
    """In words, how the clips of a result of `evaluate_run` were sampled; empty where it was as always."""
    chosen = {name: value for name, value in result.get("sampling", {}).items() if value != asdict(USUAL)[name]}
    return "".join(f", {name} {value:g}" for name, value in chosen.items())


@dataclass(frozen=True)
class GroupTable:
    """A group's figures as text. columns: the rows of the result that measured anything. lines: metric -> cells."""

    group: str
    clips: int
    columns: list[str]
    lines: dict[str, list[str]]


def group_tables(result: dict, decimals: Mapping[str, int] | None = None) -> list[GroupTable]:
    """A table for every group of a result of `evaluate_run`. decimals: metric -> digits after the point, else 3."""
    places = decimals or {}
    tables = []
    for group, rows in result["groups"].items():
        names = dict.fromkeys(name for figures in rows.values() for name in figures)
        columns = [row for row, figures in rows.items() if any(value is not None for value in figures.values())]
        widths = result["half_widths_95"][group]
        lines = {
            name: [cell(rows[row].get(name), widths[row].get(name), places.get(name, 3)) for row in columns]
            for name in names
        }
        tables.append(GroupTable(group, result["clips"][group], columns, lines))
    return tables


def cell(mean: float | None, half: float | None, places: int = 3) -> str:
    if mean is None:
        return "-"
    places = places if abs(mean) < 100 else 1
    return f"{mean:.{places}f}" if half is None else f"{mean:.{places}f} ±{half:.{places}f}"
