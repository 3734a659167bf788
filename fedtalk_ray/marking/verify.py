"""What a file says of where it comes from: its content credentials and the invisible mark, and whether they agree."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fedtalk_ray.errors import UserError
from fedtalk_ray.marking import credentials, invisible
from fedtalk_ray.marking.certificates import TRIAL, trial_authorities
from fedtalk_ray.marking.credentials import COMPOSITE, SYNTHETIC, Credentials, CredentialsError
from fedtalk_ray.marking.invisible import Found
from fedtalk_ray.media.video import VideoError, frames_of

LOOKED_AT_S, LOOKED_AT_RATE = 60, 5
"""The mark is looked for in the first so many seconds, in so many pictures a second."""

_KINDS = {
    SYNTHETIC: "made by a model",
    COMPOSITE: "a real picture of which a model made a part",
}


class MarkError(UserError):
    """A file does not say that it was generated, or what it says does not fit."""


@dataclass(frozen=True)
class Verdict:
    """What was found in a file, each None where it is not there. unreadable: why credentials could not be read."""

    credentials: Credentials | None
    mark: Found | None
    unreadable: str = ""

    def lines(self) -> list[str]:
        """For people, a line for each of the two."""
        return [self._credentials(), self._mark()]

    def problem(self) -> str:
        """Why the file does not say that it was generated, or what does not fit; empty where all is well."""
        said, mark = self.credentials, self.mark
        if self.unreadable:
            return self.unreadable
        if said is None and mark is None:
            return "neither credentials nor the mark: nothing here says that it was generated, nor that it was not"
        if said is None:
            return "it has no credentials, or they were taken out: the mark alone says that it was generated"
        if said.changed:
            return f"it was changed after its credentials were signed ({said.problem})"
        if said.problem == "signingCredential.expired":
            return "the certificate of its credentials ran out, so whether they held then cannot be told"
        if not said.fits:
            return f"its credentials do not hold ({said.problem})"
        if said.kind not in _KINDS:
            return "its credentials do not say that it was generated"
        if said.number is None:
            return "" if mark is None else f"its credentials name no mark, and its pictures carry {mark.number:04x}"
        if mark is None:
            return f"its credentials name the mark {said.number:04x}, and it is not in the pictures"
        if said.number != mark.number:
            return f"its credentials are of another video: they name the mark {said.number:04x}, not {mark.number:04x}"
        return ""

    def _credentials(self) -> str:
        said = self.credentials
        if said is None:
            return "credentials: cannot be read" if self.unreadable else "credentials: none"
        holds = "unchanged since they were signed" if said.fits else f"DO NOT HOLD ({said.problem})"
        kind = _KINDS.get(said.kind, f"what it is they name {_quoted(said.kind)}")
        who = f"signed by {_quoted(said.signer)}"
        if said.fits and said.signer == TRIAL:
            who += " (for trials: it does not say who)" if said.trusted else " (for trials, of another machine)"
        elif said.fits and not said.trusted:
            who += ", whom nothing here vouches for (--trust)"
        return f"credentials: {holds}; {kind}; {who}; made with {_quoted(said.generator)}"

    def _mark(self) -> str:
        if self.mark is None:
            return "invisible mark: none found"
        return f"invisible mark: {self.mark.number:04x}, {self.mark.right:.0%} of its bits"


def _quoted(text: str) -> str:
    """What a file says of itself, so that nobody takes it for our own words."""
    return '"' + text.replace('"', "'") + '"'


def verify(path: str | Path, trusted: tuple[bytes, ...] = ()) -> Verdict:
    """trusted: certificates of authorities, PEM, beside this machine's own for trials. Raises `MarkError`."""
    try:
        _check_whole(Path(path))
        pictures = islice(frames_of(path, rate=LOOKED_AT_RATE), LOOKED_AT_S * LOOKED_AT_RATE)
        mark = invisible.read(pictures)
    except VideoError as error:
        raise MarkError(str(error)) from error
    try:
        return Verdict(credentials.read(path, (*trial_authorities(), *trusted)), mark)
    except CredentialsError as error:
        return Verdict(None, mark, str(error).removeprefix(f"{path}: "))


def _check_whole(path: Path) -> None:
    """Raises `MarkError` for a pipe, and for a list that would have other files read in this one's name."""
    try:
        if not path.exists():
            raise MarkError(f"{path}: does not exist")
        if not path.is_file():
            raise MarkError(f"{path}: is no file")
        with open(path, "rb") as file:
            begin = file.read(64).lstrip()
    except OSError as error:
        raise MarkError(f"{path}: {error.strerror}") from error
    if begin.startswith((b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0")):
        raise MarkError(f"{path}: is a list of other files; give a video")
