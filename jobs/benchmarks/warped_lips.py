"""How near a mouth comes when the reference is only bent to its lips' shape, beside what a run's networks paint.

python -m jobs.benchmarks.warped_lips --run RUN --shards shards/grid

Held-out clips, each from its first frame, beside copying it; `painted` is what the run makes of it, as `evaluate` asks
for it. `true points` bends by the landmarks of every frame themselves. The other rows know a lip shape, as the run's
model counts it, and move each point as it goes with that shape on average in the training clips: the true shape, or
the one that the model hears. The first frame's own shape is known, or guessed from its aperture alone (of a photo no
more is known), or taken to be what is heard at its moment, so that only changes of what is heard count.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.clip_figures import Alignment
from fedtalk_ray.evaluation.evaluate import speak
from fedtalk_ray.evaluation.held_out import choose_clips, read_clips
from fedtalk_ray.evaluation.perceptual import load_perceptual
from fedtalk_ray.media.lip_warp import warp_lips
from fedtalk_ray.media.lips import lip_aperture, lip_motion
from fedtalk_ray.media.speech import spoken
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released, open_model
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import LANDMARKS, Piece, load_manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.training.backbone import check_fits

FIGURES = ("mouth_psnr", "lip_correlation_spoken", "lips' spread", "mouth_sharpness", "st_lpips")


def shapes_of(denoiser: TalkingHeadDenoiser, landmarks: np.ndarray) -> np.ndarray:
    """Lip shapes float64 [T, L] of points [T, 68, 2]."""
    return denoiser.lip_shape(torch.from_numpy(lip_motion(landmarks))).double().numpy()


def learn_moves(denoiser: TalkingHeadDenoiser, people: People) -> tuple[np.ndarray, np.ndarray]:
    """From all clients' training clips: how the points move with a shape [L, 136], and what an aperture alone says of a
    shape, slope and height [2, L]."""
    shapes, moved = [], []
    for name in people.manifest.clients():
        for piece in people.pieces(name, "train", (LANDMARKS,)):
            shapes.append(shapes_of(denoiser, piece.landmarks))
            moved.append((piece.landmarks - piece.landmarks.mean(0)).reshape(len(piece.landmarks), -1))
    shape = np.concatenate(shapes)
    return np.linalg.lstsq(shape, np.concatenate(moved), rcond=None)[0], np.polyfit(shape[:, 0], shape, 1)


def rows_of(
    model: TalkingHeadPipeline, piece: Piece, moves: np.ndarray, guess: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Frames uint8 [T, S, S, 3] of each row."""
    denoiser, first, points = bare_denoiser(model.denoiser), piece.frames[0], piece.landmarks.astype(np.float64)
    true = shapes_of(denoiser, piece.landmarks)
    heard = denoiser.heard_shapes(torch.from_numpy(piece.speech.astype(np.float32))).double().numpy()
    own, guessed = true[0], guess[0] * true[0, 0] + guess[1]

    def bent(shape: np.ndarray, start: np.ndarray) -> np.ndarray:
        return warp_lips(first, points[0], ((shape - start) @ moves).reshape(-1, 68, 2))

    def painted(lips: np.ndarray | None) -> np.ndarray:
        return speak(model, first, piece.waveform, 0, len(points), lips)

    yield "copy", np.repeat(first[None], len(points), axis=0)
    yield "painted, true shapes", painted(lip_motion(piece.landmarks))
    yield "painted, heard", painted(None)
    yield "true points", warp_lips(first, points[0], points - points[0])
    yield "true shapes", bent(true, own)
    yield "true shapes, own guessed", bent(true, guessed)
    yield "heard, own known", bent(heard, own)
    yield "heard, own guessed", bent(heard, guessed)
    yield "heard, own heard too", bent(heard, heard[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--exclude", default="", help="Identities that do not count, comma-separated.")
    given = parser.parse_args()
    model = load_released(open_model(given.run), device="cpu")
    people, perceptual = People(given.shards, load_manifest(given.shards)), load_perceptual()
    check_fits(people.manifest, model, str(given.run))
    moves, guess = learn_moves(bare_denoiser(model.denoiser), people)
    entries = choose_clips(people.manifest, "test", None, [name for name in given.exclude.split(",") if name])
    figures: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for clip in progress(read_clips(people, "test", entries), len(entries), "warped_lips"):
        aligned = Alignment(clip.piece, model.framing)
        truth = aligned(clip.piece.frames)
        lips = lip_aperture(truth)
        speech = spoken(clip.piece.waveform.astype(np.float32) / 32767, len(truth))
        for row, crops in rows_of(model, clip.piece, moves, guess):
            frames = aligned.of_first(crops)
            made = lip_aperture(frames)
            found = (
                metrics.mouth_psnr(frames, truth),
                metrics.correlation(made[speech], lips[speech]),
                float(made[speech].std() / lips[speech].std()),
                metrics.sharpness_ratio(frames, truth),
                perceptual(frames, truth),
            )
            figures.setdefault((clip.entry.group, row), []).append(found)
    print(f"{'':34}{''.join(f'{name:>24}' for name in FIGURES)}")
    for (group, row), clips in figures.items():
        print(f"{group + ', ' + row:34}{''.join(f'{mean(column):24.3f}' for column in zip(*clips, strict=True))}")


if __name__ == "__main__":
    main()
