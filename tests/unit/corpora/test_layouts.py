"""Corpora in the layouts in which they are distributed: who is who, what is skipped, what is said of a wrong folder.

Trees for listing hold empty files; trees that are decoded are cut from GRID clips, in the corpus's own containers.
"""

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtalk_ray.corpora.layouts.voxceleb2 import parse_voxceleb2_sets
from fedtalk_ray.corpora.listing import ClipSource, CorpusError, list_corpus, open_clip
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.faces import crop_faces, face_transforms
from fedtalk_ray.media.video import Video, VideoError, read_video


def load_clip(source: ClipSource, size: int) -> Video:
    """The crops of a clip and its sound, in memory."""
    clip = open_clip(source, size)
    return Video(np.stack(list(clip.crops)), clip.audio)


SIZE = 32


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


@pytest.fixture(scope="module")
def spoken(grid_root: Path) -> Video:
    """1.2 seconds of a GRID clip."""
    whole = read_video(sorted((grid_root / "s1").glob("*.mpg"))[0])
    return Video(whole.frames[20:50], whole.audio[20 * 640 : 50 * 640])


@pytest.fixture(scope="module")
def crops(spoken: Video) -> np.ndarray:
    return np.stack(list(crop_faces(spoken.frames, face_transforms(spoken.frames), SIZE)))


def encode(path: Path, sound: tuple[str, int], audio: np.ndarray, picture: str = "", frames: np.ndarray = ()) -> None:
    """A file with `sound` = (codec, rate) and, if a codec is named, a picture. The ending says which container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream(picture, rate=25, options={"qscale": "2"})
            video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        heard = container.add_stream(sound[0], rate=sound[1], layout="mono")
        if picture:
            for image in frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        resampler = av.AudioResampler(heard.format, "mono", sound[1])
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(heard.encode(piece))
        container.mux(heard.encode())


def assert_same_speech(source: ClipSource, spoken: Video, crops: np.ndarray) -> None:
    """The clip shows the face of `crops` and sounds like `spoken`, at the same time."""
    clip = load_clip(source, SIZE)
    assert clip.frames.shape == (30, SIZE, SIZE, 3)
    assert np.abs(clip.frames.astype(int) - crops).mean() < 8
    length = min(len(clip.audio), len(spoken.audio))
    assert length > 30 * 640 - 1200
    heard, truth = clip.audio[:length], spoken.audio[:length]
    shifts = range(-640, 641, 40)  # 40 ms either way
    scores = [float(np.dot(np.roll(heard, shift)[640:-640], truth[640:-640])) for shift in shifts]
    assert abs(shifts[int(np.argmax(scores))]) <= 160, "sound lies within 10 ms of the picture's"
    assert max(scores) > 0.8 * np.linalg.norm(heard[640:-640]) * np.linalg.norm(truth[640:-640])


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


def test_ravdess_says_which_folder_and_which_archive(tmp_path: Path) -> None:
    root = touch(tmp_path / "x" / "ravdess", "Actor_01/01-01-03-01-02-01-01.mp4")
    assert refusal("ravdess", root / "Actor_01").endswith(f"but {root} does: give --root {root}")
    assert refusal("ravdess", root.parent).endswith(f"but {root} does: give --root {root}")
    silent = touch(tmp_path / "silent", "Actor_01/02-01-03-01-02-01-01.mp4")
    assert "1 videos, none of them spoken and with sound" in refusal("ravdess", silent)
    assert "unpack Video_Speech_Actor_NN.zip" in refusal("ravdess", silent)


@pytest.mark.grid
def test_a_ravdess_clip_is_seen_and_heard(tmp_path: Path, spoken: Video, crops: np.ndarray) -> None:
    (tmp_path / "Actor_01").mkdir()
    write_video(tmp_path / "Actor_01" / "01-01-03-01-02-01-01.mp4", spoken.frames, spoken.audio)
    write_video(tmp_path / "Actor_01" / "02-01-03-01-02-01-01.mp4", spoken.frames, None)
    (source,) = list_corpus("ravdess", tmp_path)
    assert_same_speech(source, spoken, crops)


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


def test_crema_d_knows_a_clone_without_its_large_files(tmp_path: Path) -> None:
    touch(tmp_path, "VideoFlash/1001_DFA_ANG_XX.flv")
    clip = tmp_path / "VideoFlash" / "1001_DFA_ANG_XX.flv"
    clip.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 214522\n")
    message = f"corpus crema-d: {clip} is a pointer of Git LFS, no video: run `git lfs pull` in {tmp_path}"
    assert refusal("crema-d", tmp_path) == message
    assert refusal("crema-d", clip.parent).endswith(f"but {tmp_path} does: give --root {tmp_path}")


@pytest.mark.grid
def test_a_crema_d_clip_is_seen_and_heard(tmp_path: Path, spoken: Video, crops: np.ndarray) -> None:
    clip = tmp_path / "VideoFlash" / "1001_DFA_ANG_XX.flv"
    encode(clip, ("libmp3lame", 44_100), spoken.audio, "flv", spoken.frames)
    (source,) = list_corpus("crema-d", tmp_path)
    assert_same_speech(source, spoken, crops)


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
    )
    assert listed("lrs3", tmp_path) == [
        ("00j9bKdiOjk", "00001", "pretrain/00j9bKdiOjk/00001.mp4"),
        ("0Fi83BHQsMA*", "00002", "test/0Fi83BHQsMA/00002.mp4"),
        ("0af00UcTOSc", "50001", "trainval/0af00UcTOSc/50001.mp4"),
        ("0af00UcTOSc", "50002", "trainval/0af00UcTOSc/50002.mp4"),
    ]


def test_an_lrs3_identity_of_the_test_set_is_never_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, "trainval/abc/50001.mp4", "test/abc/00001.mp4", "trainval/-_x/50001.mp4")
    assert [name for name, _, _ in listed("lrs3", tmp_path)] == ["-_x", "abc*"]


def test_lrs3_says_which_folder(tmp_path: Path) -> None:
    root = touch(tmp_path / "lrs3", "trainval/0af00UcTOSc/50001.mp4")
    for wrong in (root / "trainval", root / "trainval" / "0af00UcTOSc", tmp_path):
        assert refusal("lrs3", wrong) == (
            f"corpus lrs3: {wrong} holds no pretrain|trainval|test/<video>/NNNNN.mp4, but {root} does: "
            f"give --root {root}"
        )
    assert refusal("lrs3", tmp_path / "none") == f"corpus folder {tmp_path / 'none'} does not exist"


@pytest.mark.grid
def test_an_lrs3_clip_is_seen_and_heard(tmp_path: Path, spoken: Video, crops: np.ndarray) -> None:
    clip = tmp_path / "trainval" / "0af00UcTOSc" / "50001.mp4"
    clip.parent.mkdir(parents=True)
    write_video(clip, spoken.frames[:, 40:264, 68:292], spoken.audio)  # 224 x 224, as all of LRS3
    (source,) = list_corpus("lrs3", tmp_path)
    assert_same_speech(source, spoken, crops)


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


def test_voxceleb2_says_which_folder(tmp_path: Path) -> None:
    root = touch(tmp_path / "vox2", "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4")
    for wrong in (root / "dev", root / "dev" / "mp4", tmp_path):
        assert refusal("voxceleb2", wrong).endswith(f"but {root} does: give --root {root}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "meta.csv, line 1: '' names no columns"),
        ("VoxCeleb1 ID,Set\n", "meta.csv, line 1: 'VoxCeleb1 ID,Set' names no columns 'VoxCeleb2 ID' and 'Set'"),
        (META + "id00018 ,n000018 ,m\n", "meta.csv, line 4: 'id00018,n000018,m' is not an idNNNNN with its set"),
        (META + "\nid00018,n000018,m,train\n", "meta.csv, line 5: 'id00018,n000018,m,train' is not"),
        (META + "n000018,n000018,m,dev\n", "meta.csv, line 4: 'n000018,n000018,m,dev' is not"),
    ],
)
def test_a_malformed_voxceleb2_table_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(CorpusError) as caught:
        parse_voxceleb2_sets(text, "meta.csv")
    assert str(caught.value).startswith(message)


PAD = st.sampled_from(["", " ", "\t", " \t "])


@given(st.dictionaries(st.integers(0, 99_999), st.tuples(st.sampled_from(["dev", "test"]), PAD, PAD)))
def test_a_voxceleb2_table_is_read_whatever_its_padding(people: dict[int, tuple[str, str, str]]) -> None:
    lines = [f"id{who:05d}{left},n0{right},f,{right}{which}{left}" for who, (which, left, right) in people.items()]
    text = "\n".join(["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set ", *lines])
    assert parse_voxceleb2_sets(text, "x") == {f"id{who:05d}": which for who, (which, _, _) in people.items()}


@given(st.text(alphabet="id01,\t \nSetdv", max_size=60))
def test_any_other_table_is_refused_in_one_line(rest: str) -> None:
    try:
        sets = parse_voxceleb2_sets("VoxCeleb2 ID,Set\n" + rest, "meta.csv")
    except CorpusError as error:
        assert str(error).startswith("meta.csv, line ") and "\n" not in str(error)
    else:
        assert set(sets.values()) <= {"dev", "test"}


@pytest.mark.grid
def test_a_voxceleb2_clip_is_seen_and_heard(tmp_path: Path, spoken: Video, crops: np.ndarray) -> None:
    """One clip has its own sound; of another the sound lies beside; a third is silent."""
    folder = tmp_path / "dev" / "mp4" / "id00012" / "21Uxsk56VDQ"
    folder.mkdir(parents=True)
    face = spoken.frames[:, 40:264, 68:292]
    write_video(folder / "00001.mp4", face, spoken.audio)
    write_video(folder / "00002.mp4", face, None)
    write_video(folder / "00003.mp4", face, None)
    encode(tmp_path / "dev" / "aac" / "id00012" / "21Uxsk56VDQ" / "00002.m4a", ("aac", 16_000), spoken.audio)
    own, beside, silent = list_corpus("voxceleb2", tmp_path)
    assert_same_speech(own, spoken, crops)
    assert_same_speech(beside, spoken, crops)
    with pytest.raises(VideoError, match=r"00003\.m4a: does not exist"):
        load_clip(silent, SIZE)
