"""Which files are clips of whom, and what is said about a corpus that holds none."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.corpora.listing import (
    ClipSource,
    CorpusError,
    at_most,
    list_corpus,
    list_synthetic,
    only_identities,
    open_clip,
    synthetic,
)
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.faces import oversampling, warp


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def names(sources: list[ClipSource]) -> list[tuple[str, str]]:
    return [(source.identity, source.clip) for source in sources]


def test_clips_lie_one_folder_deep_by_identity_and_hidden_files_and_folders_are_none(tmp_path: Path) -> None:
    """macOS leaves ._a.mp4 beside a.mp4 on foreign disks."""
    touch(tmp_path, "top.mp4", "s1/deep/b.mp4", "s1/._a.mp4", ".cache/b.mp4", "s1/a.align", "s1/a.webm")
    (tmp_path / "s1" / "trap.mp4").mkdir()
    touch(tmp_path, "s2/b.mpg", "s1/z.mp4", "s1-x/a.mp4", "s1/a.mpg", "s10/a.mp4")
    sources = list_corpus("grid", tmp_path)
    assert sorted(names(sources)) == [("s1", "a"), ("s1", "z"), ("s1-x", "a"), ("s10", "a"), ("s2", "b")]
    assert sum(a.identity != b.identity for a, b in pairwise(sources)) == 3, "those of one come together"
    assert str(tmp_path / "s1/a.mpg") in [source.path for source in sources]


def refusal(*arguments: object, **options: int) -> str:
    with pytest.raises(CorpusError) as caught:
        list_corpus(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_listed_is_named(tmp_path: Path) -> None:
    assert "corpus 'vox' is unknown; known: crema-d, folder" in refusal("vox", tmp_path)
    assert "corpus grid needs --root" in refusal("grid", None)
    touch(tmp_path, "top.mp4", "ann/a.txt")
    for missing in (tmp_path / "none", tmp_path / "top.mp4"):
        assert refusal("grid", missing) == f"corpus folder {missing} does not exist"
    assert f"corpus folder {tmp_path} holds no <identity>/<clip>.mp4|.mpg" in refusal("grid", tmp_path)
    for identities, clips in ((0, 3), (3, 0), (-1, 1)):
        assert f"--identities {identities} --clips {clips}: " in refusal(
            "synthetic", None, identities=identities, clips=clips
        )


@pytest.mark.parametrize("kind", ["synthetic", "puppets"])
def test_drawn_clips_are_drawn_at_the_size_asked_for_and_are_their_own_crops(kind: str) -> None:
    listed = list_corpus(kind, None, identities=2, clips=2, seed=4)[-1]
    source = ClipSource.from_row(listed.row())
    assert source == listed and source.kind == kind and source.excerpt() is None
    clip = open_clip(source, 16)
    truth = synthetic.render_clip(1, 1, seed=4, size=16, kind=kind).video
    assert (np.stack(list(clip.crops)) == truth.frames).all() and (clip.audio == truth.audio).all()
    assert truth.frames.shape[1:] == (16, 16, 3) and len(clip.places) == clip.frames
    assert (clip.places @ (0.25, 0.75, 1) == (4, 12)).all()


def test_a_face_is_cropped_and_it_is_known_where_each_crop_lies_in_its_picture(tmp_path: Path) -> None:
    head = synthetic.render_clip(2, 0, size=128, seconds=0.6).video
    frames = np.full((15, 200, 220, 3), 128, np.uint8)
    for number in range(15):
        frames[number, 30:158, 50 + number : 178 + number] = head.frames[number]
    write_video(tmp_path / "a.mp4", frames, head.audio)
    source = ClipSource("ann", "a", str(tmp_path / "a.mp4"))
    clip, excerpt = open_clip(source, 64), source.excerpt()
    assert clip.places.shape == (15, 2, 3) and clip.places.dtype == np.float32 and excerpt is not None
    assert abs(len(clip.audio) - 15 * 640) < 1100
    for number, (crop, picture) in enumerate(zip(clip.crops, excerpt.footage(), strict=True)):
        shrunk = head.frames[number].reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(crop - shrunk)[8:-8, 8:-8].mean() < 14, "the same face in the same place"
        again = warp(picture, clip.places[number], 64, oversampling(clip.places, 64))
        assert np.abs(again.astype(int) - crop).mean() < 0.1
        # The template's eyes lie where the drawn head has them: 128 pixels a side, moved by a pixel a frame.
        assert (clip.places[number] @ (0.5, 0.5, 1) - (50 + number + 64, 30 + 64)) == pytest.approx([0, 0], abs=4)


def test_only_some_identities_in_their_order() -> None:
    sources = list_synthetic(3, 2, 0)
    kept = only_identities(sources, ["id0002", "id0000"])
    assert [(source.identity, source.clip) for source in kept] == [
        ("id0000", "clip0000"), ("id0000", "clip0001"), ("id0002", "clip0000"), ("id0002", "clip0001"),
    ]  # fmt: skip
    with pytest.raises(CorpusError, match=r"--only id0009: no such identity; the corpus has id0000, id0001, id0002"):
        only_identities(sources, ["id0009"])


def clips_of(**counts: int) -> list[ClipSource]:
    return [ClipSource(name, str(index)) for name, count in counts.items() for index in range(count)]


def test_at_most_so_many_clips_from_all_over_an_identity() -> None:
    kept = at_most(clips_of(ann=10, bob=2, cid=3), 3)
    assert names(kept) == [
        ("ann", "0"), ("ann", "3"), ("ann", "6"), ("bob", "0"), ("bob", "1"), ("cid", "0"), ("cid", "1"), ("cid", "2"),
    ]  # fmt: skip
    with pytest.raises(CorpusError, match=r"--max-clips 0: must be at least 1"):
        at_most(clips_of(ann=1), 0)


def test_a_clip_crosses_as_a_row_and_comes_back() -> None:
    plain = ClipSource("ann", "a")
    whole = ClipSource("ann", "a", "x.mp4", begin=1.5, end=3.0, crop=(1, 2, 3, 4), sound="x.wav", held_out=True)
    for source in (plain, whole):
        row = source.row()
        assert ClipSource.from_row(row | {"crop": np.array(row["crop"])}) == source
    assert {key: type(value) for key, value in plain.row().items()} == {
        key: type(value) for key, value in whole.row().items()
    }, "columns of one type, whatever the clip"
