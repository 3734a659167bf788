"""The roster: it grows, nobody's key changes, and what a client pinned stays at its beginning."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.errors import RunError
from fedtalk_ray.federation.roster import Pin, RosterFile, extend_roster, whole_lines

SERVER = bytes(range(32))


def key(name: str) -> bytes:
    return name.encode().ljust(32, b"\0")


@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.sets(st.sampled_from("abcdefgh"), max_size=3), max_size=5))
def test_what_is_read_is_what_was_added_and_every_earlier_pin_holds(
    tmp_path_factory: pytest.TempPathFactory, parts: list[set[str]]
) -> None:
    path = tmp_path_factory.mktemp("roster") / "roster.jsonl"
    known: set[str] = set()
    reader, pins, runs = RosterFile(path), [], set()
    for part in [set(), *parts]:
        extend_roster(path, SERVER, {name: key(name) for name in part - known})
        known |= part
        for each in (reader, RosterFile(path)):
            roster, run = each.read()
            assert dict(roster.clients) == {name: key(name) for name in known} and roster.server == SERVER
            runs.add(run)
            assert all(each.keeps(pin) for pin in pins)
        pins.append(reader.pin())
    assert len(runs) == 1 and len(next(iter(runs))) == 32


def test_a_key_that_was_exchanged_is_noticed_by_whoever_saw_the_first_one(tmp_path: Path) -> None:
    path = tmp_path / "roster.jsonl"
    extend_roster(path, SERVER, {"a": key("a"), "b": key("b")})
    reader = RosterFile(path)
    reader.read()
    pin = reader.pin()
    extend_roster(path, SERVER, {"c": key("c")})
    path.write_text(path.read_text().replace(key("b").hex(), key("x").hex()))
    for each in (reader, RosterFile(path)):
        assert each.read()[0].clients["b"] == key("x")
        assert not each.keeps(pin)
    assert not reader.keeps(Pin(10**6, pin.digest)), "and one that was cut short"


def test_a_line_that_a_killed_run_left_half_written_is_not_read_and_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "roster.jsonl"
    extend_roster(path, SERVER, {"a": key("a")})
    with open(path, "a") as file:
        file.write('{"client": "b", "ke')
    assert set(RosterFile(path).read()[0].clients) == {"a"}
    extend_roster(path, SERVER, {"c": key("c")})
    assert set(RosterFile(path).read()[0].clients) == {"a", "c"}
    assert whole_lines(b"") == b"" == whole_lines(b"abc")


@pytest.mark.parametrize(
    "text", ["", "x\n", "{}\n", '{"run": "r", "server": "00"}\n{"client": "a"}\n', "a client with two keys"]
)
def test_a_damaged_roster_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "roster.jsonl"
    if text.startswith("a client"):
        extend_roster(path, SERVER, {"a": key("a")})
        text, says = path.read_text() + json.dumps({"client": "a", "key": key("b").hex()}) + "\n", "a has two keys"
    else:
        says = f"roster {path} cannot be read"
    path.write_text(text)
    with pytest.raises(RunError, match=says) as caught:
        RosterFile(path).read()
    assert "\n" not in str(caught.value)
