"""The identity encoder learns who is who, from a client that holds several people."""

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive
from fedtalk_ray.model.autoencoder import frames_to_pixels
from fedtalk_ray.model.identity import IdentityEncoder
from fedtalk_ray.recipe import IdentityConfig
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.identity import identity_phase


def new_encoder() -> IdentityEncoder:
    torch.manual_seed(0)
    return IdentityEncoder(dimensions=8, widths=(8, 16)).eval()


def test_the_identity_encoder_learns_who_is_who(pieces: list[Piece], all_rounds) -> None:
    encoder = new_encoder()

    def gap() -> float:
        """How much more alike two frames of one person are than of two people."""
        with torch.no_grad():
            embedded = torch.stack([encoder(frames_to_pixels(piece.frames[::6])) for piece in pieces])
        within = torch.einsum("pid,pjd->pij", embedded, embedded).mean()
        across = torch.einsum("pid,qjd->pqij", embedded, embedded)[~torch.eye(3, dtype=torch.bool)].mean()
        return float(within - across)

    before = gap()
    answers = all_rounds(identity_phase(encoder, IdentityConfig(rounds=3, steps=20)), pieces, 3)
    assert gap() > before + 0.3
    assert answers[-1].losses["identity"] < answers[0].losses["identity"]
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_first_loss_is_the_contrastive_one_by_hand(pieces: list[Piece], make_task, monkeypatch) -> None:
    """An encoder that sees everybody alike: each of nine frames has eight others, all as likely."""
    encoder = new_encoder()
    monkeypatch.setattr(encoder, "forward", lambda pixels: torch.nn.functional.normalize(encoder.same(pixels), dim=1))
    encoder.same = lambda pixels: torch.ones(len(pixels), 8) + 0 * sum(p.sum() for p in encoder.parameters())
    phase = identity_phase(encoder, IdentityConfig(steps=1))
    assert phase.fit(make_task(pieces, phase.initial())).losses["identity"] == pytest.approx(np.log(8), abs=1e-5)


def test_a_client_of_one_person_has_nothing_to_say(pieces: list[Piece], make_task) -> None:
    phase = identity_phase(new_encoder(), IdentityConfig(steps=1))
    with pytest.raises(NothingToGive, match="it holds one person, and who is who takes two to tell apart"):
        phase.fit(make_task(pieces[:1], phase.initial()))
