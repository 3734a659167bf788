from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.errors import ShardError
from fedtalk_ray.evaluation.held_out import another_real_clip, choose_clips, read_clips
from fedtalk_ray.media.lips import aperture_of
from fedtalk_ray.shards.format import ClipEntry, Manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.shards.reader import read_pieces


def manifest(**splits: str) -> Manifest:
    """People and the splits of their clips by first letters: a="xvt" has a train, a val and a test clip."""
    names = {"x": "train", "v": "val", "t": "test"}
    identities = {
        who: [ClipEntry(f"{who}{number}", names[letter], 10, 1) for number, letter in enumerate(letters)]
        for who, letters in splits.items()
    }
    return Manifest("folder", 32, 25, 16_000, "patch", "print", {}, identities)


def test_each_clip_hears_the_next_of_its_group_and_is_dubbed_with_its_own_persons() -> None:
    found = choose_clips(manifest(b="xvt", a="xvtt", u="t", w="t"), "test")
    assert [(entry.group, entry.clip, entry.other_sound, entry.dubbed_with) for entry in found] == [
        ("seen", "a2", ("a", "a3"), ("a", "a3")),
        ("seen", "a3", ("b", "b2"), ("a", "a2")),
        ("seen", "b2", ("a", "a2"), ("a", "a2")),
        ("unseen", "u0", ("w", "w0"), ("w", "w0")),
        ("unseen", "w0", ("u", "u0"), ("u", "u0")),
    ]
    assert [entry.clip for entry in choose_clips(manifest(b="xv", a="xvv", u="t"), "val")] == ["a1", "a2", "b1"]
    assert [each.clip for each in choose_clips(manifest(b="xvt", a="xvt"), "held-out")] == ["a1", "a2", "b1", "b2"]


def test_a_limit_takes_many_people_and_changes_nobodys_other_sound() -> None:
    people = manifest(a="xtttt", b="xtt", c="xtt")
    everything = choose_clips(people, "test")
    few = choose_clips(people, "test", 4)
    assert [entry.clip for entry in few] == ["a1", "a2", "b1", "c1"]
    assert set(few) < set(everything)
    found = choose_clips(manifest(a="xtt", b="xt", c="xt"), "test", 2, excluded=["a"])
    assert [(entry.clip, entry.other_sound) for entry in found] == [("b1", ("c", "c1")), ("c1", ("a", "a1"))]


def test_a_groups_only_clip_hears_one_of_the_other_group() -> None:
    """B19: it was refused, and all others with it."""
    found = choose_clips(manifest(a="xvtt", u="t"), "test")
    assert [(entry.clip, entry.other_sound) for entry in found] == [
        ("a2", ("a", "a3")),
        ("a3", ("a", "a2")),
        ("u0", ("a", "a2")),
    ]
    (alone,) = choose_clips(manifest(u="t"), "test")
    assert (alone.clip, alone.other_sound, alone.dubbed_with) == ("u0", None, None)
    with pytest.raises(ShardError, match="no clip in split 'test'"):
        choose_clips(manifest(a="xv"), "test")


def test_clips_are_read_with_their_sounds_cut_or_repeated(tmp_path: Path, make_shards: Callable[..., Manifest]) -> None:
    shards = tmp_path / "shards"
    people = make_shards(shards, {"a": [9, 9, 12], "b": [9, 9, 8]})
    entries = choose_clips(people, "test")
    read = list(read_clips(People(shards, people), "test", entries))
    assert [clip.entry for clip in read] == entries
    long, short = read
    assert (long.piece.client, long.piece.clip, len(long.piece.frames)) == ("a", "clip2", 12)
    assert (short.other_sound == long.piece.waveform[: 8 * 640]).all()
    assert (long.other_sound == np.concatenate([short.piece.waveform, short.piece.waveform[: 4 * 640]])).all()
    assert [clip.entry for clip in read_clips(People(shards, people), "test", entries[1:])] == entries[1:]
    sound, lips = short.dubbed_with
    assert (sound == long.piece.waveform).all() and (lips == aperture_of(long.piece.landmarks)).all()


def test_another_real_clip_is_the_persons_next_whatever_its_split(
    tmp_path: Path, make_shards: Callable[..., Manifest]
) -> None:
    shards = tmp_path / "shards"
    people = make_shards(shards, {"a": [9, 10, 11], "u": [9]})
    first = next(read_pieces(shards, people, "a", "train"))
    second = next(read_pieces(shards, people, "a", "val"))
    found = [another_real_clip(People(shards, people), "a", name) for name in ("clip2", "clip0")]
    assert found[0] is not None and (found[0] == first.frames).all()
    assert found[1] is not None and (found[1] == second.frames).all()
    assert another_real_clip(People(shards, people), "u", "clip0") is None
