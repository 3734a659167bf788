"""HDTF: its lists, clips somebody cut, and whole videos of which the listed spans and regions are read."""

import math
import wave
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.corpora.layouts.hdtf import parse_crops, parse_heights, parse_times, person
from fedtalk_ray.corpora.listing import ClipSource, CorpusError, list_corpus, sound_beside
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import Video, frames_of, read_video, sound_of


def read_clip(source: ClipSource) -> Video:
    """The pictures of a clip and its sound, in memory."""
    assert source.path is not None
    pictures = frames_of(source.path, source.begin, source.end, source.crop)
    return Video(np.stack(list(pictures)), sound_beside(source))


TIMES = "Radio11.mp4 00:30-01:00 01:30-02:30\nMittRomney.mp4 08:10-08:30 00:33-08:53 \n\nKim.mp4 1:00:05-1:00:10"
CROPS = "Radio11_0.mp4 412 599 0 599\nRadio11_1.mp4 557 478 0 478\n"


def test_the_lists_as_the_repository_writes_them() -> None:
    assert parse_times(TIMES, "x") == {
        "Radio11": [(30, 60), (90, 150)],
        "MittRomney": [(490, 510), (33, 533)],
        "Kim": [(3605, 3610)],
    }
    assert parse_crops(CROPS, "x") == {"Radio11_0": (412, 0, 599, 599), "Radio11_1": (557, 0, 478, 478)}
    assert parse_heights("RaulRuiz.mp4 700\nKevinMcCarthy1.mp4 0\n", "x") == {"RaulRuiz": 700, "KevinMcCarthy1": 0}


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_times, "A.mp4 00:10-00:20\nB.mp4 00:10", "t.txt, line 2: '00:10' is not the time of a clip"),
        (parse_times, "A.mp4", "t.txt, line 1: A.mp4 has no clip"),
        (parse_times, "A 00:10-00:20", "t.txt, line 1: 'A' is not the name of an .mp4"),
        (parse_crops, "\nA_0.mp4 1 2 3", "t.txt, line 2: '1 2 3' is not the left, width, top and height"),
        (parse_heights, "A.mp4 720p", "t.txt, line 1: '720p' is not the height of A.mp4"),
    ],
)
def test_a_malformed_line_is_named(parse: object, text: str, message: str) -> None:
    with pytest.raises(CorpusError) as caught:
        parse(text, "t.txt")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_who_a_video_is_of() -> None:
    videos = ["JoeCrowley0", "JoeCrowley1", "BarackObama", "LucilleRoybal-Allard", "Radio3", "Radio34"]
    people = ["JoeCrowley", "JoeCrowley", "BarackObama", "LucilleRoybal-Allard", "Radio3", "Radio34"]
    assert [person(video) for video in videos] == people


def refusal(root: Path) -> str:
    with pytest.raises(CorpusError) as caught:
        list_corpus("hdtf", root)
    return str(caught.value)


def write(root: Path, **texts: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text)
    return root


def test_cut_clips_by_either_way_of_naming(tmp_path: Path) -> None:
    frames = np.zeros((26 * 25, 16, 16, 3), np.uint8)
    write_video(tmp_path / "WDA_JoeCrowley1_000.mp4", frames, None)
    for name in ("JoeCrowley0_2.mp4", "Radio11_1.mp4", "WhipJimClyburn_0.mp4", "._Radio11_1.mp4"):
        (tmp_path / name).write_bytes(b"")
    found = [(source.identity, source.clip, source.begin, source.end) for source in list_corpus("hdtf", tmp_path)]
    assert found == [
        ("JoeCrowley", "JoeCrowley0_2", 0, math.inf),  # a broken file is left for preparation to refuse
        ("JoeCrowley", "JoeCrowley1_0-000", 0, 8.68),
        ("JoeCrowley", "JoeCrowley1_0-001", 8.68, 17.32),
        ("JoeCrowley", "JoeCrowley1_0-002", 17.32, 26),
        ("Radio11", "Radio11_1", 0, math.inf),
    ]


def test_whole_videos_are_cut_by_the_lists(tmp_path: Path) -> None:
    write(tmp_path / "HDTF_dataset", RD_annotion_time=TIMES, RD_crop_wh=CROPS, RD_resolution="Radio11.mp4 720\n")
    (tmp_path / "_videos_raw").mkdir()
    write_video(tmp_path / "_videos_raw" / "RD_Radio11.mp4", np.zeros((2, 360, 64, 3), np.uint8), None)
    write_video(tmp_path / "_videos_raw" / "WRA_MittRomney.mp4", np.zeros((2, 360, 64, 3), np.uint8), None)
    (tmp_path / "_videos_raw" / "RD_Radio11.wav").write_bytes(b"")
    found = list_corpus("hdtf", tmp_path)
    # 30 s and 60 s in pieces of ten; MittRomney has no face region, so the corpus leaves it out.
    assert [source.clip for source in found] == [
        *(f"Radio11_0-{piece:03d}" for piece in range(3)),
        *(f"Radio11_1-{piece:03d}" for piece in range(6)),
    ]
    assert [(source.begin, source.end) for source in found[:4]] == [(30, 40), (40, 50), (50, 60), (90, 100)]
    # The region is for 720 rows; this copy has 360.
    assert {source.crop for source in found} == {(206, 0, 300, 300), (278, 0, 239, 239)}
    assert {source.sound for source in found} == {str(tmp_path / "_videos_raw" / "RD_Radio11.wav")}


def test_missing_lists_and_wrong_folders_are_named(tmp_path: Path) -> None:
    root = tmp_path / "a" / "hdtf"
    raw = root / "_videos_raw"
    raw.mkdir(parents=True)
    assert refusal(root).startswith(f"corpus hdtf: {root} holds no <video>_<n>.mp4")
    (raw / "RD_Radio11.mp4").write_bytes(b"")
    assert "copy HDTF_dataset of the HDTF repository there" in refusal(root)
    write(root / "HDTF_dataset", RD_annotion_time=TIMES)
    assert refusal(root) == (
        f"corpus hdtf: {root / 'HDTF_dataset' / 'RD_crop_wh.txt'} is missing beside RD_annotion_time.txt"
    )
    write(root / "HDTF_dataset", RD_crop_wh=CROPS + "Radio12_0.mp4 many", RD_resolution="")
    assert f"{root / 'HDTF_dataset' / 'RD_crop_wh.txt'}, line 3: 'many' is not" in refusal(root)
    (root / "Radio11_0.mp4").write_bytes(b"")
    assert refusal(root.parent).endswith(f"but {root} does: give --root {root}")


def test_an_excerpt_is_what_reading_all_and_cutting_gives(tmp_path: Path) -> None:
    """Of five seconds that grow brighter, with noise."""
    path, noise = tmp_path / "a.mp4", np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32)
    write_video(path, np.arange(125, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 96, 128, 3), np.uint8), noise)
    whole = read_video(path)
    for begin, end in ((0.0, 1.0), (2.6, 4.04), (4.2, 7.0)):
        frames = np.stack(list(frames_of(path, begin, end, (40, 20, 60, 50))))
        np.testing.assert_array_equal(frames, whole.frames[round(begin * 25) : round(end * 25), 20:70, 40:100])
        audio = whole.audio[round(begin * 16_000) : round(end * 16_000)]
        np.testing.assert_allclose(sound_of(path, begin, end), audio, atol=0.02)


def test_sound_beside_a_silent_video_is_cut_with_it(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", np.zeros((75, 16, 16, 3), np.uint8), None)
    samples = np.random.default_rng(0).integers(-9000, 9000, 3 * 16_000).astype("<i2")
    with wave.open(str(tmp_path / "beside.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    source = ClipSource("a", "b", str(tmp_path / "silent.mp4"), begin=1.2, end=2.6, sound=str(tmp_path / "beside.wav"))
    video = read_clip(source)
    assert video.frames.shape == (35, 16, 16, 3)
    np.testing.assert_allclose(video.audio, samples[19_200:41_600] / 32768, atol=1e-4)
