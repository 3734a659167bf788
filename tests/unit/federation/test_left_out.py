"""Who sits out rounds for what it did, and that nobody spoils more than a few."""

from pathlib import Path

import pytest

from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.left_out import LeftOut
from fedtalk_ray.privacy.faults import Fault


@pytest.fixture
def left_out(tmp_path: Path) -> LeftOut:
    return LeftOut(tmp_path / "left_out.json")


def test_a_proven_fault_is_for_good_whether_or_not_a_round_was_lost(left_out: LeftOut, tmp_path: Path) -> None:
    left_out.after(1, {"ana": Fault.SILENT, "bob": Fault.UNANSWERED}, lost=False)
    assert left_out.of(2, 5) == [] and left_out.for_good() == ()
    left_out.after(3, {"eve": Fault.KEPT_BACK}, lost=False)
    again = LeftOut(tmp_path / "left_out.json")
    assert again.of(4, 0) == again.of(4000, 0) == ["eve"]
    assert again.for_good() == ("eve",)


def test_a_suspected_one_sits_out_twice_as_long_each_time(left_out: LeftOut) -> None:
    out = []
    for number in range(1, 20):
        if "ana" in left_out.of(number, 5):
            out.append(number)
        else:
            left_out.after(number, {"ana": Fault.SILENT}, lost=True)
    assert out == [2, 4, 5, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19]
    assert left_out.for_good() == ()
    assert left_out.of(1000, 5) == []


def test_cohorts_stay_as_large_as_they_were(left_out: LeftOut) -> None:
    """With one to spare only the one that was out most often sits out; a proven one is out whatever is left."""
    left_out.after(1, {"ana": Fault.SILENT, "eve": Fault.SILENT}, lost=True)
    left_out.after(3, {"eve": Fault.SILENT}, lost=True)
    left_out.after(4, {"ana": Fault.SILENT}, lost=True)
    left_out.after(10, {"eve": Fault.SILENT}, lost=True)
    left_out.after(12, {"ana": Fault.SILENT, "bob": Fault.SILENT}, lost=True)
    assert left_out.of(13, 9) == ["ana", "bob", "eve"]
    assert left_out.of(13, 1) in (["ana"], ["eve"])
    assert left_out.of(13, 0) == []
    left_out.after(13, {"mallory": Fault.WRONG_SHARES}, lost=True)
    assert left_out.of(14, 0) == ["mallory"]


@pytest.mark.parametrize("text", ["", "[]", '{"eve": 3}', '{"eve": {"until": 1}}'])
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "left_out.json").write_text(text)
    with pytest.raises(RunError, match=r"left_out.json is damaged"):
        LeftOut(tmp_path / "left_out.json")
