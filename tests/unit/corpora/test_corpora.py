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
    own_test_set,
    synthetic,
    usual_speech,
)
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.faces import NoFaceError, oversampling, warp
from fedtalk_ray.media.video import Video, VideoError


def load_clip(source: ClipSource, size: int) -> Video:
    """The crops of a clip and its sound, in memory."""
    clip = open_clip(source, size)
    return Video(np.stack(list(clip.crops)), clip.audio)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def names(sources: list[ClipSource]) -> list[tuple[str, str]]:
    return [(source.identity, source.clip) for source in sources]


def test_grid_clips_are_mpg_or_mp4_by_speaker(tmp_path: Path) -> None:
    touch(tmp_path, "s2/b.mpg", "s1/z.mp4", "s1/a.mpg", "s1/a.align", "s1/a.webm", "README.md")
    sources = list_corpus("grid", tmp_path)
    assert names(sources) == [("s1", "a"), ("s1", "z"), ("s2", "b")]
    assert [source.path for source in sources] == [
        str(tmp_path / name) for name in ("s1/a.mpg", "s1/z.mp4", "s2/b.mpg")
    ]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "avi", "mkv", "mpg", "mpeg", "webm", "MP4", "Mov"])
def test_a_folder_takes_the_usual_endings_in_any_case(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"ann/a.{suffix}", "ann/a.txt", "ann/b.wav")
    assert names(list_corpus("folder", tmp_path)) == [("ann", "a")]


def test_clips_lie_one_folder_deep_and_folders_are_no_clips(tmp_path: Path) -> None:
    touch(tmp_path, "top.mp4", "ann/a.mp4", "ann/deep/b.mp4")
    (tmp_path / "ann" / "trap.mp4").mkdir()
    assert names(list_corpus("folder", tmp_path)) == [("ann", "a")]


def test_hidden_files_are_no_clips(tmp_path: Path) -> None:
    """macOS leaves ._a.mp4 beside a.mp4 on foreign disks: half of such a corpus could never be decoded."""
    touch(tmp_path, "ann/a.mp4", "ann/._a.mp4", ".cache/b.mp4")
    assert names(list_corpus("folder", tmp_path)) == [("ann", "a")]


def test_clips_of_one_identity_come_together(tmp_path: Path) -> None:
    touch(tmp_path, "s1/b.mp4", "s1-x/a.mp4", "s1/a.mp4", "s10/a.mp4", "s2/a.mp4")
    order = [source.identity for source in list_corpus("folder", tmp_path)]
    changes = sum(a != b for a, b in pairwise(order))
    assert changes == len(set(order)) - 1 == 3


def refusal(*arguments: object, **options: int) -> str:
    with pytest.raises(CorpusError) as caught:
        list_corpus(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_listed_is_named(tmp_path: Path) -> None:
    assert refusal("vox", tmp_path) == (
        "corpus 'vox' is unknown; known: crema-d, folder, grid, hdtf, lrs3, ravdess, voxceleb2, synthetic, puppets"
    )
    assert refusal("grid", None) == "corpus grid needs --root, the folder that holds <identity>/<clip>"
    missing = tmp_path / "none"
    assert refusal("grid", missing) == f"corpus folder {missing} does not exist"
    assert refusal("grid", tmp_path) == f"corpus folder {tmp_path} holds no <identity>/<clip>.mp4|.mpg"
    touch(tmp_path, "top.mp4", "ann/a.txt")
    assert refusal("folder", tmp_path).startswith(f"corpus folder {tmp_path} holds no <identity>/<clip>.avi|.mkv")
    assert refusal("grid", tmp_path / "top.mp4").endswith("does not exist")
    for identities, clips in ((0, 3), (3, 0), (-1, 1)):
        message = refusal("synthetic", None, identities=identities, clips=clips)
        assert message == f"--identities {identities} --clips {clips}: both must be at least 1"


def test_the_synthetic_corpus_needs_no_folder(tmp_path: Path) -> None:
    sources = list_corpus("synthetic", None, identities=2, clips=3, seed=4)
    assert names(sources) == [(f"id000{who}", f"clip000{clip}") for who in range(2) for clip in range(3)]
    last = sources[-1]
    assert (last.path, last.synthetic_identity, last.synthetic_clip, last.seed) == (None, 1, 2, 4)


def test_puppets_are_drawn_and_remembered_as_puppets() -> None:
    sources = list_corpus("puppets", None, identities=1, clips=1, seed=4)
    source = ClipSource.from_row(sources[0].row())
    assert source == sources[0] and source.kind == "puppets"
    truth = synthetic.render_clip(0, 0, seed=4, size=16, kind="puppets").video
    video = load_clip(source, 16)
    assert (video.frames == truth.frames).all() and (video.audio == truth.audio).all()


def test_a_synthetic_clip_is_drawn_at_the_size_asked_for() -> None:
    source = ClipSource("id0003", "clip0001", None, 3, 1, 7)
    video = load_clip(source, 16)
    truth = synthetic.render_clip(3, 1, seed=7, size=16).video
    assert (video.frames == truth.frames).all() and (video.audio == truth.audio).all()
    assert video.frames.shape[1:] == (16, 16, 3)


def test_a_file_is_decoded_and_its_face_cropped(tmp_path: Path) -> None:
    clip = synthetic.render_clip(2, 0, size=128, seconds=0.6).video
    frames = np.full((15, 200, 220, 3), 128, np.uint8)
    frames[:, 30:158, 50:178] = clip.frames
    write_video(tmp_path / "a.mp4", frames, clip.audio)
    video = load_clip(ClipSource("ann", "a", str(tmp_path / "a.mp4")), 64)
    assert video.frames.shape == (15, 64, 64, 3)
    assert abs(len(video.audio) - 15 * 640) < 1100
    shrunk = clip.frames.reshape(15, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(video.frames - shrunk)[:, 8:-8, 8:-8].mean() < 14, "the same face in the same place"


def test_it_is_known_where_each_crop_lies_in_its_picture(tmp_path: Path) -> None:
    head = synthetic.render_clip(2, 0, size=128, seconds=0.6).video
    frames = np.full((15, 200, 220, 3), 128, np.uint8)
    for number in range(15):
        frames[number, 30:158, 50 + number : 178 + number] = head.frames[number]
    write_video(tmp_path / "a.mp4", frames, head.audio)
    source = ClipSource("ann", "a", str(tmp_path / "a.mp4"))
    clip, excerpt = open_clip(source, 64), source.excerpt()
    assert clip.places.shape == (15, 2, 3) and clip.places.dtype == np.float32 and excerpt is not None
    for number, (crop, picture) in enumerate(zip(clip.crops, excerpt.footage(), strict=True)):
        again = warp(picture, clip.places[number], 64, oversampling(clip.places, 64))
        assert np.abs(again.astype(int) - crop).mean() < 0.1
        # The template's eyes lie where the drawn head has them: 128 pixels a side, moved by a pixel a frame.
        assert (clip.places[number] @ (0.5, 0.5, 1) - (50 + number + 64, 30 + 64)) == pytest.approx([0, 0], abs=4)


def test_real_voices_are_heard_by_a_pretrained_model_unless_asked_otherwise() -> None:
    assert [usual_speech(corpus) for corpus in ("synthetic", "puppets", "grid", "folder")] == [
        *("log-mel", "log-mel"),
        *("openai/whisper-tiny", "openai/whisper-tiny"),
    ]


def test_a_drawn_clips_crops_are_its_pictures() -> None:
    source = list_corpus("synthetic", None, identities=1, clips=1)[0]
    clip = open_clip(source, 16)
    assert source.excerpt() is None and len(clip.places) == clip.frames
    assert (clip.places @ (0.25, 0.75, 1) == (4, 12)).all()


def test_a_clip_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    write_video(tmp_path / "empty.mp4", np.full((12, 96, 96, 3), 90, np.uint8), np.zeros(100, np.float32))
    with pytest.raises(VideoError, match=r"broken\.mp4: cannot be decoded"):
        load_clip(ClipSource("ann", "broken", str(tmp_path / "broken.mp4")), 64)
    with pytest.raises(NoFaceError, match="found in 0 of 4 sampled frames"):
        load_clip(ClipSource("ann", "empty", str(tmp_path / "empty.mp4")), 64)


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


def test_a_test_set_is_what_the_corpus_holds_out_and_may_be_all_there_is() -> None:
    held = [ClipSource("zoe", "0", held_out=True), ClipSource("ada", "0", held_out=True)]
    assert own_test_set(clips_of(ann=2)) is None
    assert own_test_set([*clips_of(ann=2), *held]) == ["ada", "zoe"]
    assert own_test_set(held) == ["ada", "zoe"]


def test_of_many_identities_the_first_are_named() -> None:
    sources = [ClipSource(f"id{who:04d}", "0") for who in range(300)]
    with pytest.raises(CorpusError, match=r"id0019, \.\.\. \(300 in all\)$"):
        only_identities(sources, ["id9"])


def test_a_clip_crosses_as_a_row_and_comes_back() -> None:
    plain = ClipSource("ann", "a")
    whole = ClipSource("ann", "a", "x.mp4", begin=1.5, end=3.0, crop=(1, 2, 3, 4), sound="x.wav", held_out=True)
    for source in (plain, whole):
        row = source.row()
        assert ClipSource.from_row(row | {"crop": np.array(row["crop"])}) == source
    assert {key: type(value) for key, value in plain.row().items()} == {
        key: type(value) for key, value in whole.row().items()
    }, "columns of one type, whatever the clip"
