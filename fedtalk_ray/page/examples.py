"""Drawn people to try the page with: nobody's face is needed."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from scipy.io import wavfile

from fedtalk_ray.corpora import synthetic
from fedtalk_ray.errors import UserError
from fedtalk_ray.media.video import SAMPLE_RATE
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.shards.format import load_manifest

PEOPLE, SECONDS = (40, 41, 42), 3.0
"""Whom no recipe that ships trains on."""


@dataclass(frozen=True)
class Example:
    """A drawn person: a picture, and something said by her voice."""

    name: str
    picture: Path
    sound: Path


def drawn_people(run: RunFolder, size: int, folder: Path) -> list[Example]:
    """A few of the kind that the run's clients are, else of those whom `fedtalk-tiny` knows. size: of the model's
    frames, which takes such a picture as an aligned crop."""
    kind = _kind_of(run)
    found = []
    for number, who in enumerate(PEOPLE, start=1):
        drawn = synthetic.render_clip(who, 0, seed=0, size=size, seconds=SECONDS, kind=kind).video
        places = [folder / f"drawn{number}{suffix}" for suffix in (".png", ".wav")]
        Image.fromarray(drawn.frames[0]).save(places[0])
        wavfile.write(places[1], SAMPLE_RATE, (drawn.audio.clip(-1, 1) * 32767).astype("int16"))
        found.append(Example(f"Drawn person {number}", *places))
    return found


def _kind_of(run: RunFolder) -> str:
    try:
        corpus = load_manifest(run.config().shards).corpus
    except UserError:
        return synthetic.PEOPLE  # a bare model, or a run whose shards are gone
    return corpus if corpus in synthetic.KINDS else synthetic.PEOPLE
