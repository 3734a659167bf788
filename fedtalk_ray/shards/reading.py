"""Corpus clips to rows of crops, sound and landmarks: what is done before any network.

Nothing here loads one: a process that only reads starts in a third of the time.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from fedtalk_ray.corpora.listing import ClipSource, open_clip
from fedtalk_ray.media.faces import NoFaceError
from fedtalk_ray.media.framing import FRAMINGS
from fedtalk_ray.media.identity_embedding import frames_to_embed
from fedtalk_ray.media.lips import face_landmarks
from fedtalk_ray.media.video import FPS, SAMPLE_RATE, VideoError
from fedtalk_ray.shards.format import PIECE_FRAMES, piece_bounds, pieces_of

MIN_FRAMES = 25
"""Shorter clips are rejected: a second of speech is the least to learn or to score from."""

PART_BYTES = 32 << 20
"""Crops of a long clip that travel together."""


def read_parts(item: dict, size: int, framing: str) -> Iterator[dict]:
    """A clip in parts of whole pieces, or why it cannot be used."""
    source = ClipSource.from_row(item)
    row = {"identity": source.identity, "clip": source.clip, "path": item["path"], "reason": "", "length": 0,
           "begin": 0, "total": 0, "size": size, "frames": b"", "faces": b"", "waveform": b"",
           "landmarks": b"", "places": b"", "footage": ""}  # fmt: skip
    try:
        clip = open_clip(source, size, FRAMINGS[framing])
        if clip.frames < MIN_FRAMES:
            raise VideoError(f"has {clip.frames} frames; at least {MIN_FRAMES} are needed")
    except (VideoError, NoFaceError) as error:
        yield row | {"reason": str(error)}
        return
    samples = clip.frames * SAMPLE_RATE // FPS
    wave = np.pad(clip.audio[:samples], (0, max(0, samples - len(clip.audio)))).astype(np.float32)
    excerpt = source.excerpt()
    row |= {"total": clip.frames, "waveform": wave.tobytes(), "footage": excerpt.text() if excerpt else ""}
    bounds = piece_bounds(clip.frames, pieces_of(clip.frames)).tolist()
    together = max(1, PART_BYTES // (3 * size * size * PIECE_FRAMES))
    for first in range(0, len(bounds) - 1, together):
        begin, end = bounds[first], bounds[min(first + together, len(bounds) - 1)]
        frames = np.stack(list(islice(clip.crops, end - begin)))
        if begin == 0:
            row["faces"] = frames[frames_to_embed(len(frames))].tobytes()
        points = face_landmarks(frames) if clip.landmarks is None else clip.landmarks[begin:end]
        part = {"frames": frames.tobytes(), "landmarks": points.tobytes(), "places": clip.places[begin:end].tobytes()}
        yield row | part | {"begin": begin, "length": end - begin}
