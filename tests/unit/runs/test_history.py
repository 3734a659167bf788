"""history.jsonl: one line a round, and a resumed run that writes the same file as one that never stopped."""

from pathlib import Path

from fedtalk_ray.runs.history import History, read_history


def records(*rounds: int) -> list[dict]:
    return [{"round": number, "loss": 1 / number} for number in rounds]


def test_rounds_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, keep=0)
    assert path.read_text() == "" and read_history(path) == []
    for record in records(1, 2, 3):
        history.after_round(record)
    assert read_history(path) == records(1, 2, 3)
    assert path.read_text().count("\n") == 3


def test_going_on_drops_the_rounds_that_will_be_run_again(tmp_path: Path) -> None:
    path, straight = tmp_path / "history.jsonl", tmp_path / "straight.jsonl"
    for file, stops in ((path, [(0, (1, 2, 3)), (2, (3, 4))]), (straight, [(0, (1, 2, 3, 4))])):
        for keep, rounds in stops:
            history = History(file, keep)
            for record in records(*rounds):
                history.after_round(record)
    assert path.read_bytes() == straight.read_bytes()


def test_a_new_run_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    History(path, keep=0).after_round(records(1)[0])
    History(path, keep=0)
    assert read_history(path) == []


def test_a_line_that_a_killed_run_left_half_written_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, keep=0)
    for record in records(1, 2):
        history.after_round(record)
    with open(path, "a") as file:
        file.write('{"round": 3, "lo')
    assert read_history(path) == records(1, 2)
    History(path, keep=2).after_round(records(3)[0])
    assert read_history(path) == records(1, 2, 3)


def test_no_file_is_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "none.jsonl") == []
