"""A member whose replies are anything at all: refused cheaply, never by a fault of the coordinator's own, and an honest
member of the same round is heard. `FEDTALK_CASES` sets how many bodies each test sends."""

import hashlib
import os
import random
from collections import Counter

import numpy as np
import pytest
import requests

from fedtalk_ray.enrolment.caller import signed_headers
from fedtalk_ray.messages import Advertisement, Reply
from fedtalk_ray.privacy.protocol import STAGES, Frame
from fedtalk_ray.privacy.wire import encode
from tests.unit.coordinator.conftest import Standing

CASES = int(os.environ.get("FEDTALK_CASES", "120"))
ELSEWHERE = (0, 2**63, -1)

pytestmark = pytest.mark.timeout(3600)


def mutated(body: bytes, draw: random.Random) -> bytes:
    """A body with a flipped bit, cut short, with a length that is not there, or of anything at all."""
    data, place = bytearray(body), draw.randrange(len(body))
    match draw.randrange(4):
        case 0:
            data[place] ^= 1 << draw.randrange(8)
        case 1:
            del data[place:]
        case 2:
            data[place : place + 4] = draw.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", draw.randbytes(4)))
        case _:
            data = bytearray(draw.randbytes(draw.choice((0, 1, 16, 4096, 1 << 17))))
    return bytes(data)


def test_fuzzed_replies_are_refused_and_an_honest_one_counts(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is the replies that are tried, not how many of them a minute has room for.
    monkeypatch.setattr("fedtalk_ray.coordinator.quota.MOST_A_MINUTE", 10**9)
    draw, count = random.Random(1), 0
    liar, _ = standing.member("liar"), standing.member("honest")
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(standing.files.authority)

        def sends(path: str, body: bytes) -> int:
            nonlocal count
            count += 1
            digest = hashlib.sha256(body).digest()
            signed = signed_headers(liar, "liar", standing.gate.callers.epoch, count, "POST", path, digest)
            return session.post(standing.address + path, data=body, headers=signed, timeout=30).status_code

        statuses, exchange = Counter[int](), 0
        frame = encode(Frame("Advertisement", encode(Advertisement("liar", bytes(32), bytes(32))), bytes(64)))
        body, honest = encode(Reply("", frame)), standing.line("honest")
        while count < CASES:
            exchange += 1
            both = ["liar", "honest"]
            asked = standing.ask(standing.gate.call("train", both, np.zeros(64, np.float32), standing.plan(exchange)))
            honest.post("/v1/next", b"")
            honest.post(f"/v1/replies/{exchange}/train", encode(Reply("", b"")))
            status = 0
            # On a busy machine the stage may be over before one of its replies can be read.
            while status != 200 and not asked.done():
                # One in four to what is not asked. Where it can still be read it is the liar's reply, and the last one.
                asks = (exchange, "train") if draw.random() < 0.75 else (draw.choice(ELSEWHERE), draw.choice(STAGES))
                status = sends(f"/v1/replies/{asks[0]}/{asks[1]}", mutated(body, draw))
                statuses[status] += 1
            assert "honest" in asked.result(30).clients
    assert statuses.keys() <= {200, 400, 404, 409, 410, 413, 422}, statuses
    assert statuses[400] > CASES / 4 and statuses[410] > 0, statuses
