"""What a caller of Ray actors sees when one is gone, and what is left of Ray's long errors."""

from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from fedtalk_ray.errors import RunError, UserError

DEATHS = (RayActorError, ActorUnschedulableError, OutOfMemoryError, ObjectLostError)
"""An actor is gone: it died, with or without its node, or for want of memory; or what it had returned went with its
node."""


class RoundLost(RunError):
    """What a round had gathered, or was to begin with, is gone with a server or a node; the model is as it was."""


def fetch(ref: ray.ObjectRef, timeout: float | None = None) -> Any:
    """`ray.get`, with a user's error raised as itself.

    Raises one of `DEATHS` where whoever was called is gone, and `RoundLost` where it lives, but what it was to work on
    went with somebody else.
    """
    try:
        return ray.get(ref, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, OutOfMemoryError)):
            raise error.cause from None
        if isinstance(error.cause, DEATHS):
            raise RoundLost(
                f"what a call was to work on is gone ({first_line(error.cause)}); the last checkpoint is intact: go on "
                "with --resume"
            ) from None
        raise


def first_line(error: Exception | str) -> str:
    """Ray's errors are many lines long; the first says what happened."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
