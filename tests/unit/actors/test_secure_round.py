"""What the driver makes of a secure round's answers, without slots or a server."""

from types import SimpleNamespace
from typing import Any

import pytest

from fedtalk_ray.actors import secure_round
from fedtalk_ray.errors import RunError
from fedtalk_ray.messages import Collected
from fedtalk_ray.privacy.protocol import Code


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


@pytest.mark.parametrize("few", [True, False])
def test_a_round_in_which_nobody_can_go_on_ends_the_run_with_where_to_look(
    monkeypatch: pytest.MonkeyPatch, few: bool
) -> None:
    """A folder of ledgers that nobody can write is a mistake in the settings; with one client that can it is theirs."""
    cohort = [f"c{number}" for number in range(8)]

    def train(_: Any, cohort: list[str], *rest: Any) -> list[Any]:
        rest[-1].update({str(Code.CANNOT_GO_ON): len(cohort) - few, str(Code.CAP_REACHED): int(few)})
        return []

    answers = {"begin": b"plan", "collect": Collected({}, 0, {}, "too few"), "finish": {"aborted": "too few"}}
    monkeypatch.setattr(secure_round, "_train", train)
    monkeypatch.setattr(secure_round, "ask", lambda _, method, *__: answers[method])
    pool: Any = SimpleNamespace(
        vector=[0.0], one=lambda _: b"", policy=SimpleNamespace(check_quorum=lambda *_: None), gather=lambda _: []
    )
    if few:
        record = secure_round.secure_round(pool, None, 1, cohort, None, None)
        assert record["refused"][str(Code.CANNOT_GO_ON)] == 7
    else:
        with pytest.raises(RunError, match="round 1: none of 8 clients can go on; the slots' logs say why"):
            secure_round.secure_round(pool, None, 1, cohort, None, None)
