"""What a caller of Ray actors sees when one is gone, and what is left of Ray's long errors."""

from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from fedtalk_ray.errors import UserError

DEATHS = (RayActorError, ActorUnschedulableError, OutOfMemoryError)
"""An actor is gone: it died, with or without its node, or for want of memory."""

LOSSES = (*DEATHS, ObjectLostError)
"""The same, or what it had returned is gone with its node."""


def fetch(ref: ray.ObjectRef, timeout: float | None = None) -> Any:
    """`ray.get`, with a user's error, a death or a loss inside a call raised as itself."""
    try:
        return ray.get(ref, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, *LOSSES)):
            raise error.cause from None
        raise


def first_line(error: Exception | str) -> str:
    """Ray's errors are many lines long; the first says what happened."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
