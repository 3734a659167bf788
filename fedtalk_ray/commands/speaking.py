"""`fedtalk generate`, and `fedtalk verify`, which says what a generated file carries. Its options that others share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtalk_ray.errors import UserError

if TYPE_CHECKING:
    from fedtalk_ray.model.sampling import Sampling

Model = Annotated[Path, typer.Option(help="Run folder, a pretrained pipeline, or fedtalk-tiny.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Denoising steps; 1 gives the average prediction.", show_default="2"),
]
Guidance = Annotated[
    float | None, typer.Option(min=0, help="How far the sound's effect is exaggerated.", show_default="1, not at all")
]


def sampling(steps: int | None, guidance: float | None) -> "Sampling":
    """What was asked for, and the usual where nothing was."""
    from fedtalk_ray.model.sampling import USUAL, Sampling

    return Sampling(USUAL.steps if steps is None else steps, USUAL.guidance if guidance is None else guidance)


def generate(
    run: Model,
    reference: Annotated[str, typer.Option(help="The face: a picture, a clip, or CLIENT/CLIP of the shards.")],
    audio: Annotated[str, typer.Option(help="The sound: a sound file, a clip, or CLIENT/CLIP of the shards.")],
    out: Annotated[Path, typer.Option(help="Video to write (.mp4).")],
    client: Annotated[str | None, typer.Option(help="Use this client's identity adapter.")] = None,
    shards: Annotated[str | None, typer.Option(help="Where CLIENT/CLIP names are looked up.")] = None,
    face: Annotated[int | None, typer.Option(help="Which face, counted from the left; else the largest.")] = None,
    crop: Annotated[bool, typer.Option("--crop", help="Write the face alone, as the network makes it.")] = False,
    hold_still: Annotated[bool, typer.Option("--hold-still", help="A photo neither blinks nor sways.")] = False,
    seed: Annotated[int, typer.Option(help="Changes the noise; the same seed makes the same video.")] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM chain that signs the content credentials; else one made here, for trials.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key, PEM.")] = None,
    no_mark: Annotated[
        bool, typer.Option("--no-mark", help="Neither content credentials nor the invisible mark.")
    ] = False,
) -> None:
    """Let a face speak a sound of any length, in its own picture: a photo comes alive, a clip gets another mouth.

    The video says that it was generated: signed content credentials, and a mark that one does not see.

    Example: `fedtalk generate --run runs/grid --client s1 --reference me.png --audio speech.wav --out talk.mp4`
    """
    from fedtalk_ray.generation.generate import generate as run_generate
    from fedtalk_ray.marking.marked_video import signing_with

    if no_mark and (certificate or key):
        raise UserError("--no-mark and --certificate or --key exclude each other: without marks nothing is signed")
    signing = None if no_mark else signing_with(certificate, key)
    made = run_generate(
        run,
        reference,
        audio,
        out,
        client,
        shards,
        crop=crop,
        face=face,
        hold_still=hold_still,
        seed=seed,
        sampling=sampling(steps, guidance),
        mark=not no_mark,
        signing=signing,
    )
    print(f"video: {out} ({made.frames} frames, {made.seconds:.2f} s)")
    if not no_mark and made.mark is None:
        print(
            "its pictures are too small or too even for the invisible mark: credentials alone say that it was generated"
        )
    if no_mark:
        print("not marked: no content credentials and no invisible mark say that it was generated; say so yourself")


def verify(
    file: Annotated[Path, typer.Argument(help="A video.")],
    trust: Annotated[
        list[Path] | None, typer.Option(help="PEM certificate of an authority that you trust; repeatable.")
    ] = None,
) -> None:
    """Say whether a video carries content credentials and the mark of a generated one, and whether they fit.

    Exits with 0 where credentials hold, say that it was generated, and name the mark that is in the pictures.

    Example: `fedtalk verify talk.mp4`
    """
    from fedtalk_ray.marking.certificates import authority_of
    from fedtalk_ray.marking.verify import MarkError
    from fedtalk_ray.marking.verify import verify as look

    verdict = look(file, tuple(authority_of(place) for place in trust or ()))
    print("\n".join(verdict.lines()))
    if problem := verdict.problem():
        raise MarkError(f"{file}: {problem}")
