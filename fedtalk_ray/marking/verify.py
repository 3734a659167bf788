"""What a file says of where it comes from: its content credentials and the invisible mark, and whether they agree."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fedtalk_ray.errors import UserError
from fedtalk_ray.marking import credentials, invisible
from fedtalk_ray.marking.certificates import TRIAL, trial_authorities
from fedtalk_ray.marking.credentials import COMPOSITE, SYNTHETIC, Credentials
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
    """What was found in a file, each None where it is not there."""

    credentials: Credentials | None
    mark: Found | None

    def lines(self) -> list[str]:
        """For people, a line for each of the two."""
        return [self._credentials(), self._mark()]

    def problem(self) -> str:
        """What does not fit, or that nothing is there; else nothing."""
        said, mark = self.credentials, self.mark
        if said is None and mark is None:
            return "neither credentials nor the mark: nothing here says that it was generated, nor that it was not"
        if said is not None and not said.fits:
            return f"its credentials do not fit the file ({said.problem}): it was changed after it was signed"
        if said is not None and mark is not None and said.number is not None and said.number != mark.number:
            return f"its credentials are of another video: they name the mark {said.number:04x}, not {mark.number:04x}"
        if said is not None and mark is None and said.number is not None:
            return f"its credentials name the mark {said.number:04x}, and it is not in the pictures"
        if said is None:
            return "its credentials were taken out: the mark alone says that it was generated"
        return ""

    def _credentials(self) -> str:
        said = self.credentials
        if said is None:
            return "credentials: none"
        kind = _KINDS.get(said.kind, said.kind or "it does not say what it is")
        fits = "unchanged since it was signed" if said.fits else f"DO NOT FIT ({said.problem})"
        who = f'"{said.signer}"'
        if not said.fits:
            return f"credentials: {kind}, by {said.generator}; {fits}; signed by {who}"
        if said.signer == TRIAL:
            who += " (for trials: it does not say who)" if said.trusted else " (for trials, of another machine)"
        elif not said.trusted:
            who += ", whom nothing here vouches for (--trust)"
        return f"credentials: {kind}, by {said.generator}; {fits}; signed by {who}"

    def _mark(self) -> str:
        if self.mark is None:
            return "invisible mark: none found"
        return f"invisible mark: {self.mark.number:04x}, {self.mark.right:.0%} of its bits"


def verify(path: str | Path, trusted: tuple[bytes, ...] = ()) -> Verdict:
    """trusted: certificates of authorities, PEM, beside this machine's own for trials. Raises `MarkError`."""
    try:
        pictures = islice(frames_of(path, rate=LOOKED_AT_RATE), LOOKED_AT_S * LOOKED_AT_RATE)
        mark = invisible.read(pictures)
    except VideoError as error:
        raise MarkError(str(error)) from error
    return Verdict(credentials.read(path, (*trial_authorities(), *trusted)), mark)
