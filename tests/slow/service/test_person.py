"""What the page says of somebody's clips, how long recordings are cut, and whose names may be taken."""

from pathlib import Path

import numpy as np
import pytest

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import read_audio
from fedtalk_ray.page.turns import sound_of
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.person import Checked, Person, PersonError


def film(path: Path, light: float = 1.0, loud: float = 1.0, moves: bool = True, seconds: float = 1.2) -> Path:
    """A drawn person's clip, as good or bad as is asked for."""
    drawn = render_clip(40, 0, size=128, seconds=seconds).video
    frames = drawn.frames if moves else drawn.frames[:1].repeat(len(drawn.frames), 0)
    write_video(path, (frames * light).clip(0, 255).astype(np.uint8), drawn.audio * loud)
    return path


def test_each_clip_is_looked_at_and_told_what_to_do_better(own_run: RunFolder, tmp_path: Path) -> None:
    person = Person(own_run, "ina")
    given = [
        film(tmp_path / "good.mp4"),
        film(tmp_path / "dark and silent.mp4", light=0.25, loud=0.0),
        film(tmp_path / "still and loud.mp4", moves=False, loud=60.0),
        tmp_path / "wall.mp4",
    ]
    write_video(given[3], np.full((30, 128, 128, 3), 120, np.uint8), np.zeros(19_200, np.float32))
    assert person.keep(given, "yes") == 4
    looked = person.prepare()
    assert [each.clip for each in looked] == ["clip01", "clip02", "clip03", "clip04"]
    assert [each.usable for each in looked] == [True, True, True, False]
    assert all(each.seconds == pytest.approx(1.2, abs=0.05) for each in looked[:3])
    assert [each.advice for each in looked] == [
        (),
        ("it is dark: turn to a window or a lamp", "hardly anything is heard: move nearer to the microphone"),
        (
            "the sound is too loud for the microphone: move away from it",
            "the lips hardly move: speak while you record, and keep your hands off your mouth",
        ),
        ("not used: no face was followed in it, or it is under a second",),
    ]
    # Another visit adds to what is there; a long recording becomes several clips.
    write_video(tmp_path / "long.mp4", np.full((500, 32, 32, 3), 90, np.uint8), None)
    assert person.keep([tmp_path / "long.mp4"], "yes") == 5
    found = [(each.clip, each.begin, each.end) for each in person.sources()][3:]
    assert found == [("clip04", 0.0, 600.0), ("clip05-01", 0.0, 10.0), ("clip05-02", 10.0, 600.0)]
    person.delete()
    assert not person.folder.path.exists() and own_run.clients() == ["anna"]


def test_who_is_deleted_while_work_goes_on_leaves_nothing_and_may_come_back(own_run: RunFolder, tmp_path: Path) -> None:
    person = Person(own_run, "max")
    person.keep([film(tmp_path / "one.mp4"), film(tmp_path / "two.mp4")], "yes")

    def work() -> None:
        person.delete()
        person.folder.newest_adapter.mkdir(parents=True)

    with pytest.raises(PersonError, match=r"^max was deleted meanwhile$"):
        person.while_she_stays(work)
    assert not person.folder.path.exists()
    assert Person(own_run, "max").keep([tmp_path / "one.mp4"], "yes") == 1
    person.delete()


def test_she_is_shown_by_the_first_clip_that_is_used(own_run: RunFolder, tmp_path: Path) -> None:
    lou = Person(own_run, "lou")
    lou.keep([film(tmp_path / f"{name}.mp4") for name in "abc"], "yes")
    looked = [Checked("clip01", 0.0, False), Checked("clip02-01", 8.0, False), Checked("clip02-02", 8.0, True)]
    assert lou.shown_by(looked).name == "clip02.mp4"
    with pytest.raises(PersonError, match="none of lou's clips is used"):
        lou.shown_by(looked[:2])
    heard = read_audio(sound_of(lou.shown_by(looked), 0.7, tmp_path))
    whole = read_audio(tmp_path / "b.mp4")[:11_200]
    assert len(heard) == 11_200 and np.abs(heard - whole).max() < 1e-3
    lou.delete()


@pytest.mark.parametrize("name", ["", "..", "Anna", "a/b", "x" * 33, "bea\n"])
def test_names_that_are_no_folders_are_refused(own_run: RunFolder, name: str) -> None:
    with pytest.raises(PersonError, match="cannot be a folder's"):
        Person(own_run, name)
    with pytest.raises(PersonError, match=r"^anna is a client of the run; take another name$"):
        Person(own_run, "anna")


def test_too_much_and_what_is_no_film_are_refused_before_anything_is_kept(
    own_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedtalk_ray.service.person.MOST_S", 10.0)
    kim = Person(own_run, "kim")
    write_video(tmp_path / "six.mp4", np.full((150, 32, 32, 3), 90, np.uint8), None)
    with pytest.raises(PersonError, match=r"^the clips are longer than .* minutes together; leave some out$"):
        kim.keep([tmp_path / "six.mp4"] * 2, "yes")
    for clips, why in ([], "one clip or more"), (["note.txt"], "is no video"), (["x.mp4"] * 21, "21 clips are more"):
        with pytest.raises(PersonError, match=why):
            kim.keep([tmp_path / name for name in clips], "yes")
    (tmp_path / "cut.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(PersonError, match=r"^cut\.mp4: .*") as told:
        kim.keep([tmp_path / "six.mp4", tmp_path / "cut.mp4"], "yes")
    assert str(tmp_path) not in str(told.value) and not kim.folder.path.exists()
