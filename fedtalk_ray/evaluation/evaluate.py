"""How good a run's model is on held-out clips, always beside its floor and its ceiling.

Rows of the table: *generated* (right sound), *other sound* (the same faces driven by another clip's sound: a model
whose lips follow the sound must do worse here), *copy* (the first frame repeated: the floor) and *autoencoder* (every
frame through the autoencoder and back: the ceiling). Groups: identities that took part, and those nobody trained on.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.data.shards import Manifest, Piece, load_manifest, read_pieces
from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.judge import IdentityJudge, similarity
from fedtalk_ray.evaluation.lips import lip_aperture, spoken
from fedtalk_ray.model.autoencoder import decode_latents
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, fingerprint
from fedtalk_ray.observability import progress
from fedtalk_ray.outputs import new_file
from fedtalk_ray.training.client_state import CURRENT, client_folder
from fedtalk_ray.training.export import load_model

ROWS = ("generated", "other sound", "copy", "autoencoder")


@dataclass(frozen=True)
class Clip:
    """One held-out clip, the sound of another sentence, and the group it counts for ("seen" or "unseen")."""

    piece: Piece
    other_sound: np.ndarray
    group: str


def evaluate_run(
    run: str | Path, shards: str | Path, split: str, judge: IdentityJudge | None = None, personal: bool = True
) -> dict:
    """Metrics of every held-out clip averaged by group and row, as plain data for JSON.

    personal: seen clients speak with their own identity adapter where the run has one. Raises `UserError`s.
    """
    run = Path(run)
    if not run.is_dir():
        raise RunError(f"run folder {run} does not exist")
    manifest = load_manifest(shards)
    model = load_model(run)
    manifest.check_autoencoder(fingerprint(model), str(run / "pipeline"))
    clips = list(held_out_clips(shards, manifest, split))
    if not clips:
        raise ShardError(f"shards {shards} hold no clip in split {split!r}")
    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    adapted = 0
    # Clips of one identity lie together: its adapter is loaded once.
    loaded: str | None = None
    for clip in progress(clips, len(clips), "evaluate"):
        client = clip.piece.client
        if personal and client != loaded:
            folder = client_folder(run, client) / CURRENT
            model = load_model(run, folder if folder.is_dir() else None)
            adapted += folder.is_dir()
            loaded = client
        true_lips = lip_aperture(clip.piece.frames)
        for row, frames in rows_of(model, clip).items():
            measured = measure(frames, clip.piece, true_lips, judge)
            figures.setdefault(clip.group, {}).setdefault(row, []).append(measured)
    return {
        "run": str(run),
        "split": split,
        "clips": {group: len(rows["copy"]) for group, rows in figures.items()},
        "identity_adapters": adapted,
        "groups": {
            group: {
                row: {name: float(np.mean([clip[name] for clip in measured])) for name in measured[0]}
                for row, measured in rows.items()
            }
            for group, rows in figures.items()
        },
    }


def held_out_clips(shards: str | Path, manifest: Manifest, split: str) -> Iterator[Clip]:
    """The first piece of every clip of the split, each with the sound of the split's next clip of its group."""
    unseen = set(manifest.unseen())
    for group in ("seen", "unseen"):
        names = [name for name in sorted(manifest.identities) if (name in unseen) == (group == "unseen")]
        pieces = [piece for name in names for piece in read_pieces(shards, manifest, name, split) if piece.begin == 0]
        for index, piece in enumerate(pieces):
            other = pieces[(index + 1) % len(pieces)]
            if other is piece:
                raise ShardError(
                    f"shards {shards} hold one held-out clip of {group} identities (split {split}): its lips cannot be "
                    "compared with another sentence's sound; prepare more clips"
                )
            yield Clip(piece, np.resize(other.waveform, len(piece.waveform)), group)


def rows_of(model: TalkingHeadPipeline, clip: Clip) -> dict[str, np.ndarray]:
    """The clip as each row of the table shows it, uint8 [T, S, S, 3]."""
    truth = clip.piece.frames
    latents = torch.from_numpy(clip.piece.latents.astype(np.float32))
    return {
        "generated": speak(model, truth[0], clip.piece.waveform, len(truth)),
        "other sound": speak(model, truth[0], clip.other_sound, len(truth)),
        "copy": np.repeat(truth[:1], len(truth), axis=0),
        "autoencoder": decode_latents(model.autoencoder, latents),
    }


def speak(model: TalkingHeadPipeline, face: np.ndarray, waveform: np.ndarray, frames: int) -> np.ndarray:
    """Generated frames for int16 sound, cut to `frames`; the same seed for every clip."""
    audio = waveform.astype(np.float32) / 32767
    return model(face, audio, generator=torch.Generator().manual_seed(0)).frames[:frames]


def measure(frames: np.ndarray, piece: Piece, true_lips: np.ndarray, judge: IdentityJudge | None) -> dict[str, float]:
    """All figures of one clip against its truth. Lips are compared where somebody speaks, and over the whole clip."""
    truth = piece.frames
    speech = spoken(piece.waveform.astype(np.float32) / 32767, len(truth))
    lips = lip_aperture(frames)
    figures = {
        "psnr": metrics.psnr(frames, truth),
        "mouth_psnr": metrics.mouth_psnr(frames, truth),
        "ssim": metrics.ssim(frames, truth),
        "jitter_ratio": metrics.jitter_ratio(frames, truth),
        "lip_correlation": metrics.correlation(lips, true_lips),
        "lip_correlation_spoken": metrics.correlation(lips[speech], true_lips[speech]),
    }
    if judge is not None:
        chosen = range(5, len(truth), 15)
        figures["identity"] = float(
            np.mean([similarity(judge.embed(frames[k]), judge.embed(truth[k])) for k in chosen])
        )
    return figures


def write_metrics(result: dict, path: str | Path) -> None:
    """The result as JSON, beside the target first and then renamed."""
    with new_file(path) as place:
        place.write_text(json.dumps(result, indent=1))


def metrics_table(result: dict) -> str:
    """The result as the table that people read."""
    lines = []
    for group, rows in result["groups"].items():
        names = list(rows["copy"])
        lines.append(f"{group} identities, {result['clips'][group]} clips")
        lines.append(f"  {'':<14}" + "".join(f"{name:>24}" for name in names))
        lines += [f"  {row:<14}" + "".join(f"{rows[row][name]:>24.3f}" for name in names) for row in ROWS]
    return "\n".join(lines)
