"""How many frames a second `generate` makes once its model is loaded: looked for, painted, blended, marked and coded.

python -m jobs.benchmarks.generating --run fedtalk-tiny --audio speech.wav face.png talk.mp4   # photos and videos

Each photo or video speaks the whole sound `--times` times. The first time warms up; the median is that of the others.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.generate import find_sound, speak_into
from fedtalk_ray.marking.certificates import trial_signing
from fedtalk_ray.marking.marked_video import write_marked
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.released import load_released, open_model


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", required=True, help="run folder, pipeline, or fedtalk-tiny")
    parser.add_argument("--audio", required=True)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("references", nargs="+")
    asked = parser.parse_args(given)
    if asked.times < 2:
        raise SystemExit(f"--times {asked.times}: the first warms up, so at least 2")
    try:
        model = load_released(open_model(asked.run), None, pick_device("auto"))
        write = partial(write_marked, signing=trial_signing())
        for reference in asked.references:
            rates = []
            for _ in range(asked.times):
                with tempfile.TemporaryDirectory() as folder:
                    began = time.perf_counter()
                    sound = find_sound(asked.audio, None)
                    made = speak_into(model, reference, sound, Path(folder) / "out.mp4", write=write)
                    rates.append(made.frames / (time.perf_counter() - began))
            each = " ".join(f"{rate:.1f}" for rate in rates)
            print(f"{reference}: {made.frames} frames, {each} a second, median {median(rates[1:]):.1f}", flush=True)
    except UserError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
