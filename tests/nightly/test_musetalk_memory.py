"""What a step on MuseTalk's networks holds at their own sizes, and that the page's table says so."""

from pathlib import Path

import torch

from fedtalk_ray.model.musetalk_memory import ATTENTION, held


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing() -> None:
    one = held(8, ATTENTION, 1, False, torch.bfloat16)
    two = held(8, ATTENTION, 2, False, torch.bfloat16)
    again = held(8, ATTENTION, 2, True, torch.bfloat16)
    assert one.weights == two.weights == 2 * (849_947_844 + 83_653_863 + 1_496_064)
    assert one.moments == 8 * 1_496_064
    assert 1.8 < two.step / one.step < 2.1
    assert again.step < two.step / 2


def test_the_page_holds_what_the_table_says(repository: Path) -> None:
    """One row, made anew: the whole table takes minutes."""
    page = (repository / "docs" / "presets.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| attention, rank 8 |") and "bfloat16" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    both = [held(8, ATTENTION, 1, again, torch.bfloat16).total / 2**30 for again in (False, True)]
    assert cells[1:5] == ["1,496,064", "5.7", "bfloat16", f"{both[0]:.1f} / {both[1]:.1f}"]
    assert "python -m fedtalk_ray.model.musetalk_memory" in page[: page.index(row)]
