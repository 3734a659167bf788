"""history.jsonl: one line a round, and a resumed run that writes the same file as one that never stopped."""

from pathlib import Path

from fedtalk_ray.runs.history import History, read_history


def records(*rounds: int) -> list[dict]:
    return [{"round": number, "loss": 1 / number} for number in rounds]


def test_rounds_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    path.write_text('{"round": 9}\n')
    history = History(path, keep=0)
    assert path.read_text() == "" and read_history(path) == []
    for record in records(1, 2, 3):
        history.after_round(record)
    assert read_history(path) == records(1, 2, 3)
    assert path.read_text().count("\n") == 3


def test_going_on_drops_rounds_that_will_be_run_again_and_what_was_half_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, keep=0)
    for record in records(1, 2, 3):
        history.after_round(record)
    with open(path, "a") as file:
        file.write('{"round": 4, "lo')
    assert read_history(path) == records(1, 2, 3)
    History(path, keep=2).after_round(records(3)[0])
    assert read_history(path) == records(1, 2, 3)
