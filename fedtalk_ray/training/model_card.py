"""The README.md beside pretrained weights: what they were made of, how, and what was reached, in the hub's own form."""

from collections.abc import Sequence
from dataclasses import dataclass

import diffusers
import torch

from fedtalk_ray.recipe import LossConfig, PhaseName
from fedtalk_ray.shards.format import Manifest


@dataclass(frozen=True)
class Recipe:
    """What it takes to make the same weights again."""

    shards: str
    size: str
    start: str | None
    """The pipeline whose weights it went on from; its size, not `size`, holds."""
    minutes: float
    steps: int | None
    """Steps that were asked for; None where time was."""
    seed: int
    threads: int
    loss: LossConfig
    shown: float | None = None
    dropout: float | None = None
    """`CalibrationConfig.shown`, `SpeechConfig.dropout`; None as they are there."""
    only: Sequence[PhaseName] = ()
    """Phases that were gone through; all where none is named."""


def model_card(
    manifest: Manifest,
    recipe: Recipe,
    clips: int,
    people: int,
    steps_done: int,
    seconds: float,
    figures: dict[str, float],
) -> str:
    """Markdown. clips, people: how many were trained on. figures: name -> value, as they are to be read."""
    losses = {name: value for name, value in recipe.loss.model_dump().items() if value}
    begin = f"--preset {recipe.size}" if recipe.start is None else f"--from {recipe.start}"
    asked = f"--steps {recipe.steps}" if recipe.steps is not None else f"--minutes {recipe.minutes:g}"
    asked += "".join(f" --phase {name}" for name in recipe.only)
    asked += "" if recipe.shown is None else f" --shown {recipe.shown:g}"
    asked += "" if recipe.dropout is None else f" --dropout {recipe.dropout:g}"
    lines = [
        "---",
        "library_name: diffusers",
        "tags: [talking-head, audio-driven, latent-diffusion, fedtalk_ray]",
        "---",
        "",
        f"# A {recipe.size if recipe.start is None else 'fine-tuned'} talking-head backbone",
        "",
        "A `TalkingHeadPipeline` of fedtalk_ray: a face and a sound in, a talking face out, 25 frames a second, "
        f"{manifest.frame_size} x {manifest.frame_size} pixels.",
        "",
        "```python",
        "from fedtalk_ray.model.pipeline import TalkingHeadPipeline",
        "",
        'pipe = TalkingHeadPipeline.from_pretrained("THIS FOLDER")',
        "frames = pipe(face, audio).frames  # face: aligned crop uint8 [S, S, 3]; audio: float32 at 16 kHz",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| data | corpus `{manifest.corpus}`: {clips} clips of {people} people |",
        f"| recipe | `fedtalk pretrain --shards {recipe.shards} {begin} {asked} --seed {recipe.seed}` |",
        f"| losses | {', '.join(f'{name} {value:g}' for name, value in losses.items())} |",
        f"| sound, identity | {manifest.speech}, {manifest.identity} |",
        f"| done | {steps_done} denoiser steps; {seconds / 60:.0f} minutes in all, {recipe.threads} CPU thread(s) |",
        *(f"| {name} | {value:.4g} |" for name, value in figures.items()),
        f"| made with | torch {torch.__version__.split('+')[0]}, diffusers {diffusers.__version__} |",
        "",
    ]
    return "\n".join(lines)
