"""TensorBoard's own reader finds what was logged, and a bar yields every item."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedtalk_ray.observability import RunLog, progress


def test_tensorboard_reads_scalars_pictures_and_moving_pictures(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    frames = np.zeros((5, 8, 12, 3), np.uint8)
    frames[3:] = 255
    log.scalars(2, {"loss/total": 0.5})
    log.image(2, "sheet", frames[4])
    log.video(2, "speaking", frames, fps=25)
    log.close()
    events = EventAccumulator(str(tmp_path), {"images": 0, "scalars": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(2, 0.5)]
    still = Image.open(io.BytesIO(events.Images("sheet")[0].encoded_image_string))
    assert np.array_equal(np.asarray(still), frames[4])
    moving = Image.open(io.BytesIO(events.Images("speaking")[0].encoded_image_string))
    shown, levels = 0, []
    for index in range(moving.n_frames):  # equal neighbours may be stored as one longer frame
        moving.seek(index)
        shown += moving.info["duration"]
        levels.append(np.asarray(moving.convert("RGB")).mean())
    assert (moving.size, shown, levels[0], levels[-1]) == ((12, 8), 200, 0, 255)


def test_progress_yields_all_items_and_tells_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(20), 20, "work")) == list(range(20))
    assert capsys.readouterr().err.splitlines()[-1] == "work: 20 of 20"
