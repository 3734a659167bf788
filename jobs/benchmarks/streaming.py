"""What streaming costs: memory against the size of a client's shards, and throughput against bare pyarrow.

python jobs/benchmarks/streaming.py
python jobs/benchmarks/streaming.py --sizes 0.1,0.3 --repeats 1

Shards of one client are written with random latents, in each of the sizes (GB, decimal; all columns). A child process
per case, with a slot's environment, streams one whole pass, one window of each piece, and reports the peak of its
proportional memory (PSS; with Ray Data that of the whole cluster, which it starts) over what it held before the first
batch was asked for. Throughput counts the bytes of the two columns that are read (latents, speech), in passes after
that one: files are in the page cache, their checksums were looked at. bare is a loop over the same row groups and
columns with pyarrow as it is set by itself; it touches no value.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pyarrow.parquet as pq

from fedtalk_ray.actors.connection import WORKER_ENVIRONMENT
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import PIECE_FRAMES, Manifest, ShardWriter, load_manifest
from fedtalk_ray.shards.population import Portion
from fedtalk_ray.shards.reader import list_groups, shard_files
from fedtalk_ray.shards.stream import stream_batches
from fedtalk_ray.shards.windows import LATENTS
from fedtalk_ray.slot_settings import StreamConfig

SHAPES = {"frames": [64, 64, 3], "latents": [48, 16, 16], "speech": [4, 80], "waveform": []}
"""A row's arrays, whole faces of 64 pixels: small rows are the harder case."""
WINDOW = 5
PER_FRAME = 640
HEAD = "| GB | reader | held before, MiB | at the peak above it, MiB | stream, MB/s | bare pyarrow, MB/s | share |"


def write_shards(folder: Path, size: float) -> None:
    """One client with about `size` bytes of whole training clips; of every ten clips two are held out and short."""
    frame = (
        sum(int(np.prod(SHAPES[name])) * width for name, width in (("frames", 1), ("latents", 2), ("speech", 2))) + 1280
    )
    clips = max(1, round(size / (frame * PIECE_FRAMES)))
    manifest = Manifest("folder", 64, 25, 16_000, "patch", "0", SHAPES)
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, manifest, None)
    rng = np.random.default_rng(0)
    written = number = 0
    while written < clips:
        held_out = number % 10 in (1, 2)
        length = 25 if held_out else PIECE_FRAMES
        arrays = {
            "frames": rng.integers(0, 255, (length, *SHAPES["frames"]), np.uint8),
            "latents": rng.integers(0, 15_000, (length, *SHAPES["latents"]), np.uint16).view(np.float16),
            "speech": rng.standard_normal((length, *SHAPES["speech"]), np.float32).astype(np.float16),
            "waveform": np.zeros(length * PER_FRAME, np.int16),
        }
        writer.add("one", f"c{number:06d}", arrays)
        number, written = number + 1, written + (not held_out)
    writer.close()


def read_bytes(folder: Path) -> int:
    """Bytes of the columns that streaming reads, as they lie in the files."""
    total = 0
    for file in shard_files(folder, "one", "train"):
        metadata = pq.ParquetFile(file).metadata
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            columns = (row_group.column(index) for index in range(row_group.num_columns))
            total += sum(
                column.total_uncompressed_size for column in columns if column.path_in_schema in LATENTS.columns
            )
    return total


def bare(folder: Path) -> None:
    for file in shard_files(folder, "one", "train"):
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                parquet.read_row_group(group, columns=list(LATENTS.columns))


def whole_pass(folder: Path, reader: str, memory_mb: int) -> Callable[[], int]:
    """A pass over the shards, to be called; it returns how many batches there were."""
    manifest = load_manifest(folder)
    pieces = sum(len(group.rows) for group in list_groups(folder, manifest, "one", "train"))
    stream = StreamConfig(reader=reader, memory_mb=memory_mb)

    def again() -> int:
        batches = stream_batches(
            folder, manifest, [Portion("one")], window=WINDOW, windows=pieces, batch_size=4, seed=0, stream=stream
        )
        return sum(1 for _ in batches)

    return again


def used() -> float:
    """MiB of this process and everything it started."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total / 2**20


def child(folder: Path, reader: str, memory_mb: int, repeats: int) -> None:
    """One case, as JSON."""
    if reader == "ray":
        from fedtalk_ray.actors.connection import connect

        connect("local")
        small = folder.parent / "warm"
        whole_pass(small, reader, memory_mb)()  # imports and workers are no part of what a corpus costs
    stream = whole_pass(folder, reader, memory_mb)
    before, ended = used(), threading.Event()
    peak = before

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.05 if reader == "direct" else 0.3):
            peak = max(peak, used())

    looking = threading.Thread(target=look)
    looking.start()
    stream()
    ended.set()
    looking.join()
    seconds: dict[str, list[float]] = {"bare": [], "stream": []}
    for _ in range(repeats):
        for name, work in (("bare", lambda: bare(folder)), ("stream", stream)):
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    print(json.dumps({"before": before, "above": peak - before, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="0.03,0.3,3")
    parser.add_argument("--memory-mb", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(Path(chosen.child[0]), chosen.child[1], chosen.memory_mb, chosen.repeats)
        return
    sizes = [float(size) for size in chosen.sizes.split(",")]
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        folders = {size: Path(scratch) / f"{size:g}" for size in sizes}
        write_shards(Path(scratch) / "warm", 2e7)
        for size, folder in progress(folders.items(), len(folders), "write shards"):
            write_shards(folder, size * 1e9)
        print(
            "| GB | reader | held before, MiB | above it at the peak, MiB | stream, MB/s | bare pyarrow, MB/s | share |"
        )
        print("|---|---|---|---|---|---|---|")
        for reader in ("direct", "ray"):
            for size, folder in folders.items():
                command = [sys.executable, __file__, "--child", str(folder), reader]
                command += ["--memory-mb", str(chosen.memory_mb), "--repeats", str(chosen.repeats)]
                environment = os.environ | WORKER_ENVIRONMENT
                said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
                found = json.loads(said.splitlines()[-1])
                megabytes = read_bytes(folder) / 1e6
                rates = {name: megabytes / median(times) for name, times in found["seconds"].items()}
                shares = [b / s for b, s in zip(found["seconds"]["bare"], found["seconds"]["stream"], strict=True)]
                print(
                    f"| {size:g} | {reader} | {found['before']:.0f} | {found['above']:.0f} | {rates['stream']:.0f} | "
                    f"{rates['bare']:.0f} | {median(shares):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
