"""Corpora in the layouts in which they are distributed: who is who, what is skipped, what is said of a wrong folder."""

from pathlib import Path

import pytest

from fedtalk_ray.corpora.listing import CorpusError, list_corpus


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def listed(corpus: str, root: Path) -> list[tuple[str, str, str]]:
    """Identity, clip and file of each clip; a held-out identity is marked with a star."""
    return [
        (source.identity + "*" * source.held_out, source.clip, str(Path(str(source.path)).relative_to(root)))
        for source in list_corpus(corpus, root)
    ]


def refusal(corpus: str, root: Path) -> str:
    with pytest.raises(CorpusError) as caught:
        list_corpus(corpus, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# RAVDESS


def test_ravdess_takes_speech_with_sound_by_actor(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Actor_02/01-01-03-01-02-01-02.mp4",
        "Actor_02/02-01-03-01-02-01-02.mp4",  # no sound
        "Actor_02/03-01-03-01-02-01-02.wav",  # no picture
        "Actor_02/01-02-03-01-02-01-02.mp4",  # sung
        "Actor_02/._01-01-04-01-02-01-02.mp4",
        "Actor_01/01-01-08-02-01-02-01.mp4",
        "Actor_01/notes.mp4",
        "Video_Speech_Actor_03/Actor_03/01-01-01-01-01-01-03.mp4",
        "Video_Speech_Actor_01/Actor_01/01-01-08-02-01-02-01.mp4",  # unpacked twice
    )
    found = list_corpus("ravdess", tmp_path)
    assert [(source.identity, source.clip) for source in found] == [
        ("Actor_01", "01-01-08-02-01-02-01"),
        ("Actor_02", "01-01-03-01-02-01-02"),
        ("Actor_03", "01-01-01-01-01-01-03"),
    ]
    assert not any(source.held_out for source in found)


# CREMA-D


def test_crema_d_takes_flash_videos_by_actor(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "VideoFlash/1002_DFA_ANG_XX.flv",
        "VideoFlash/1001_IEO_HAP_HI.flv",
        "VideoFlash/1040_ITH_SAD_X.flv",
        "VideoFlash/test.flv",
        "AudioWAV/1001_IEO_HAP_HI.wav",
        "AudioMP3/1001_IEO_HAP_HI.mp3",
        "VideoDemographics.csv",
    )
    assert listed("crema-d", tmp_path) == [
        ("1001", "1001_IEO_HAP_HI", "VideoFlash/1001_IEO_HAP_HI.flv"),
        ("1002", "1002_DFA_ANG_XX", "VideoFlash/1002_DFA_ANG_XX.flv"),
        ("1040", "1040_ITH_SAD_X", "VideoFlash/1040_ITH_SAD_X.flv"),
    ]
    assert list_corpus("crema-d", tmp_path)[0].sound == str(tmp_path / "AudioWAV" / "1001_IEO_HAP_HI.wav")


# LRS3


def test_lrs3_holds_its_test_set_out_and_takes_one_set_of_each_identity(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "pretrain/00j9bKdiOjk/00001.mp4",
        "pretrain/00j9bKdiOjk/00001.txt",
        "pretrain/0af00UcTOSc/00002.mp4",  # trainval's sentences are cut from it
        "trainval/0af00UcTOSc/50001.mp4",
        "trainval/0af00UcTOSc/50002.mp4",
        "trainval/0af00UcTOSc/50002.txt",
        "test/0Fi83BHQsMA/00002.mp4",
        "trainval/abc/50001.mp4",
        "test/abc/00001.mp4",
    )
    assert listed("lrs3", tmp_path) == [
        ("00j9bKdiOjk", "00001", "pretrain/00j9bKdiOjk/00001.mp4"),
        ("0Fi83BHQsMA*", "00002", "test/0Fi83BHQsMA/00002.mp4"),
        ("0af00UcTOSc", "50001", "trainval/0af00UcTOSc/50001.mp4"),
        ("0af00UcTOSc", "50002", "trainval/0af00UcTOSc/50002.mp4"),
        ("abc*", "00001", "test/abc/00001.mp4"),
    ], "nobody of the test set is trained on"


# VoxCeleb2

META = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 \t,n000012 \t,m \t,dev \nid00017 ,n000017 ,m ,test \n"


def test_voxceleb2_by_set_folders(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4",
        "dev/mp4/id00012/21Uxsk56VDQ/00002.mp4",
        "dev/mp4/id00012/2DLq_Kkc1r8/00001.mp4",
        "dev/aac/id00012/21Uxsk56VDQ/00001.m4a",
        "test/mp4/id00017/01dfn2spqyE/00001.mp4",
        "test/txt/id00017/01dfn2spqyE/00001.txt",
    )
    assert [(name, clip) for name, clip, _ in listed("voxceleb2", tmp_path)] == [
        ("id00012", "21Uxsk56VDQ_00001"),
        ("id00012", "21Uxsk56VDQ_00002"),
        ("id00012", "2DLq_Kkc1r8_00001"),
        ("id00017*", "01dfn2spqyE_00001"),
    ]
    first, *_, last = list_corpus("voxceleb2", tmp_path)
    assert first.sound == str(tmp_path / "dev/aac/id00012/21Uxsk56VDQ/00001.m4a") and last.sound is None


def test_voxceleb2_in_one_folder_needs_its_table(tmp_path: Path) -> None:
    touch(tmp_path, "mp4/id00012/a/00001.mp4", "mp4/id00017/b/00001.mp4")
    assert f"{tmp_path / 'vox2_meta.csv'} is missing" in refusal("voxceleb2", tmp_path)
    (tmp_path / "vox2_meta.csv").write_text(META)
    assert [name for name, _, _ in listed("voxceleb2", tmp_path)] == ["id00012", "id00017*"]
    touch(tmp_path, "mp4/id00099/c/00001.mp4")
    assert "says no set for id00099" in refusal("voxceleb2", tmp_path)
    for text, line in (("VoxCeleb1 ID,Set\n", 1), (META + "id00018 ,n000018 ,m\n", 4), (META + "\nn18,n,m,dev\n", 5)):
        (tmp_path / "vox2_meta.csv").write_text(text)
        assert f"vox2_meta.csv, line {line}: '{text.splitlines()[-1].split(' ')[0]}" in refusal("voxceleb2", tmp_path)
