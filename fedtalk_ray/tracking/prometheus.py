"""A run's figures for Prometheus, through Ray's metrics agent, which puts `ray_` before each name.

`cluster/prometheus.yml` collects them and `cluster/grafana-dashboard.json` draws them. All carry the run's folder. None
is labelled by a client: whoever reads a dashboard is not meant to know who took part, or how well (docs/privacy.md).
"""

import sys
from pathlib import Path
from typing import Any

from ray.util.metrics import Counter, Gauge

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fedtalk_round": ("The last round that was finished.", ()),
    "fedtalk_cohort": ("Clients asked in the last round.", ()),
    "fedtalk_survivors": ("Clients whose updates are in its sum.", ()),
    "fedtalk_loss": ("Mean training loss of the cohort; under plain aggregation only.", ("term",)),
    "fedtalk_held_out_loss": ("Mean diffusion loss on held-out clips.", ()),
    "fedtalk_epsilon": ("Privacy spent so far; real clients got less where the view says SIMULATION.", ("view",)),
    "fedtalk_stage_seconds": ("Seconds of the last round, by stage.", ("stage",)),
    "fedtalk_slots": ("Client slots that hold the model.", ()),
    "fedtalk_sites_on_line": ("Sites that were on line as the last round began.", ()),
    "fedtalk_slot_gpu_bytes": ("Most GPU memory that the slot's tensors have taken.", ("slot",)),
}
"""name -> what it is, and its labels beside `run`."""

COUNTERS: dict[str, str] = {
    "fedtalk_rounds_total": "Rounds finished by this process.",
    "fedtalk_bytes_up_total": "Bytes of updates sent from slots to the server.",
}

METRICS: tuple[str, ...] = (*GAUGES, *COUNTERS)


class RoundMetrics:
    """The driver's side, a `tracking.Listener`: sets the gauges from a round's record. Needs a connection to Ray."""

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._stages: set[str] = set()
        self._gauges = {name: gauge(name) for name in GAUGES if name != "fedtalk_slot_gpu_bytes"}
        self._counters = {name: Counter(name, text, ("run",)) for name, text in COUNTERS.items()}

    def after_round(self, record: dict[str, Any], slots: int) -> None:
        self._set("fedtalk_round", record["round"])
        self._set("fedtalk_slots", slots)
        trained, counts = len(record.get("clients", ())), record.get("counts", {})
        if "counts" in record or trained:
            self._set("fedtalk_cohort", counts.get("cohort", trained))
            self._set("fedtalk_survivors", record.get("survivors", counts.get("trained", trained)))
        if "sites" in record:
            self._set("fedtalk_sites_on_line", record["sites"]["on_line"])
        # A mean over one client would be that client's.
        for term, value in record.get("loss", {}).items() if trained > 1 else ():
            self._set("fedtalk_loss", value, term=term)
        if "held_out_loss" in record:
            self._set("fedtalk_held_out_loss", record["held_out_loss"])
        # In the view's name, which dashboards show beside the figure.
        simulated = " (SIMULATION)" if record.get("simulation") else ""
        for view, name in (("release", "epsilon"), ("server", "epsilon_server")):
            if name in record:
                self._set("fedtalk_epsilon", record[name], view=view + simulated)
        seconds = record.get("stage_seconds", {})
        self._stages.update(seconds)
        for stage in self._stages:
            # What this round did not do took no time; the gauge would go on showing the last one's.
            self._set("fedtalk_stage_seconds", seconds.get(stage, 0.0), stage=stage)
        self._counters["fedtalk_rounds_total"].inc(1, self._run)
        if record.get("bytes_up"):
            self._counters["fedtalk_bytes_up_total"].inc(record["bytes_up"], self._run)

    def after_sample(self, round_number: int, video: Path) -> None:
        """Pictures are TensorBoard's."""

    def close(self) -> None:
        """Ray's agent goes on showing the last values."""

    def _set(self, name: str, value: float, **labels: str) -> None:
        self._gauges[name].set(value, self._run | labels)


class SlotMemory:
    """A slot's side: the GPU memory that its tensors take, where it has a GPU."""

    def __init__(self, run: str, slot: str) -> None:
        self._labels = {"run": run, "slot": slot}
        self._gauge: Gauge | None = None

    def observe(self) -> None:
        """Sets the gauge; does nothing in a process that uses no GPU."""
        # A slot that never imported torch holds no tensors.
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return
        self._gauge = self._gauge or gauge("fedtalk_slot_gpu_bytes")
        self._gauge.set(torch.cuda.max_memory_allocated(), self._labels)


def gauge(name: str) -> Gauge:
    """A gauge of `GAUGES`."""
    text, labels = GAUGES[name]
    return Gauge(name, text, ("run", *labels))
