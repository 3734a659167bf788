"""TensorBoard reads what was logged: curves, settings, moving pictures and their sound; a resume goes on."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fedtalk_ray.tracking.tensorboard import TensorBoardLog, curves

EVERYTHING = {"images": 0, "scalars": 0, "audio": 0}


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), EVERYTHING).Reload()


def test_a_sample_is_a_sheet_a_moving_picture_and_its_sound(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    frames = np.zeros((5, 8, 12, 3), np.uint8)
    frames[3:] = 255
    sound = np.concatenate([np.zeros(1600), np.full(1600, 0.5)]).astype(np.float32)
    log.sample(2, frames[4], frames, sound)
    log.close()
    events = read(tmp_path)
    still = Image.open(io.BytesIO(events.Images("sample/unseen")[0].encoded_image_string))
    assert np.array_equal(np.asarray(still), frames[4])
    moving = Image.open(io.BytesIO(events.Images("sample/speaking")[0].encoded_image_string))
    levels = [np.asarray(each.convert("RGB")).mean() for each in ImageSequence.Iterator(moving)]
    assert (moving.size, levels[0], levels[-1]) == ((12, 8), 0, 255)
    with wave.open(io.BytesIO(events.Audio("sample/sound")[0].encoded_audio_string)) as heard:
        assert (heard.getframerate(), heard.getnframes()) == (16_000, 3200)
        samples = np.frombuffer(heard.readframes(3200), np.int16)
    assert samples[:1600].max() == 0 and abs(samples[1600:] / 32767 - 0.5).max() < 1e-3


def test_settings_show_on_the_hparams_tab_of_the_same_run(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.settings(
        {"rounds": 3, "phases": [1, 2], "strategy": {"name": "isfa", "gamma": 8.0}, "pretrained": None, "debug": False}
    )
    log.after_round({"round": 1, "held_out_loss": 0.25})
    log.close()
    assert [path.is_file() for path in tmp_path.iterdir()] == [True], "one run, one folder, one file"
    content = read(tmp_path).PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["strategy.gamma"].number_value == 8 and start.hparams["strategy.name"].string_value == "isfa"
    assert "pretrained" not in start.hparams and start.hparams["phases"].string_value == "[1, 2]"
    named = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment.metric_infos
    # The tab finds the figure by the tag of its curve.
    assert [metric.name.tag for metric in named] == ["held_out/loss"]


def test_a_resumed_run_goes_on_in_its_folder_and_shows_no_round_twice(tmp_path: Path) -> None:
    first = TensorBoardLog(tmp_path)
    for number in (1, 2, 3):
        first.after_round({"round": number, "held_out_loss": float(number)})
    first.close()
    again = TensorBoardLog(tmp_path, first_round=3)
    again.after_round({"round": 3, "held_out_loss": 30.0})
    again.close()
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("held_out/loss")] == [(1, 1), (2, 2), (3, 30)]


def test_a_rounds_line_becomes_curves() -> None:
    client = {"score": 0.5, "id_sim": 0.75, "temp_stab": None}
    record = {"round": 4, "seconds": 2.5, "bytes_up": 800, "stage_seconds": {"train": 2.0}, "loss": {"tdc": 0.1}}
    record |= {"epsilon": 1.5, "clip_fraction": 0.25, "lip_agreement": 0.6}
    record |= {"clients": [{"client": "a", "share": 0.8, **client}, {"client": "b", "share": 0.2, **client}]}
    assert curves(record) == {
        "loss/tdc": 0.1,
        "seconds/train": 2.0,
        "round/seconds": 2.5,
        "round/bytes_up": 800,
        "privacy/epsilon": 1.5,
        "privacy/clip_fraction": 0.25,
        "held_out/lip_agreement": 0.6,
        "weight/a": 0.8,
        "weight/b": 0.2,
        "score/a": 0.5,
        "score/b": 0.5,
        "id_sim/a": 0.75,
        "id_sim/b": 0.75,
        "weights/effective_share": pytest.approx(1 / (2 * 0.68)),
    }
    simulated = {"round": 4, "epsilon": 1.5, "update_norm": 1.0, "simulation": True}
    assert curves(simulated) == {"privacy_SIMULATION/epsilon": 1.5, "server/update_norm": 1.0}
