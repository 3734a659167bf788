"""What the invisible mark outlives, where it is found though nobody put it, and what it costs in the picture.

python -m jobs.benchmarks.marks --run fedtalk-tiny --shards shards/grid --clips 100 --unmarked 1000

Clips of the shards speak their own sound in their own pictures; each is written as `generate` writes it and then coded
again, smaller or cut. Unmarked are the same clips without the mark, the real ones, and drawn people, coded once. The
cost is that of the crops, beside the real ones, as `evaluate` measures them.
"""

import argparse
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import mean

import av
import numpy as np
import torch

from fedtalk_ray.corpora.synthetic import KINDS, render_clip
from fedtalk_ray.evaluation.metrics import mouth_psnr
from fedtalk_ray.evaluation.perceptual import load_perceptual
from fedtalk_ray.generation.scene import dubbed_pictures, even
from fedtalk_ray.generation.whole_picture import speak_in
from fedtalk_ray.marking import invisible
from fedtalk_ray.marking.credentials import COMPOSITE
from fedtalk_ray.marking.marked_video import signing_with, write_marked
from fedtalk_ray.marking.verify import LOOKED_AT_RATE, verify
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.faces import oversampling, warp
from fedtalk_ray.media.video import FPS, frames_of
from fedtalk_ray.model.released import load_released, open_model
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import Piece, load_manifest
from fedtalk_ray.shards.people import People

CODED = {
    "H.264, CRF 23": (23, 1.0, 75),
    "H.264, CRF 28": (28, 1.0, 75),
    "scaled to 75%, CRF 23": (23, 0.75, 75),
    "cut to two seconds, CRF 23": (23, 1.0, 50),
    "all three: 75%, two seconds, CRF 28": (28, 0.75, 50),
}
"""What is done to a video after it was written: CRF, scale, frames that stay (the last ones)."""


def coded_again(source: Path, target: Path, crf: int, scale: float, kept: int) -> None:
    """Decodes a video and writes its last frames anew, without sound, at FFmpeg's usual preset."""
    frames = list(av.open(str(source)).decode(video=0))[-kept:]
    with av.open(str(target), "w") as container:
        stream = container.add_stream("h264", rate=FPS, options={"crf": str(crf)})
        stream.width, stream.height = (round(side * scale / 2) * 2 for side in (frames[0].width, frames[0].height))
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            smaller = frame.reformat(
                width=stream.width, height=stream.height, format="yuv420p", interpolation="BICUBIC"
            )
            smaller.pts, smaller.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(smaller))
        container.mux(stream.encode())


def found(file: Path) -> int | None:
    mark = invisible.read(frames_of(file, rate=LOOKED_AT_RATE))
    return None if mark is None else mark.number


def pieces_of(people: People, count: int) -> Iterator[Piece]:
    """The first piece of so many clips, of every person in turn."""
    entries = people.manifest.identities
    turns = sorted((place, who, entry.name) for who in entries for place, entry in enumerate(entries[who]))
    for _, who, clip in turns[:count]:
        yield people.clip(who, clip)[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="fedtalk-tiny")
    parser.add_argument("--shards", required=True, help="of filmed people")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--unmarked", type=int, default=1000)
    chosen = parser.parse_args(arguments)
    model = load_released(open_model(chosen.run))
    people = People(chosen.shards, load_manifest(chosen.shards))
    signing, perceptual = signing_with(None, None), load_perceptual()
    read = dict.fromkeys(["as written", *CODED], 0)
    wrongly, looked_at, made = 0, 0, 0
    costs: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        file, other = Path(folder) / "made.mp4", Path(folder) / "again.mp4"

        def unmarked(frames: np.ndarray) -> None:
            nonlocal wrongly, looked_at
            if looked_at < chosen.unmarked:
                write_video(other, frames, None)
                wrongly += found(other) is not None
                looked_at += 1

        for piece in progress(pieces_of(people, chosen.clips), chosen.clips, "clips"):
            scene = dubbed_pictures([piece])
            if scene is None:
                raise SystemExit(f"{piece.client}/{piece.clip} has no pictures of its own; filmed people are needed")
            sound, count = piece.waveform.astype(np.float32) / 32767, len(piece.frames)
            generator = torch.Generator().manual_seed(0)
            blocks = np.concatenate(list(speak_in(scene, model, sound, count, generator)))
            number = write_marked(file, [blocks], sound, COMPOSITE, signing, pixel_aspect=scene.pixel_aspect)
            if number is None:
                raise SystemExit(f"{piece.client}/{piece.clip} cannot carry the mark")
            verdict = verify(file)
            made += 1
            read["as written"] += not verdict.problem() and verdict.mark is not None and verdict.mark.number == number
            for name, (crf, scale, kept) in CODED.items():
                coded_again(file, other, crf, scale, kept)
                read[name] += found(other) == number
            with_mark = np.concatenate(list(invisible.marked([blocks], number)))
            crops = [_crops(frames, piece) for frames in (blocks, with_mark)]
            costs.append(
                tuple(mouth_psnr(crop, piece.frames) for crop in crops)
                + tuple(perceptual(crop, piece.frames) for crop in crops)
                + (10 * np.log10(255**2 / np.mean((with_mark.astype(float) - blocks) ** 2)),)
            )
            unmarked(blocks)
            unmarked(np.stack([even(shown.picture) for shown in scene.frames(count)]))
        left = chosen.unmarked - looked_at
        for each in progress(range(left), max(left, 1), "drawn people"):
            unmarked(render_clip(each // 2, 0, seed=7, size=256, seconds=2, kind=KINDS[each % 2]).video.frames)
    print(f"\n| after | read, of {made} |\n|---|---|")
    for name, count in read.items():
        print(f"| {name} | {count} |")
    print(f"found in {wrongly} of {looked_at} without a mark")
    means = [mean(column) for column in zip(*costs, strict=True)]
    print(
        f"mouth PSNR {means[0]:.2f} dB before, {means[1]:.2f} with the mark; {perceptual.name} {means[2]:.4f}, ", end=""
    )
    print(f"{means[3]:.4f}; whole pictures differ by {means[4]:.1f} dB")


def _crops(frames: np.ndarray, piece: Piece) -> np.ndarray:
    """The faces where the shards have them, uint8 [T, S, S, 3]."""
    side = piece.frames.shape[1]
    return np.stack(
        [
            warp(frame, place, side, oversampling(place[None], side))
            for frame, place in zip(frames, piece.places, strict=True)
        ]
    )


if __name__ == "__main__":
    main()
