"""What people watch: progress bars and TensorBoard."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(stderr=True, soft_wrap=True)
"""Progress goes to stderr, so that what a command prints on stdout can be piped."""


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yields the items under a progress bar with the time left."""
    with ticker(total, what) as tick:
        for item in items:
            yield item
            tick()


@contextlib.contextmanager
def ticker(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A progress bar that advances by one at each call; a plain line at every tenth where there is no terminal."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.update(task, advance=1)
        return
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    yield tick


class RunLog:
    """TensorBoard of one run: scalars, pictures and short videos by round."""

    def __init__(self, folder: Path, first_round: int = 0) -> None:
        # Here, because it imports torch, which a driver needs for nothing else.
        from torch.utils.tensorboard import SummaryWriter

        # After a resume, events from the round that runs again on would show twice: purge them.
        self._writer = SummaryWriter(str(folder), purge_step=first_round)

    def scalars(self, round_number: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_number)

    def image(self, round_number: int, name: str, picture: np.ndarray) -> None:
        """picture: uint8 [H, W, 3]."""
        self._writer.add_image(name, picture, round_number, dataformats="HWC")

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
