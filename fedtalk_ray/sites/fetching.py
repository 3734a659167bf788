"""A released model for somebody who is no site: fetched with a token, into a folder of its own."""

from collections.abc import Callable
from pathlib import Path

from fedtalk_ray.coordinator.offer import model_parts
from fedtalk_ray.coordinator.served import safe_name
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.enrolment.token import Token
from fedtalk_ray.messages import Order
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.privacy.wire import MalformedMessage, decode
from fedtalk_ray.progress import progress
from fedtalk_ray.sites.connection import Connection, fetch_authority
from fedtalk_ray.sites.policy import Policy


def fetch_released(
    address: str, token: Token, out: str | Path, overwrite: bool = False, tell: Callable[[str], None] = print
) -> Path:
    """The released model's folder, which every command takes as `--run`.

    Raises `EnrolmentError` where none is released yet, nobody answers or what comes is none, `RunError` for files that
    have no place in a model, `ConnectionRefused` for a token that is not taken, `OutputError` for a folder that is in
    use; then there is none.
    """
    certificate = fetch_authority(address, token)
    with new_folder(out, overwrite) as place:
        authority = place / "authority.pem"
        authority.write_bytes(certificate)
        line = Connection.with_token(address, authority, token, tell)
        parts = model_parts(_order(line.get("/v1/released")).parts, Policy().most_download_mb)
        for part in progress(parts, len(parts), "files"):
            line.fetch(part, place / safe_name(part.name))
        authority.unlink()
    return Path(out)


def _order(said: bytes | None) -> Order:
    if said is None:
        raise EnrolmentError("no model is released there yet; ask again when the run is over")
    try:
        return decode(Order, said)
    except MalformedMessage as error:
        raise EnrolmentError(f"what the coordinator says cannot be read ({error})") from error
