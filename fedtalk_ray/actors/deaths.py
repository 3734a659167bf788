"""What a caller of Ray actors sees when one is gone, and what is left of Ray's long errors."""

from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from fedtalk_ray.errors import UserError

DEATHS = (RayActorError, ActorUnschedulableError, OutOfMemoryError, ObjectLostError)
"""An actor is gone: it died, with or without its node, or for want of memory. Or a node is gone, and with it what the
actor had returned or was to be told."""


def fetch(ref: ray.ObjectRef, timeout: float | None = None) -> Any:
    """`ray.get`, with a user's error, or a death inside a call raised as itself."""
    try:
        return ray.get(ref, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, *DEATHS)):
            raise error.cause from None
        raise


def first_line(error: Exception | str) -> str:
    """Ray's errors are many lines long; the first says what happened."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
