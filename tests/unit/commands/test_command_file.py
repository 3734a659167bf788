"""Options from a YAML file: they become the command line that a person would have typed."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from fedtalk_ray.commands.cli import app, main
from fedtalk_ray.commands.command_file import expanded
from fedtalk_ray.errors import ConfigError

GROUP: Any = get_command(app)


def test_keys_become_options_and_the_command_line_comes_after(tmp_path: Path) -> None:
    recipe = tmp_path / "prepare.yaml"
    tree = {"corpus": "grid", "unseen": ["s2", "s9"], "max-clips": 3, "overwrite": True, "only": None}
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert expanded(GROUP, ["prepare", str(recipe), "--out", "x"]) == [
        *("prepare", "--corpus", "grid", "--unseen", "s2,s9", "--max-clips", "3", "--overwrite", "--out", "x")
    ]
    recipe.write_text("loss: [tdc=0, sync=0.05]\nfrom: fedtalk-tiny\noverwrite: false\n")
    assert expanded(GROUP, ["pretrain", str(recipe)]) == [
        *("pretrain", "--loss", "tdc=0", "--loss", "sync=0.05", "--from", "fedtalk-tiny")
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("corpsu: grid", "unknown key 'corpsu'; the nearest valid key is 'corpus'"),
        ("overwrite: perhaps", "overwrite is 'perhaps'; it takes true or false"),
        ("corpus: {a: 1}", "corpus is {'a': 1}; it takes a value, or a list of values"),
        ("- corpus", "must hold `key: value` lines"),
    ],
)
def test_what_no_option_takes_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        expanded(GROUP, ["prepare", str(tmp_path / "r.yaml")])
    assert says in str(caught.value)


def test_the_command_reads_its_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(f"corpus: grid\nroot: {tmp_path}/none\nout: {tmp_path}/shards\n")
    with pytest.raises(SystemExit):
        main(["prepare", str(tmp_path / "r.yaml")])
    assert f"corpus folder {tmp_path / 'none'} does not exist" in capsys.readouterr().err
