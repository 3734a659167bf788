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


OUT = ("--out", "{0}/out")
CLIP = ("--reference", "a.png", "--audio", "a.wav", "--out", "{0}/o.mp4")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prepare", "--corpus", "grid", "--root", "{0}/none", *OUT), "corpus folder {0}/none does not exist"),
        (("prepare", "--corpus", "folder", "--root", "{0}/corpus", *OUT), "holds no <identity>/<clip>"),
        (("prepare", "--corpus", "grid", *OUT), "needs --root"),
        (("prepare", "--corpus", "grit", *OUT), "known: crema-d, folder, grid"),
        (("prepare", "--corpus", "ravdess", "--root", "{0}/Actor_01", *OUT), "but {0} does: give --root {0}"),
        (
            ("prepare", "--corpus", "synthetic", "--identities", "2", "--only", "id0007", *OUT),
            "--only id0007: no such identity; the corpus has id0000, id0001",
        ),
        (("train", "{0}/wrong.yaml"), "unknown key 'local.stepz'; the nearest valid key is 'steps'"),
        (("train", "{0}/c.yaml"), "fedtalk prepare"),
        (("pretrain", "--shards", "{0}/none", *OUT), "fedtalk prepare"),
        (("pretrain", "--shards", "{0}/none", *OUT, "--loss", "snyc=1"), "loss: unknown key 'snyc'; the nearest"),
        (("pretrain", "--shards", "{0}/none", *OUT, "--loss", "tdc=-1"), "loss: tdc is -1: "),
        (("pretrain", "--shards", "{0}/none", *OUT, "--preset", "bse"), "unknown preset 'bse'"),
        (("personalize", "--run", "{0}/none", "--client", "s1"), "is no run folder"),
        (("generate", "--run", "{0}/none", *CLIP), "does not exist"),
        (("evaluate", "--run", "{0}/none", "--shards", "{0}/none", *OUT), "does not exist"),
        (("evaluate", "--run", "r", "--shards", "s", *OUT, "--split", "train"), "known: val, test, held-out"),
        (("demo", "--out", "{0}"), "already exists"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    refused: Callable[..., str], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "corpus" / "a").mkdir(parents=True)
    (tmp_path / "Actor_01").mkdir()
    (tmp_path / "Actor_01" / "01-01-03-01-02-01-01.mp4").touch()
    places = f"run: {tmp_path}/r\nshards: {tmp_path}/none\npretrained: p\n"
    (tmp_path / "c.yaml").write_text(places)
    (tmp_path / "wrong.yaml").write_text(f"{places}local: {{stepz: 3}}\n")
    before = sorted(tmp_path.rglob("*"))
    assert said.format(tmp_path) in refused(*(each.format(tmp_path) for each in arguments))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_runs_pipeline_alone_is_not_taken_for_the_run(refused: Callable[..., str], tmp_path: Path) -> None:
    """It lacks the adapters, and what was promised to whom: single clients' clips would be told."""
    run = tmp_path / "run"
    for name in ("config.yaml", "pipeline/model_index.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")
    line = refused("evaluate", "--shards", tmp_path, "--out", tmp_path / "m.json", "--run", run / "pipeline")
    assert f"{run / 'pipeline'} is only a part of the run" in line and line.endswith(f"give {run}")


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
    for more in ([], ["--unseen", "abd", "--max-clips", "1"]):
        with pytest.raises(SystemExit):
            main([*command, *more])
    # The corpus's own set is the default of `prepare` itself, so nothing is handed over for it.
    assert asked == [(["50001", "50002", "50001", "00001"], None), (["50001", "50001", "00001"], ["abd"])]
    assert capsys.readouterr().out.count("unseen: the 1 identities of lrs3's own test set") == 1


def test_a_size_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    from fedtalk_ray.corpora.listing import CorpusError, list_synthetic
    from fedtalk_ray.shards.prepare import prepare

    for encoder, size, step in (("patch", 50, 16), ("lower-face", 64, 48), ("lower-face", 48, 48)):
        with pytest.raises(CorpusError, match=f"--size {size}: must be a multiple of {step}, at least {2 * step}"):
            prepare("synthetic", list_synthetic(2, 2, 0), tmp_path / "shards", size=size, autoencoder=encoder)
