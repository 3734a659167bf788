"""history.jsonl: one JSON line for every finished round, the record that plots and comparisons read."""

import json
from pathlib import Path
from typing import Any

from fedtalk_ray.outputs import new_file, writing

HISTORY = "history.jsonl"


class History:
    """Appends rounds to the file. `keep`: rounds that stay when a run goes on; later lines will be written again."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path = path
        kept = [record for record in read_history(path) if record["round"] <= keep]
        with new_file(path) as place:
            place.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def append(self, record: dict[str, Any]) -> None:
        with writing(self._path), open(self._path, "a") as file:
            file.write(json.dumps(record) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """All whole lines, in order; a line that a killed run left half written is dropped."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
