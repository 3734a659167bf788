"""What a round's line and a slot tell Prometheus; Ray's own gauges are left out, its wire is tested with real jobs."""

from typing import Any

import pytest
import torch

from fedtalk_ray.tracking import prometheus as ray_metrics
from fedtalk_ray.tracking.prometheus import METRICS, RoundMetrics, SlotMemory

Seen = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """(name, labels) -> the value that was set or added up."""
    found: Seen = {}

    class Recorded:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description.endswith(".")
            self._name, self._keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(self._keys), "Ray takes these labels and no others"
            found[self._name, tuple(sorted(tags.items()))] = value

        def inc(self, value: float, tags: dict[str, str]) -> None:
            self.set(found.get((self._name, tuple(sorted(tags.items()))), 0) + value, tags)

    monkeypatch.setattr(ray_metrics, "Gauge", Recorded)
    monkeypatch.setattr(ray_metrics, "Counter", Recorded)
    return found


def at(seen: Seen, name: str, **labels: str) -> Any:
    return seen.get((name, tuple(sorted({"run": "runs/grid", **labels}.items()))))


def test_a_plain_round_is_told(seen: Seen) -> None:
    metrics = RoundMetrics("runs/grid")
    record = {
        "round": 1,
        "counts": {"cohort": 5, "trained": 4},
        "loss": {"tdc": 0.5},
        "clients": [{"client": "ann"}] * 4,
        "bytes_up": 100,
        "stage_seconds": {"train": 2.0, "evaluate": 0.5},
    }
    metrics.after_round(record, slots=2)
    metrics.after_round(record | {"round": 2, "held_out_loss": 0.25, "bytes_up": 20}, slots=3)
    assert at(seen, "fedtalk_round") == 2 and at(seen, "fedtalk_rounds_total") == 2
    assert at(seen, "fedtalk_cohort") == 5 and at(seen, "fedtalk_survivors") == 4 and at(seen, "fedtalk_slots") == 3
    assert at(seen, "fedtalk_loss", term="tdc") == 0.5 and at(seen, "fedtalk_held_out_loss") == 0.25
    assert at(seen, "fedtalk_stage_seconds", stage="evaluate") == 0.5 and at(seen, "fedtalk_bytes_up_total") == 120
    metrics.after_round({"round": 3, "stage_seconds": {"train": 1.0}}, slots=3)
    assert at(seen, "fedtalk_stage_seconds", stage="evaluate") == 0, "round 3 did not evaluate"
    assert {name for name, _ in seen} <= set(METRICS)
    assert "ann" not in repr(seen), "no figure is about a single client"
    assert at(seen, "fedtalk_sites_on_line") is None
    metrics.after_round({"round": 2, "sites": {"on_line": 12, "members": 14}}, slots=1)
    assert at(seen, "fedtalk_sites_on_line") == 12
    seen.clear()
    metrics.after_round(record | {"clients": [{"client": "ann"}]}, slots=1)
    assert at(seen, "fedtalk_loss", term="tdc") is None, "the mean over one client is hers"


def test_a_slots_process_tells_its_gpu_memory_by_its_name(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    SlotMemory("runs/grid", "grid.slot-1").observe()
    assert not seen
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1 << 20)
    SlotMemory("runs/grid", "grid.slot-7").observe()
    assert at(seen, "fedtalk_slot_gpu_bytes", slot="grid.slot-7") == 1 << 20


def test_a_private_round_tells_what_was_spent_and_whether_it_is_simulated(seen: Seen) -> None:
    record = {"round": 3, "counts": {"cohort": 9, "trained": 9, "mask": 8}, "survivors": 8}
    RoundMetrics("runs/grid").after_round(record | {"epsilon": 1.5, "epsilon_server": 4.0, "bytes_up": 0}, slots=1)
    assert at(seen, "fedtalk_survivors") == 8 and at(seen, "fedtalk_bytes_up_total") is None
    assert at(seen, "fedtalk_epsilon", view="release") == 1.5 and at(seen, "fedtalk_epsilon", view="server") == 4.0
    seen.clear()
    RoundMetrics("runs/grid").after_round({"round": 3, "epsilon": 1.5, "epsilon_server": 4.0, "simulation": True}, 1)
    assert at(seen, "fedtalk_epsilon", view="release (SIMULATION)") == 1.5
    assert at(seen, "fedtalk_epsilon", view="server (SIMULATION)") == 4.0
    assert at(seen, "fedtalk_epsilon", view="release") is None
