"""What listens to a run: its history, TensorBoard, Prometheus. The loop tells them, and knows nothing of them."""

from pathlib import Path
from typing import Any, Protocol


class Listener(Protocol):
    """Told what happened, in the order in which it did."""

    def after_round(self, record: dict[str, Any], slots: int) -> None:
        """record: the round's line of the history. slots: how many are up."""

    def after_sample(self, round_number: int, video: Path) -> None:
        """video: a new sample of somebody whom nobody trained on, with its contact sheet beside it as .png."""

    def close(self) -> None:
        """The run ended, well or not."""
