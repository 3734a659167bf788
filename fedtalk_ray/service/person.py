"""Somebody who came to a run's model by page or service: what is hers lies in RUN.clients/NAME, and goes with it.

Her clips, what was prepared of them, the adapter and what she agreed to. Nothing of it leaves the folder.
"""

import json
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedtalk_ray.corpora.layouts.folder import SUFFIXES
from fedtalk_ray.corpora.source import ClipSource
from fedtalk_ray.errors import UserError
from fedtalk_ray.media.faces import NoFaceError
from fedtalk_ray.media.lips import aperture_of
from fedtalk_ray.media.portrait import locate_face
from fedtalk_ray.media.video import SAMPLE_RATE, VideoError, first_picture, format_of, frames_of
from fedtalk_ray.model.adapters import IDENTITY, fill_adapter, read_tensors
from fedtalk_ray.outputs import new_file
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.making import told
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.training.local import released_trainer
from fedtalk_ray.training.personalize import keep_own

Result = TypeVar("Result")

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")

MOST_CLIPS = 20

MOST_S = 600.0
"""Seconds of all her clips together: more would keep everybody else waiting while they are prepared."""

PART_S, WHOLE_S = 8.0, 16.0
"""A recording of more than `WHOLE_S` seconds is taken as clips of about `PART_S`: some are held out to measure on."""

DARK, BRIGHT = 45, 210
"""The middle brightness of a face's picture, of 255, between which light is called good."""

QUIET_DB, CLIPPED = -40.0, 0.01
"""The level of the loudest twentieth of a clip, dB of full scale; the share of samples at full scale."""

STILL_LIPS = 0.012
"""Standard deviation of the lips' opening, over the distance of the eyes. A speaker's is 0.03 to 0.1."""


GONE = ".gone-"
"""What the folder of somebody who is being deleted is called."""

_KEEPING = threading.Lock()
"""Two tabs of one person would give their clips the same names."""


class PersonError(UserError):
    """Somebody cannot be personalised, or a name is taken."""


@dataclass(frozen=True)
class Checked:
    """A clip that was looked at. advice: what to do better; usable: whether it is trained on all the same."""

    clip: str
    seconds: float
    usable: bool
    advice: tuple[str, ...] = ()


class Person:
    """Who she is in a run. Nothing is made until it is asked for."""

    def __init__(self, run: RunFolder, name: str) -> None:
        """Raises `PersonError` for a name that is none, or that of one of the run's own clients."""
        if not NAME.fullmatch(name):
            raise PersonError(f"the name {name!r} cannot be a folder's: small letters, digits, - and _, at most 32")
        self.run, self.name, self.folder = run, name, run.client(name)
        if (self.folder.path.exists() and not self.folder.consent.is_file()) or name in _clients_to_be(run):
            raise PersonError(f"{name} is a client of the run; take another name")

    def keep(self, clips: Sequence[Path], consent: str) -> int:
        """Copies clips into her folder, beside those that are there; how many there are then.

        consent: what was agreed to; it is written down first. Raises `PersonError`.
        """
        with _KEEPING:
            return self._keep(clips, consent)

    def _keep(self, clips: Sequence[Path], consent: str) -> int:
        there = self._clips()
        if not clips and not there:
            raise PersonError("give one clip or more, or record yourself for half a minute")
        if len(there) + len(clips) > MOST_CLIPS:
            raise PersonError(f"{len(there) + len(clips)} clips are more than {MOST_CLIPS}; leave some out")
        for clip in clips:
            if clip.suffix.lower() not in SUFFIXES:
                raise PersonError(f"{clip.name}: is no video ({', '.join(SUFFIXES)})")
        if sum(map(_seconds, [*there, *clips])) > MOST_S:
            raise PersonError(f"the clips are longer than {MOST_S / 60:g} minutes together; leave some out")
        self.agree(consent)

        def copy() -> None:
            self.folder.clips.mkdir(mode=0o700, exist_ok=True)
            for number, clip in enumerate(clips, start=len(there) + 1):
                with new_file(self.folder.clips / f"clip{number:02d}{clip.suffix.lower()}") as place:
                    shutil.copyfile(clip, place)

        self.while_she_stays(copy)
        return len(there) + len(clips)

    def agree(self, consent: str) -> None:
        """Makes her folder and writes down what she agreed to, and when: the last, where it was another before."""
        for place in (self.run.clients_folder, self.folder.path):
            place.mkdir(mode=0o700, exist_ok=True)
        if self._agreed() != consent:
            record = {"agreed": consent, "on": date.today().isoformat()}
            with new_file(self.folder.consent) as place:
                place.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def bring(self, weights: Path, consent: str) -> None:
        """An adapter that was trained elsewhere becomes hers. weights: its adapter_model.safetensors.

        What it says of itself is not asked: it has to be what `personalize` makes here. Raises `UserError`s.
        """
        if not self.run.exists():
            raise PersonError("the model here is a bare one; people's own adapters go with a run")
        trainer = released_trainer(self.run, self.run.config())
        fill_adapter(trainer.model, IDENTITY, read_tensors(weights, "weights"), "weights")
        self.agree(consent)
        self.while_she_stays(lambda: keep_own(self.run, self.name, trainer.model))

    def sources(self) -> list[ClipSource]:
        """Her clips to prepare, long ones in parts. Raises `VideoError`."""
        found = []
        for path in self._clips():
            seconds = _seconds(path)
            parts = max(2, round(seconds / PART_S)) if seconds > WHOLE_S else 1
            for part in range(parts):
                name = path.stem if parts == 1 else f"{path.stem}-{part + 1:02d}"
                # A file may say that it is shorter than it is.
                begin, end = part * seconds / parts, (part + 1) * seconds / parts if part + 1 < parts else MOST_S
                found.append(ClipSource(self.name, name, str(path), begin=begin, end=end))
        return found

    def shown_by(self, looked: Sequence[Checked]) -> Path:
        """The first of her clips that is used. looked: what `prepare` says. Raises `PersonError` where none is."""
        used = {each.clip.partition("-")[0] for each in looked if each.usable}
        for clip in self._clips():
            if clip.stem in used:
                return clip
        raise PersonError(f"none of {self.name}'s clips is used")

    def prepare(self, before_each: Callable[[], None] = lambda: None) -> list[Checked]:
        """Prepares all her clips as the run's model takes them, and looks at each. Raises `UserError`s, and whatever
        `before_each` raises, which is asked before every clip."""
        from fedtalk_ray.shards.prepare import prepare
        from fedtalk_ray.training.backbone import shard_settings

        sources = self.sources()
        fit = shard_settings(str(self.run.pipeline))
        manifest = prepare(
            "folder",
            sources,
            self.folder.shards,
            size=fit.size,
            autoencoder=fit.autoencoder,
            speech=fit.speech,
            identity=fit.identity,
            framing=fit.framing,
            unseen=[],
            overwrite=True,
            before_each=before_each,
        )
        people = People(self.folder.shards, manifest)
        return [_look_at(people, source) for source in sources]

    def check_here(self) -> None:
        """Raises `PersonError` where she was deleted; what was written since goes too."""
        if not self.folder.consent.is_file():
            self.delete()
            raise PersonError(f"{self.name} was deleted meanwhile")

    def while_she_stays(self, work: Callable[[], Result]) -> Result:
        """What the work returns. Raises `PersonError` where she is deleted meanwhile, and leaves nothing of hers."""
        try:
            return work()
        finally:
            self.check_here()

    def delete(self) -> None:
        """Everything of hers: clips, shards, adapters, samples, consent."""
        # Under another name nobody writes into it while it goes.
        with suppress(FileNotFoundError):  # somebody else deleted it
            self.folder.path.rename(self.folder.path.with_name(f"{GONE}{secrets.token_hex(8)}"))
        for gone in self.run.clients_folder.glob(f"{GONE}*"):  # one that was left when a process died, too
            with suppress(FileNotFoundError):
                shutil.rmtree(gone)

    def _agreed(self) -> str | None:
        """What she agreed to last; None where nothing is written down that can be read."""
        try:
            return json.loads(self.folder.consent.read_text("utf-8"))["agreed"]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _clips(self) -> list[Path]:
        return sorted(self.folder.clips.glob("clip*")) if self.folder.clips.is_dir() else []


def _seconds(clip: Path) -> float:
    """How long it is; of what is longer than `MOST_S`, that it is. Raises `PersonError` for what cannot be read."""
    try:
        # A browser's recording does not say how long it is.
        return format_of(clip).seconds or float(sum(1 for _ in frames_of(clip, end=MOST_S + 2, rate=1)))
    except VideoError as error:
        raise PersonError(told(error, clip.parent)) from error


def _clients_to_be(run: RunFolder) -> Collection[str]:
    """Of whose clips the run's shards are, where they can be read: some of them may still have no folder."""
    try:
        return load_manifest(run.config().shards).identities
    except UserError:
        return ()


def _look_at(people: People, source: ClipSource) -> Checked:
    pieces = people.clip(source.identity, source.clip)
    assert source.path is not None
    if not pieces:
        return Checked(source.clip, 0.0, False, ("not used: no face was followed in it, or it is under a second",))
    advice: list[str] = []
    try:
        advice += locate_face(first_picture(source.path)).notes
    except (NoFaceError, VideoError) as error:
        advice.append(str(error))
    light = float(np.median(np.concatenate([piece.frames.mean(axis=(1, 2, 3)) for piece in pieces])))
    if light < DARK:
        advice.append("it is dark: turn to a window or a lamp")
    elif light > BRIGHT:
        advice.append("it is too bright: turn away from the light")
    sound = np.concatenate([piece.waveform for piece in pieces]).astype(np.float64) / 32768
    steps = sound[: len(sound) // 320 * 320].reshape(-1, 320)
    loudest = 20 * np.log10(np.quantile(np.sqrt((steps**2).mean(axis=1)), 0.95) + 1e-9)
    if loudest < QUIET_DB:
        advice.append("hardly anything is heard: move nearer to the microphone")
    elif (np.abs(sound) > 0.99).mean() > CLIPPED:
        advice.append("the sound is too loud for the microphone: move away from it")
    if np.concatenate([aperture_of(piece.landmarks) for piece in pieces]).std() < STILL_LIPS:
        advice.append("the lips hardly move: speak while you record, and keep your hands off your mouth")
    return Checked(source.clip, len(sound) / SAMPLE_RATE, True, tuple(advice))
