"""The list of members as a coordinator has it: read anew when the file changes, and never believed half copied."""

import logging

from fedtalk_ray.enrolment.coordinator_files import CoordinatorFiles
from fedtalk_ray.enrolment.membership import EnrolmentError, Membership, later

_LOG = logging.getLogger("fedtalk.coordinator")


class NewestList:
    """The newest that the authority signed."""

    def __init__(self, files: CoordinatorFiles) -> None:
        """Raises `EnrolmentError` where there is none."""
        self._files, self.authority = files, files.authority_key
        self._held: tuple[tuple[int, int, int], Membership, bytes] | None = None
        self._newest()

    def membership(self) -> Membership:
        """One that the authority did not sign, an older one, or a file that is away, leaves the one before."""
        return self._newest()[0]

    def signed(self) -> bytes:
        """The same as the authority signed it."""
        return self._newest()[1]

    def _newest(self) -> tuple[Membership, bytes]:
        try:
            stat = self._files.members.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        except OSError:
            # Being replaced, as a rule: some programs that copy remove the file first.
            stamp = (0, 0, 0)
        if self._held is None or self._held[0] != stamp:
            try:
                signed = self._files.signed_members()
                # An older one would let in who was revoked since.
                self._held = stamp, later(self._held and self._held[2], signed, self.authority), signed
            except EnrolmentError as error:
                if self._held is None:
                    raise
                # It is looked at again when it is whole.
                _LOG.error("%s; the list before stays", error)
                self._held = stamp, *self._held[1:]
        return self._held[1:]
