"""The command: help with an example everywhere, and for bad input one clear line, status 1, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedtalk_ray.commands.cli import app, main

COMMANDS = (
    *("demo", "prepare", "pretrain", "train", "personalize", "generate", "evaluate", "report", "compare", "corrupt"),
    *("submit", "status", "verify", "fetch", "app"),
)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command and returns its single line on stderr."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("fedtalk: "), printed.err
        return lines[0]

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"fedtalk {command}" in " ".join(result.output.split())


def test_a_missing_corpus_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("prepare", "--corpus", "grid", "--root", tmp_path / "none", "--out", tmp_path / "shards")
    assert f"corpus folder {tmp_path / 'none'} does not exist" in line
    assert not list(tmp_path.iterdir())


def test_an_empty_corpus_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "corpus" / "a").mkdir(parents=True)
    line = refused("prepare", "--corpus", "folder", "--root", tmp_path / "corpus", "--out", tmp_path / "shards")
    assert "holds no <identity>/<clip>" in line


def test_a_corpus_without_a_root_and_an_unknown_one_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "needs --root" in refused("prepare", "--corpus", "grid", "--out", tmp_path / "shards")
    assert "known: crema-d, folder, grid" in refused("prepare", "--corpus", "grit", "--out", tmp_path / "shards")


def test_an_unknown_key_is_answered_with_the_nearest(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run: r\nshards: s\npretrained: p\nlocal: {stepz: 3}\n")
    assert "unknown key 'local.stepz'; the nearest valid key is 'steps'" in refused("train", tmp_path / "c.yaml")


def test_missing_shards_are_named_with_the_command_that_makes_them(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"run: {tmp_path}/r\nshards: {tmp_path}/none\npretrained: p\n")
    assert "fedtalk prepare" in refused("train", tmp_path / "c.yaml")
    assert "fedtalk prepare" in refused("pretrain", "--shards", tmp_path / "none", "--out", tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_run_that_does_not_exist_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert "is no run folder" in refused("personalize", "--run", none, "--client", "s1")
    clip = ("--reference", "a.png", "--audio", "a.wav", "--out", tmp_path / "o.mp4")
    assert "does not exist" in refused("generate", "--run", none, *clip)
    assert "does not exist" in refused("evaluate", "--run", none, "--shards", none, "--out", tmp_path / "m.json")


def test_a_runs_pipeline_alone_is_not_taken_for_the_run(refused: Callable[..., str], tmp_path: Path) -> None:
    """It lacks the adapters, and what was promised to whom: single clients' clips would be told."""
    run = tmp_path / "run"
    for name in ("config.yaml", "pipeline/model_index.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")
    shards, sound, face = tmp_path / "none", tmp_path / "said.wav", tmp_path / "face.png"
    sound.write_bytes(b"")
    face.write_bytes(b"")
    for command in (
        ("evaluate", "--shards", shards, "--out", tmp_path / "m.json"),
        ("generate", "--reference", face, "--audio", sound, "--out", tmp_path / "o.mp4"),
    ):
        line = refused(*command, "--run", run / "pipeline")
        assert f"{run / 'pipeline'} is only a part of the run" in line and line.endswith(f"give {run}")


def test_a_demo_folder_in_use_is_refused_before_any_work(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert "already exists" in refused("demo", "--out", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_one_bad_split_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("evaluate", "--run", "r", "--shards", "s", "--out", tmp_path / "m.json", "--split", "train")
    assert "known: val, test, held-out" in line


def test_a_size_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    from fedtalk_ray.corpora.listing import CorpusError, list_synthetic
    from fedtalk_ray.shards.prepare import prepare

    eighth = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    eighth.save_pretrained(tmp_path / "eighth")
    cases = (("patch", 50, 16), ("lower-face", 64, 48), ("lower-face", 48, 48), (str(tmp_path / "eighth"), 144, 32))
    for encoder, size, step in cases:
        with pytest.raises(CorpusError, match=f"--size {size}: must be a multiple of {step}, at least {2 * step}"):
            prepare("synthetic", list_synthetic(2, 2, 0), tmp_path / "shards", size=size, autoencoder=encoder)


def test_an_identity_that_the_corpus_lacks_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("prepare", "--corpus", "synthetic", "--identities", 2, "--only", "id0007", "--out", tmp_path / "out")
    assert "--only id0007: no such identity; the corpus has id0000, id0001" in line


def test_unseen_is_a_name_where_the_corpus_has_it_and_else_a_number() -> None:
    """B15: CREMA-D's people are called 1001, 1002, ..., and --unseen 1001 held a thousand people back."""
    from fedtalk_ray.shards.prepare import parse_unseen, unseen_names

    people = [str(number) for number in range(1001, 1092)]
    assert parse_unseen("1001", people) == ["1001"] and unseen_names(["1001"], people) == {"1001"}
    assert parse_unseen("1001, 1002", people) == ["1001", "1002"]
    assert parse_unseen("2", people) == 2 and unseen_names(2, people) == {"1090", "1091"}
    assert parse_unseen("0", people) == 0 and unseen_names(0, people) == set()
    assert parse_unseen("", people) == [] and unseen_names([], people) == set()
    # B19: a test set can be prepared alone.
    assert unseen_names(91, people) == unseen_names(people, people) == set(people)


def test_pretraining_names_a_wrong_loss_and_a_wrong_preset(refused: Callable[..., str], tmp_path: Path) -> None:
    arguments = ("pretrain", "--shards", tmp_path / "none", "--out", tmp_path / "out")
    assert "loss: unknown key 'snyc'; the nearest valid key is 'sync'" in refused(*arguments, "--loss", "snyc=1")
    assert "loss: tdc is -1: " in refused(*arguments, "--loss", "tdc=-1")
    assert "unknown preset 'bse'" in refused(*arguments, "--preset", "bse")


def test_a_corpus_with_a_test_set_of_its_own_says_who_is_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedtalk_ray.corpora import listing as corpora
    from fedtalk_ray.shards import prepare

    for name in ("trainval/abc/50001.mp4", "trainval/abc/50002.mp4", "trainval/abd/50001.mp4", "test/xyz/00001.mp4"):
        (tmp_path / "lrs3" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lrs3" / name).write_bytes(b"")
    asked: list[tuple[list[str], object]] = []

    def stop(corpus: str, sources: list[corpora.ClipSource], out: Path, *, unseen: object, **_: object) -> None:
        asked.append(([source.clip for source in sources], unseen))
        raise corpora.CorpusError("stop here")

    monkeypatch.setattr(prepare, "prepare", stop)
    monkeypatch.setattr("fedtalk_ray.actors.connection.connect", lambda address: None)
    command = ["prepare", "--corpus", "lrs3", "--root", str(tmp_path / "lrs3"), "--out", str(tmp_path / "shards")]
    for more in ([], ["--unseen", "abd", "--max-clips", "1"], ["--unseen", "0"]):
        with pytest.raises(SystemExit):
            main([*command, *more])
    # The corpus's own set is the default of `prepare` itself, so nothing is handed over for it.
    assert asked == [
        (["50001", "50002", "50001", "00001"], None),
        (["50001", "50001", "00001"], ["abd"]),
        (["50001", "50002", "50001", "00001"], 0),
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["unseen: the 1 identities of lrs3's own test set (--unseen says otherwise)"]


def test_a_corpus_folder_one_level_off_is_answered_with_the_right_one(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "Actor_01").mkdir()
    (tmp_path / "Actor_01" / "01-01-03-01-02-01-01.mp4").write_bytes(b"")
    wrong = tmp_path / "Actor_01"
    line = refused("prepare", "--corpus", "ravdess", "--root", wrong, "--out", tmp_path / "shards")
    assert line.endswith(f"but {tmp_path} does: give --root {tmp_path}")
