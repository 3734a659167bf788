"""What the driver makes of a secure round's answers, without slots or a server."""

from types import SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray.actors import secure_round


def test_a_round_tells_why_sums_of_its_groups_were_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five groups two lost clients and one gave a sum that no honest clients make: only the server sees that."""
    ended = iter(["too few", None, "too few", None, None])
    opened = iter(["too few", None, "too few", "sum too large", None])
    answers = {"set_aside": lambda: next(opened), "finish": lambda: {"groups": 2, "aborted": "too few"}}
    monkeypatch.setattr(secure_round, "_exchange", lambda *_: next(ended))
    monkeypatch.setattr(secure_round, "ask", lambda _, method, *__: answers[method]())
    pool: Any = SimpleNamespace(vector=[0.0])
    cohort = [f"c{number}" for number in range(15)]
    record = secure_round.secure_round(pool, None, 1, cohort, None, None, groups=5)
    assert record["groups"] == 2 and record["lost_groups"] == {"too few": 2, "sum too large": 1}
    ended, opened = iter([None] * 3), iter([None] * 3)
    assert "lost_groups" not in secure_round.secure_round(pool, None, 1, cohort, None, None, groups=3)
