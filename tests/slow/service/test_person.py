"""What the page says of somebody's clips, how long recordings are cut, and whose names may be taken."""

import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.errors import UserError
from fedtalk_ray.generation.scene import Stopped
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import format_of, read_audio
from fedtalk_ray.page.turns import sound_of
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.person import Checked, Person, PersonError


@pytest.fixture(scope="module")
def run(exported: Path, make_config: Callable, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("persons") / "run"
    shutil.copytree(exported, folder)
    shutil.copytree(RunFolder(exported).clients_folder, RunFolder(folder).clients_folder)
    return RunFolder(folder)


def film(path: Path, light: float = 1.0, loud: float = 1.0, moves: bool = True, seconds: float = 1.2) -> Path:
    """A drawn person's clip, as good or bad as is asked for."""
    drawn = render_clip(40, 0, size=128, seconds=seconds).video
    frames = drawn.frames if moves else drawn.frames[:1].repeat(len(drawn.frames), 0)
    write_video(path, (frames * light).clip(0, 255).astype(np.uint8), drawn.audio * loud)
    return path


class Pipe(io.BytesIO):
    """It cannot go back to write down how much came."""

    def seekable(self) -> bool:
        return False


def recording(path: Path, seconds: int) -> Path:
    """A grey picture a second, as browsers record."""
    written = Pipe()
    with av.open(written, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=1, width=32, height=32, pix_fmt="yuv420p")
        for _ in range(seconds):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8))))
        container.mux(stream.encode())
    path.write_bytes(written.getvalue())
    return path


def test_each_clip_is_looked_at_and_told_what_to_do_better(run: RunFolder, tmp_path: Path) -> None:
    person = Person(run, "ina")
    given = [
        film(tmp_path / "good.mp4"),
        film(tmp_path / "dark and silent.mp4", light=0.25, loud=0.0),
        film(tmp_path / "still and loud.mp4", moves=False, loud=60.0),
    ]
    assert person.keep(given, "yes") == 3
    looked = person.prepare()
    assert [each.clip for each in looked] == ["clip01", "clip02", "clip03"]
    assert all(each.usable and each.seconds == pytest.approx(1.2, abs=0.05) for each in looked)
    assert [each.advice for each in looked] == [
        (),
        ("it is dark: turn to a window or a lamp", "hardly anything is heard: move nearer to the microphone"),
        (
            "the sound is too loud for the microphone: move away from it",
            "the lips hardly move: speak while you record, and keep your hands off your mouth",
        ),
    ]
    # Another visit adds to what is there.
    assert person.keep([film(tmp_path / "more.mp4")], "yes") == 4
    person.delete()
    assert not person.folder.path.exists() and run.clients() == ["anna"]


def test_a_clip_without_a_face_is_left_out_and_the_rest_used(run: RunFolder, tmp_path: Path) -> None:
    person = Person(run, "jo")
    write_video(tmp_path / "wall.mp4", np.full((30, 128, 128, 3), 120, np.uint8), np.zeros(19_200, np.float32))
    person.keep([film(tmp_path / "one.mp4"), tmp_path / "wall.mp4", film(tmp_path / "two.mp4")], "yes")
    looked = person.prepare()
    assert [each.usable for each in looked] == [True, False, True]
    assert looked[1].advice == ("not used: no face was followed in it, or it is under a second",)
    person.delete()


def test_who_is_deleted_while_work_goes_on_leaves_nothing_and_may_come_back(run: RunFolder, tmp_path: Path) -> None:
    person = Person(run, "max")
    person.keep([film(tmp_path / "one.mp4"), film(tmp_path / "two.mp4")], "yes")

    def work() -> None:
        person.delete()
        person.folder.newest_adapter.mkdir(parents=True)

    with pytest.raises(PersonError, match=r"^max was deleted meanwhile$"):
        person.while_she_stays(work)
    assert not person.folder.path.exists()
    assert Person(run, "max").keep([tmp_path / "one.mp4"], "yes") == 1
    person.delete()


def test_who_is_deleted_while_her_clips_are_kept_leaves_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    max_, copy = Person(run, "max"), shutil.copyfile
    film(tmp_path / "one.mp4")

    def deleted_meanwhile(source: Path, target: Path) -> None:
        Person(run, "max").delete()
        target.parent.mkdir(parents=True, exist_ok=True)  # as `new_file` does for the next clip
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", deleted_meanwhile)
    with pytest.raises(PersonError, match=r"^max was deleted meanwhile$"):
        max_.keep([tmp_path / "one.mp4"] * 2, "yes")
    assert not max_.folder.path.exists() and not [*run.clients_folder.glob(".*")]


def test_deletions_at_once_and_one_that_was_broken_off_leave_nothing(run: RunFolder) -> None:
    left = run.clients_folder / ".gone-0123"
    left.mkdir()
    (left / "clip01.mp4").write_bytes(b"hers")
    assert run.clients() == ["anna"], "nobody's"
    people = [Person(run, "max") for _ in range(8)]
    for _ in range(20):
        people[0].agree("yes")
        for number in range(30):
            (people[0].folder.path / f"{number}").write_bytes(b"hers")
        with ThreadPoolExecutor(8) as at_once:
            list(at_once.map(Person.delete, people))
        assert [place.name for place in run.clients_folder.iterdir()] == ["anna"]


def test_who_asks_for_an_end_while_her_clips_are_looked_at_waits_for_one_of_them(
    run: RunFolder, tmp_path: Path
) -> None:
    lou = Person(run, "lou")
    lou.keep([film(tmp_path / "one.mp4")] * 3, "yes")
    asked: list[bool] = []

    def before_each() -> None:
        asked.append(True)
        if len(asked) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        lou.while_she_stays(lambda: lou.prepare(before_each))
    assert len(asked) == 2 and not lou.folder.shards.exists()
    lou.delete()


def test_she_is_shown_by_the_first_clip_that_is_used(run: RunFolder, tmp_path: Path) -> None:
    lou = Person(run, "lou")
    lou.keep([film(tmp_path / f"{name}.mp4") for name in "abc"], "yes")
    looked = [Checked("clip01", 0.0, False), Checked("clip02-01", 8.0, False), Checked("clip02-02", 8.0, True)]
    assert lou.shown_by(looked).name == "clip02.mp4"
    with pytest.raises(PersonError, match="none of lou's clips is used"):
        lou.shown_by(looked[:2])
    heard = read_audio(sound_of(lou.shown_by(looked), 0.7, tmp_path))
    whole = read_audio(tmp_path / "b.mp4")[:11_200]
    assert len(heard) == 11_200 and np.abs(heard - whole).max() < 1e-3
    write_video(tmp_path / "silent.mp4", np.full((30, 32, 32, 3), 90, np.uint8), None)
    with pytest.raises(UserError, match=r"^silent\.mp4: holds no sound"):
        sound_of(tmp_path / "silent.mp4", 0.7, tmp_path)
    lou.delete()


def test_a_long_recording_becomes_several_clips(run: RunFolder, tmp_path: Path) -> None:
    """20 s by hand: two of ten; a browser's recording, whose file does not say its length, too."""
    person = Person(run, "lou")
    still = np.full((500, 32, 32, 3), 90, np.uint8)
    write_video(tmp_path / "long.mp4", still, None)
    person.keep([tmp_path / "long.mp4", film(tmp_path / "short.mp4")], "yes")
    found = [(each.clip, each.begin, each.end) for each in person.sources()]
    assert found == [("clip01-01", 0.0, 10.0), ("clip01-02", 10.0, 600.0), ("clip02", 0.0, 600.0)]
    person.delete()


@pytest.mark.parametrize("name", ["", "..", "Anna", "a/b", "a b", "-a", "x" * 33, "anna\n"])
def test_names_that_are_no_folders_are_refused(run: RunFolder, name: str) -> None:
    with pytest.raises(PersonError, match="cannot be a folder's"):
        Person(run, name)


def test_the_runs_own_clients_are_not_to_be_had(run: RunFolder) -> None:
    with pytest.raises(PersonError, match=r"^anna is a client of the run; take another name$"):
        Person(run, "anna")


def test_what_is_no_clip_or_too_much_is_refused_before_anything_is_kept(run: RunFolder, tmp_path: Path) -> None:
    person = Person(run, "kim")
    with pytest.raises(PersonError, match="give one clip or more"):
        person.keep([], "yes")
    with pytest.raises(PersonError, match=r"note\.txt: is no video"):
        person.keep([tmp_path / "note.txt"], "yes")
    with pytest.raises(PersonError, match="21 clips are more than 20"):
        person.keep([tmp_path / f"{number}.mp4" for number in range(21)], "yes")
    assert not person.folder.path.exists()


def test_more_than_ten_minutes_and_what_is_no_film_are_refused_before_anything_is_kept(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds here; a browser's recording, which does not say how long it is, counts too."""
    monkeypatch.setattr("fedtalk_ray.service.person.MOST_S", 10.0)
    kim = Person(run, "kim")
    write_video(tmp_path / "six.mp4", np.full((150, 32, 32, 3), 90, np.uint8), None)
    recorded = recording(tmp_path / "eleven.webm", 11)
    assert not format_of(recorded).seconds
    for clips in ([recorded], [tmp_path / "six.mp4"] * 2):
        with pytest.raises(PersonError, match=r"^the clips are longer than .* minutes together; leave some out$"):
            kim.keep(clips, "yes")
    (tmp_path / "cut.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(PersonError, match=r"^cut\.mp4: .*") as told:
        kim.keep([tmp_path / "six.mp4", tmp_path / "cut.mp4"], "yes")
    assert str(tmp_path) not in str(told.value) and not kim.folder.path.exists()
    assert kim.keep([tmp_path / "six.mp4"], "yes") == 1
    with pytest.raises(PersonError, match="leave some out"):
        kim.keep([tmp_path / "six.mp4"], "yes")
    kim.delete()


@pytest.mark.parametrize("spoilt", ["", "{", "[]", "{}", '{"agreed": 1}', "null"])
def test_where_what_she_agreed_to_cannot_be_read_it_is_written_anew(run: RunFolder, spoilt: str) -> None:
    bea = Person(run, "bea")
    bea.agree("yes")
    bea.folder.consent.write_text(spoilt, encoding="utf-8")
    bea.agree("yes")
    assert json.loads(bea.folder.consent.read_text("utf-8"))["agreed"] == "yes"
    bea.delete()


def test_a_bare_model_has_nobody_to_bring_an_adapter_to(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(PersonError, match="go with a run"):
        Person(RunFolder(tmp_path / "model"), "bea").bring(tmp_path / "weights", "Keep it.")
    assert not list(tmp_path.glob("model*"))
