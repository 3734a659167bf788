"""What crosses between actors: every field is listed here, so a new one has to be argued for in a review."""

import dataclasses
import inspect
import typing

import numpy as np
import pytest

from fedtalk_ray import messages
from fedtalk_ray.messages import ClientReport, OpenedShare, Part, PlainUpdate, SealedFrom, SealedShare, Share

ALLOWED: dict[str, dict[str, object]] = {
    # In the clear under `aggregation: plain` only: names, counts, scores and mean losses, one number each.
    "ClientReport": {
        "client": str,
        "samples": int,
        "weight": float,
        "score": float | None,
        "id_sim": float | None,
        "temp_stab": float | None,
        "losses": dict[str, float],
    },
    # weighted_sum has the length of the shared parameters, whatever the data.
    "PlainUpdate": {
        "round": int,
        "weighted_sum": np.ndarray,
        "total_weight": float,
    },
    # In the clear: who has no update, and the code of why.
    "FitReport": {"clients": tuple[str, ...], "reports": tuple[ClientReport, ...], "refused": dict[str, int]},
    # Under `aggregation: secure`, client to server: keys, commitments, ciphertexts and shares, sized by the
    # number of holders alone; one vector, masked; one hash, and whose shares could not be read. Nothing but the vector
    # is computed from data.
    "Advertisement": {"client": str, "encryption_key": bytes, "masking_key": bytes},
    "SealedShare": {"holder": str, "ciphertext": bytes, "commitment": bytes},
    "SealedShares": {"client": str, "shares": tuple[SealedShare, ...]},
    "MaskedInput": {
        "client": str,
        "vector": np.ndarray,
        "seed_commitment": bytes,
        "shares": tuple[SealedShare, ...],
    },
    "Consistency": {"client": str, "survivors": bytes, "complaints": tuple[int, ...]},
    "Share": {"owner": str, "value": bytes},
    "OpenedShare": {"holder": str, "value": bytes},
    "Unmasking": {
        "client": str,
        "self_mask_shares": tuple[Share, ...],
        "masking_key_shares": tuple[Share, ...],
        "opened": tuple[OpenedShare, ...],
    },
    # Of a site, before it is a client: a name, keys and proofs, nothing computed from data.
    "EnrolmentRequest": {
        "client": str,
        "key": bytes,
        "invite": bytes,
        "until": str,
        "grant": bytes,
        "code_proof": bytes,
        "key_proof": bytes,
    },
    # Of a site, to each order: the frames above, or a line about its policy or the protocol.
    "Reply": {"refused": str, "frame": bytes},
    # Coordinator to site.
    "Part": {"name": str, "digest": bytes, "size": int},
    "Offer": {"nonce": bytes, "config": str, "start": tuple[Part, ...], "conditions": str},
    "Order": {"exchange": int, "stage": str, "frame": bytes, "parts": tuple[Part, ...]},
    # From a slot beside them: who answered, and a code for who did not.
    "Answers": {"clients": tuple[str, ...], "refused": dict[str, int]},
    # Server to client.
    "Plan": {
        "run": str,
        "exchange": int,
        "round": int,
        "backbone": bytes,
        "shared": bytes,
        "config": bytes,
        "clip_norm": float,
        "cohort": tuple[str, ...],
        "left_out": tuple[str, ...],
        "weight_scale": float,
    },
    "Advertised": {"advertisements": tuple[bytes, ...]},
    "SealedFrom": {"owner": str, "ciphertext": bytes, "commitment": bytes},
    "Delivered": {"partners": tuple[str, ...], "shares": tuple[SealedFrom, ...]},
    "Survivors": {"clients": tuple[str, ...], "seeds": tuple[SealedFrom, ...]},
    "UnmaskRequest": {"confirmations": tuple[bytes, ...]},
    "Collected": {
        "frames": dict[str, bytes],
        "answered": int,
        "rejected": dict[str, int],
        "aborted": str | None,
    },
    "HeldOutFigure": {"total": float, "people": int},
}

ARRAYS = {("PlainUpdate", "weighted_sum"), ("MaskedInput", "vector")}
"""The only fields that could hold more than a few numbers; their shapes are tested below and with their makers."""

PROTOCOL = {
    bytes,
    tuple[bytes, ...],
    tuple[int, ...],
    tuple[SealedShare, ...],
    tuple[Share, ...],
    tuple[SealedFrom, ...],
    tuple[OpenedShare, ...],
    tuple[Part, ...],
}
"""What the protocol's own messages are made of; tests/ray looks at every byte of them in a real round."""


def message_types() -> dict[str, type]:
    return {
        name: kind
        for name, kind in inspect.getmembers(messages, inspect.isclass)
        if kind.__module__ == messages.__name__
    }


def test_every_message_and_every_field_is_on_the_list() -> None:
    found = {name: typing.get_type_hints(kind) for name, kind in message_types().items()}
    assert found == ALLOWED
    for kind in message_types().values():
        assert dataclasses.is_dataclass(kind)


def test_nothing_but_the_vectors_can_hold_pictures_or_latents() -> None:
    scalars = {str, int, float, float | None, str | None, dict[str, float], tuple[ClientReport, ...], tuple[str, ...]}
    scalars |= {dict[str, str], dict[str, int], dict[str, bytes], *PROTOCOL}
    roomy = {(name, field) for name, fields in ALLOWED.items() for field, kind in fields.items() if kind not in scalars}
    assert roomy == ARRAYS


@pytest.mark.parametrize("name", ALLOWED)
def test_a_message_cannot_be_changed_or_extended_on_its_way(name: str) -> None:
    message = message_types()[name](*range(len(ALLOWED[name])))
    first = next(iter(ALLOWED[name]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, first, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.frames = np.zeros(3)


def test_the_wire_size_of_an_update_is_four_bytes_a_parameter() -> None:
    assert PlainUpdate(1, np.zeros(1000, np.float32), 1.0).nbytes() == 4000
