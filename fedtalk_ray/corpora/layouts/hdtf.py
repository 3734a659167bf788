"""HDTF: clips that somebody has cut, or whole videos with the lists that say where the clips lie (docs/corpora.md).

The lists are those of the corpus's repository, one set for each of its parts RD, WDA and WRA:

    RD_annotion_time.txt   Radio11.mp4 00:30-01:00 01:30-02:30    begin and end of clip 0, clip 1, ... (so spelt)
    RD_crop_wh.txt         Radio11_0.mp4 412 599 0 599            left, width, top, height of the clip's face region
    RD_resolution.txt      Radio11.mp4 720                        height of the video for which that region holds

A clip lasts up to eight minutes, so it is listed in pieces of ten seconds: memory does not grow with a clip, and one
clip is enough to train on and to be scored by.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from fedtalk_ray.corpora.source import ClipSource, CorpusError, nothing_found
from fedtalk_ray.media.video import FPS, WHOLE_PICTURE, Box

ROOT_HOLDS = "the clips <video>_<n>.mp4"
PIECE_SECONDS = 10.0
PARTS = ("RD", "WDA", "WRA")
_LISTS = ("annotion_time", "crop_wh", "resolution")

_VIDEO = re.compile(r"(?:(?:RD|WDA|WRA)_)?([A-Za-z0-9-]+)")
_CLIP = re.compile(r"(?:(?:RD|WDA|WRA)_)?([A-Za-z0-9-]+)_(\d+)")
_TIME = r"(?:(\d+):)?(\d+):([0-5]\d)"
_SPAN = re.compile(f"{_TIME}-{_TIME}")

# The same video on YouTube as JamesClyburn1: trained on under one name, it must not be held out under the other.
_TWICE = {"WhipJimClyburn"}


@dataclass
class Lists:
    """What the lists say. times: seconds of every clip of a video. crops: by clip. heights: pixels, by video."""

    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    crops: dict[str, Box] = field(default_factory=dict)
    heights: dict[str, int] = field(default_factory=dict)


def list_clips(root: Path) -> list[ClipSource]:
    """`[PART_]<video>_<n>.mp4` and, for videos without such clips, whole ones in `root` or `_videos_raw`.

    Raises `CorpusError`; the lists are needed only where nothing has been cut: without them whole videos are skipped.
    """
    files = sorted(root.glob("[!.]*.mp4"))
    cut = [(path, name) for path in files if (name := _CLIP.fullmatch(path.stem))]
    done = {name[1] for _, name in cut} | _TWICE
    whole = [
        (path, name[1])
        for path in [*files, *sorted(root.glob("_videos_raw/[!.]*.mp4"))]
        if (name := _VIDEO.fullmatch(path.stem)) and name[1] not in done
    ]
    sources = [piece for path, name in cut if name[1] not in _TWICE for piece in _cut_clip(path, name[1], int(name[2]))]
    if whole and (not cut or lists_folder(root)):
        lists = read_lists(root)
        sources += [piece for path, video in whole for piece in _whole_video(path, video, lists)]
    if not sources:
        raise nothing_found("hdtf", root, "<video>_<n>.mp4 (nor a listed video)", ("*_[0-9]*.mp4", "_videos_raw/*.mp4"))
    return sorted(sources, key=lambda source: (source.identity, source.clip))


def person(video: str) -> str:
    """Whose video it is: JoeCrowley0 and JoeCrowley1 are of one person; of the Radio videos nobody is named."""
    return video if video.startswith("Radio") else video.rstrip("0123456789")


def lists_folder(root: Path) -> Path | None:
    """Where the lists lie: `root` or its `HDTF_dataset`."""
    folders = (root, root / "HDTF_dataset")
    return next((folder for folder in folders if next(folder.glob("*_annotion_time.txt"), None)), None)


def read_lists(root: Path) -> Lists:
    """The lists of every part that has one. Raises `CorpusError` when none or not all of a part are there."""
    folder = lists_folder(root)
    if folder is None:
        raise CorpusError(
            f"corpus hdtf: {root} holds whole videos, but neither it nor its HDTF_dataset holds RD_annotion_time.txt, "
            "WDA_... or WRA_..., which say where their clips lie: copy HDTF_dataset of the HDTF repository there"
        )
    parts = [part for part in PARTS if (folder / f"{part}_annotion_time.txt").is_file()]
    lists = Lists()
    for part in parts:
        paths = [folder / f"{part}_{name}.txt" for name in _LISTS]
        for path in paths:
            if not path.is_file():
                raise CorpusError(f"corpus hdtf: {path} is missing beside {paths[0].name}")
        times, crops, heights = ((path.read_text(encoding="utf-8-sig"), str(path)) for path in paths)
        lists.times |= parse_times(*times)
        lists.crops |= parse_crops(*crops)
        lists.heights |= parse_heights(*heights)
    return lists


def parse_times(text: str, file: str) -> dict[str, list[tuple[float, float]]]:
    """Begin and end in seconds of every clip, by video. Raises `CorpusError` with file and line."""
    times = {}
    for where, video, fields in _lines(text, file):
        times[video] = [_span(where, word) for word in fields]
        if not fields:
            raise CorpusError(f"{where}: {video}.mp4 has no clip; MM:SS-MM:SS is expected after it")
    return times


def parse_crops(text: str, file: str) -> dict[str, Box]:
    """The face region by clip; the file gives left, width, top, height. Raises `CorpusError` with file and line."""
    crops = {}
    for where, clip, fields in _lines(text, file):
        if len(fields) != 4 or not all(word.isdecimal() for word in fields) or "0" in (fields[1], fields[3]):
            raise CorpusError(f"{where}: {' '.join(fields)!r} is not the left, width, top and height of a face region")
        left, width, top, height = map(int, fields)
        crops[clip] = (left, top, width, height)
    return crops


def parse_heights(text: str, file: str) -> dict[str, int]:
    """Height in pixels by video, 0 where the list does not know it. Raises `CorpusError` with file and line."""
    heights = {}
    for where, video, fields in _lines(text, file):
        if len(fields) != 1 or not fields[0].isdecimal():
            raise CorpusError(f"{where}: {' '.join(fields)!r} is not the height of {video}.mp4 in pixels")
        heights[video] = int(fields[0])
    return heights


def pieces(begin: float, end: float) -> list[tuple[float, float]]:
    """The span in equal pieces of at most `PIECE_SECONDS`, each of whole frames."""
    count = max(1, int(np.ceil((end - begin) / PIECE_SECONDS - 1e-6)))
    bounds = np.round(np.linspace(begin, end, count + 1) * FPS) / FPS
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def _lines(text: str, file: str) -> Iterator[tuple[str, str, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if fields := line.split():
            name, dot, suffix = fields[0].rpartition(".")
            if not name or dot + suffix != ".mp4":
                raise CorpusError(f"{file}, line {number}: {fields[0]!r} is not the name of an .mp4")
            yield f"{file}, line {number}", name, fields[1:]


def _span(where: str, word: str) -> tuple[float, float]:
    found = _SPAN.fullmatch(word)
    if found:
        numbers = [int(number or 0) for number in found.groups()]
        begin, end = (3600.0 * hours + 60 * minutes + seconds for hours, minutes, seconds in (numbers[:3], numbers[3:]))
        if begin < end:
            return begin, end
    raise CorpusError(f"{where}: {word!r} is not the time of a clip; MM:SS-MM:SS with a later end is expected")


def _cut_clip(path: Path, video: str, number: int) -> list[ClipSource]:
    seconds, _ = _header(path)
    # A file that says no length is listed whole: preparation then says what is wrong with it.
    return _sources(path, video, number, pieces(0.0, seconds) if seconds else None, WHOLE_PICTURE)


def _whole_video(path: Path, video: str, lists: Lists) -> list[ClipSource]:
    _, height = _header(path)
    sources = []
    for number, span in enumerate(lists.times.get(video, [])):
        # The corpus leaves clips without a face region out: they were found too restless.
        if crop := lists.crops.get(f"{video}_{number}"):
            listed = lists.heights.get(video, 0)
            scale = height / listed if height and listed else 1.0
            left, top, width, tall = (round(edge * scale) for edge in crop)
            sources += _sources(path, video, number, pieces(*span), (left, top, width, tall))
    return sources


def _sources(
    path: Path, video: str, number: int, spans: list[tuple[float, float]] | None, crop: Box
) -> list[ClipSource]:
    sound = next((str(beside) for suffix in (".wav", ".m4a") if (beside := path.with_suffix(suffix)).is_file()), None)
    if spans is None:
        return [ClipSource(person(video), f"{video}_{number}", str(path), crop=crop, sound=sound)]
    return [
        ClipSource(
            person(video), f"{video}_{number}-{index:03d}", str(path), begin=begin, end=end, crop=crop, sound=sound
        )
        for index, (begin, end) in enumerate(spans)
    ]


def _header(path: Path) -> tuple[float, int]:
    """Length in seconds and height in pixels, 0 where the file does not say them."""
    try:
        with av.open(f"file:{path}") as container:
            height = container.streams.video[0].height if container.streams.video else 0
            return (container.duration or 0) / 1e6, height
    except (av.FFmpegError, OSError):
        return 0.0, 0
