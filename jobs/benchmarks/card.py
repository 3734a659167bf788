"""What one card does: steps and memory beside what was only counted, two slots on its halves, frames a second.

python -m jobs.benchmarks.card            # on a GPU; meant to take less than ten minutes
python -m jobs.benchmarks.card --small    # small networks, on whatever there is

Every row is a step of LoRA training on random windows, forward, backward and optimiser: the median of a few after the
first two. Memory is what torch had allocated at most, beside the estimate of `fedtalk_ray.model`. A card without
bfloat16 is told so. On a CPU no memory is measured. MuseTalk's moments are bfloat16 here and counted as float32.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
import ray
import torch

from fedtalk_ray.actors.connection import connect
from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.model import adapters, musetalk_memory
from fedtalk_ray.model.device import has_bf16
from fedtalk_ray.model.embedded import EMBEDDED
from fedtalk_ray.model.presets import PRESETS, Preset, build, training_memory
from fedtalk_ray.model.released import load_released, open_model
from fedtalk_ray.model.schedule import make_scheduler
from fedtalk_ray.recipe import LossConfig
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.losses import window_loss

RANK, IDENTITY_RANK, WARM_UP = 8, 4, 2


@dataclass(frozen=True)
class Row:
    """One step. seconds: median. held, counted: GiB, None where it was not measured or not counted."""

    what: str
    seconds: float
    held: float | None
    counted: float | None

    def line(self) -> str:
        cells = [f"{value:.2f}" if value is not None else "-" for value in (self.held, self.counted)]
        return f"| {self.what} | {self.seconds:.3f} | {cells[0]} | {cells[1]} |"


def timed(step: Callable[[], object], steps: int, device: str) -> tuple[float, float | None]:
    """Median seconds of a step, and GiB that torch had allocated at most."""
    on_card = device.startswith("cuda")
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    taken = []
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        step()
        if on_card:
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return median(taken[WARM_UP:]), torch.cuda.max_memory_allocated(device) / 2**30 if on_card else None


def preset_step(size: Preset, windows: int, checkpointing: bool, device: str) -> Callable[[], object]:
    """A step as the trainer takes it: bf16 autocast where the device is a card, adapters of ranks 8 and 4."""
    torch.manual_seed(0)
    model = adapters.with_adapters(build(size), RANK, 2.0 * RANK, IDENTITY_RANK).to(device).train()
    model.get_base_model().gradient_checkpointing = checkpointing
    trained = adapters.train_only(model, adapters.shared_parameters(model, "adapter"))
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    config, scheduler = model.get_base_model().config, make_scheduler(model.get_base_model().config.prediction_type)
    cells = (size.latent_channels, size.latent_size, size.latent_size)
    latents = torch.randn(windows, size.window + 1, *cells, device=device)
    speech = torch.randn(windows, size.window, config.speech_hops, config.mel_bins, device=device)
    batch, generator = WindowBatch(latents[:, 1:], speech, latents[:, 0]), torch.Generator().manual_seed(0)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            loss = window_loss(model, scheduler, batch, LossConfig(), generator).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def muse_step(
    sizes: musetalk_memory.Sizes, targets: tuple[str, ...], batch: int, again: bool, device: str
) -> Callable[[], object]:
    """A step of MuseTalk's networks with random weights, in bfloat16 where the device computes in it: without that a
    processor takes fifty times as long."""
    torch.manual_seed(0)
    kind = torch.bfloat16 if has_bf16(device) else torch.float32
    made = musetalk_memory.LoraStep(RANK, targets, again, kind, device, sizes)
    optimizer = torch.optim.AdamW(made.adapter(), lr=1e-4)

    def step() -> None:
        made.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rows(small: bool, device: str, steps: int) -> Iterator[Row]:
    size = PRESETS["tiny" if small else "base"]
    for checkpointing in (False, True):
        seconds, held = timed(preset_step(size, 4, checkpointing, device), steps, device)
        counted: float | None = training_memory(size, 4, RANK, checkpointing, autocast=True).total / 2**30
        yield Row(
            f"{size.name}, 4 windows, {'with' if checkpointing else 'without'} checkpointing", seconds, held, counted
        )
        _forget(device)
    sizes = musetalk_memory.SMALL if small else musetalk_memory.FULL
    for name, targets in (("attention", musetalk_memory.ATTENTION), ("all layers", musetalk_memory.ALL_LAYERS)):
        for batch, again in ((1, False), (1, True)) if small else ((1, False), (4, False), (4, True)):
            seconds, held = timed(muse_step(sizes, targets, batch, again, device), steps, device)
            counted = None if small else musetalk_memory.held(RANK, targets, batch, again, torch.bfloat16).total / 2**30
            which = f"{name}, batch {batch}, {'with' if again else 'without'} checkpointing"
            yield Row(f"MuseTalk's {'classes, small' if small else 'size'}, {which}", seconds, held, counted)
            _forget(device)


def _forget(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


class Half:
    """A slot on a part of a card that takes steps of `tiny`."""

    def warm(self) -> None:
        """Makes the model and takes its first steps."""
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._step = preset_step(PRESETS["tiny"], 4, False, self._device)
        for _ in range(WARM_UP):
            self._step()

    def steps(self, begin: float, seconds: float) -> float:
        """Steps a second from that moment of `time.monotonic` on, for so long."""
        time.sleep(max(0.0, begin - time.monotonic()))
        began, count = time.monotonic(), 0
        while time.monotonic() < begin + seconds:
            self._step()
            if self._device == "cuda":
                torch.cuda.synchronize()
            count += 1
        return count / (time.monotonic() - began)


def halves(seconds: float, on_card: bool) -> tuple[float, list[float]]:
    """Steps a second of one slot alone, then of two at once, each on half of the card (or on the CPU)."""
    actor = ray.remote(num_gpus=0.5 if on_card else 0, num_cpus=0)(Half)
    slots = [actor.remote() for _ in range(2)]
    ray.get([slot.warm.remote() for slot in slots])
    alone = ray.get(slots[0].steps.remote(time.monotonic(), seconds))
    begin = time.monotonic() + 0.5
    return alone, ray.get([slot.steps.remote(begin, seconds) for slot in slots])


def frames_a_second(device: str) -> float:
    """Of `fedtalk-tiny`, crops alone, three seconds of sound, the second time."""
    model = load_released(open_model(EMBEDDED), device=device)
    clip = render_clip(0, 0, size=model.frame_size()).video
    for _ in range(2):
        began = time.perf_counter()
        made = model(clip.frames[0], clip.audio.astype(np.float32)).frames
        seconds = time.perf_counter() - began
    return len(made) / seconds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small networks: also for a CPU")
    parser.add_argument("--steps", type=int, default=10)
    chosen = parser.parse_args(arguments)
    on_card = torch.cuda.is_available()
    if not on_card and not chosen.small:
        raise SystemExit("no CUDA device: the full sizes need a card of 12 GB or more; --small runs on a CPU")
    device = "cuda" if on_card else "cpu"
    if on_card:
        found = torch.cuda.get_device_properties(0)
        bf16 = "" if torch.cuda.is_bf16_supported() else ", WITHOUT bfloat16"
        print(f"{found.name}, {found.total_memory / 2**30:.0f} GiB{bf16}, torch {torch.__version__}\n")
    else:
        print(f"CPU, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print("| a step of | seconds | GiB at most | GiB counted |\n|---|---|---|---|")
    for row in rows(chosen.small, device, chosen.steps):
        print(row.line(), flush=True)
    connect()
    alone, together = halves(2.0 if chosen.small else 10.0, on_card)
    print(f"\none slot takes {alone:.1f} steps of tiny a second; two on halves {together[0]:.1f} and {together[1]:.1f}")
    print(f"fedtalk-tiny makes {frames_a_second(device):.0f} frames a second (crops)")


if __name__ == "__main__":
    main()
