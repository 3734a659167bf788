"""history.jsonl: one JSON line for every finished round, the record that plots and comparisons read."""

import json
from pathlib import Path
from typing import Any

from fedtalk_ray.errors import RunError
from fedtalk_ray.outputs import new_file, writing


class History:
    """Listens to a run (`tracking.Listener`) and appends its rounds to the file.

    keep: rounds that stay when a run goes on; later lines will be written again.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self._path = path
        kept = [record for record in read_history(path) if record["round"] <= keep]
        with new_file(path) as place:
            place.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def after_round(self, record: dict[str, Any], slots: int = 0) -> None:
        with writing(self._path), open(self._path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def after_sample(self, round_number: int, video: Path) -> None:
        """Samples are files; the history does not tell of them."""

    def close(self) -> None:
        """Nothing is held open."""


def read_history(path: Path) -> list[dict[str, Any]]:
    """All whole lines, by round; a line that a killed run left half written is dropped. Raises `RunError`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error})") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("round"), int):
            raise RunError(f"{path}: line {number} is no round's record (it names no round)")
        records.append(record)
    return sorted(records, key=lambda record: record["round"])
