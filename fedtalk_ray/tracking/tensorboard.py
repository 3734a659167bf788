"""TensorBoard of one run, in one folder: curves, settings, pictures, speaking videos and their sound, by round."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedtalk_ray.media.pictures import smaller
from fedtalk_ray.media.video import FPS, SAMPLE_RATE, frames_of, sound_of

SERVER_FIGURES = ("update_norm", "survivors", "rounding_error")
PRIVACY_FIGURES = ("epsilon", "epsilon_server", "noise_multiplier", "clip_norm", "clip_fraction")
HELD_OUT = "held_out/loss"

SHOWN_SIDE = 288
"""Pixels of the longer side of a video: it is kept as a GIF, which at a film's size takes minutes and 100 MB."""


class TensorBoardLog:
    """Listens to a run (`tracking.Listener`). Writes events into a folder. Steps are rounds, or pretraining's steps."""

    def __init__(self, folder: Path, first_round: int = 0) -> None:
        """first_round: the one that runs next. What a run that is resumed had logged from there on shows no more."""
        # Here, because it imports torch, which a driver needs for nothing else.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_round)

    def settings(self, tree: dict[str, Any]) -> None:
        """The configuration, for TensorBoard's HPARAMS tab, next to the held-out loss."""
        from torch.utils.tensorboard.summary import hparams

        # Not the writer's own add_hparams, which makes a run of its own in a folder below this one.
        for summary in hparams(flat(tree), {HELD_OUT: 0.0}):
            self._writer._get_file_writer().add_summary(summary)

    def after_round(self, record: dict[str, Any], slots: int = 0) -> None:
        """The record's numbers, as curves."""
        self.scalars(record["round"], curves(record))
        self.flush()

    def after_sample(self, round_number: int, video: Path) -> None:
        """The sheet, the moving picture and its sound."""
        frames = np.concatenate([smaller(frame[None], SHOWN_SIDE) for frame in frames_of(video)])
        self.sample(round_number, np.asarray(Image.open(video.with_suffix(".png"))), frames, sound_of(video))

    def sample(self, round_number: int, sheet: np.ndarray, frames: np.ndarray, sound: np.ndarray) -> None:
        """A contact sheet uint8 [H, W, 3], a video uint8 [T, H, W, 3] and its sound float32 [N] in [-1, 1]."""
        self._writer.add_image("sample/unseen", sheet, round_number, dataformats="HWC")
        self.video(round_number, "sample/speaking", frames, FPS)
        # TensorBoard's pictures are silent: it plays sound on a tab of its own.
        self._writer.add_audio("sample/sound", sound[None], round_number, sample_rate=SAMPLE_RATE)

    def scalars(self, round_number: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_number)

    def video(self, round_number: int, name: str, frames: np.ndarray, fps: int) -> None:
        """frames: uint8 [T, H, W, 3]; TensorBoard plays an animated GIF where it shows images."""
        pictures = [Image.fromarray(frame) for frame in frames]
        from tensorboard.compat.proto.summary_pb2 import Summary

        gif = io.BytesIO()
        pictures[0].save(gif, "GIF", save_all=True, append_images=pictures[1:], duration=1000 // fps, loop=0)
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif.getvalue())
        value = Summary.Value(tag=name, image=image)
        # The writer's own add_video needs another package only to make this GIF.
        self._writer._get_file_writer().add_summary(Summary(value=[value]), round_number)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def curves(record: dict[str, Any]) -> dict[str, float]:
    """The numbers in a round's line of the history, by TensorBoard's tags. Clients' own show under plain aggregation
    alone; elsewhere the history has none. Tags say where noise is that of a simulated cohort."""
    values = {f"loss/{name}": value for name, value in record.get("loss", {}).items()}
    values |= {f"seconds/{stage}": value for stage, value in record.get("stage_seconds", {}).items()}
    values |= {f"round/{name}": record[name] for name in ("seconds", "bytes_up") if name in record}
    values |= {f"server/{name}": record[name] for name in SERVER_FIGURES if name in record}
    privacy = "privacy_SIMULATION" if record.get("simulation") else "privacy"
    values |= {f"{privacy}/{name}": record[name] for name in PRIVACY_FIGURES if name in record}
    if "held_out_loss" in record:
        values[HELD_OUT] = record["held_out_loss"]
    if "lip_agreement" in record:
        values["held_out/lip_agreement"] = record["lip_agreement"]
    reports = record.get("clients", ())
    for report in reports:
        values[f"weight/{report['client']}"] = report["share"]
        for name in ("score", "id_sim", "temp_stab"):
            if report[name] is not None:
                values[f"{name}/{report['client']}"] = report[name]
    if reports:
        values["weights/effective_share"] = effective_share([report["share"] for report in reports])
    return values


def effective_share(shares: Sequence[float]) -> float:
    """How spread the weights are: 1 / (n sum w^2), which is 1 for equal ones and 1 / n where one client has it all
    (Kish's effective sample size, over n). shares: sum to 1."""
    return 1 / (len(shares) * sum(share**2 for share in shares))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A tree of settings as dotted keys; lists as text, nulls left out."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
