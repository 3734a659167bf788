"""Personalisation: a client's own adapter learns its own face, and nothing else changes anywhere."""

from itertools import islice
from pathlib import Path
from shutil import rmtree

import pytest

from fedtalk_ray.config import save_config
from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.runs.client_folder import ClientFolder
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.shards.people import people_of
from fedtalk_ray.training.local import released_trainer
from fedtalk_ray.training.personalize import personalize, varied_windows


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("client", ["s1", "s2"])
def test_only_the_clients_own_folder_changes_and_its_loss_falls(run: Path, client: str) -> None:
    before, ticks = contents(run.parent), []
    result = personalize(run, client, 8, ticks.append)
    after = contents(run.parent)
    own = f"run.clients/{client}/"
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed and all(name.startswith(own) for name in changed)
    assert (
        result.folder == RunFolder(run).client(client).newest_adapter and ClientFolder.written_after(result.folder) == 2
    )
    assert result.loss_after < 0.99 * result.loss_before
    assert len(ticks) == 8


def test_somebody_with_two_clips_can_train_for_any_number_of_steps(run: Path) -> None:
    """What is held at once is a few windows of each clip, however many are asked for; none comes twice."""
    config = RunFolder(run).config()
    config = config.model_copy(update={"stream": config.stream.model_copy(update={"memory_mb": 16})})
    trainer = released_trainer(RunFolder(run), config, pick_device("cpu"))
    people = people_of(config)
    assert all(people.training_pieces(who) == len([*people.pieces(who, "train")]) for who in ("s1", "s2"))
    batches = varied_windows(trainer, people, config, "s2", 10**6, 7)
    taken = [batch.latents for batch in islice(batches, 3 * config.stream.shuffle_windows)]
    assert {len(each) for each in taken} == {config.local.batch_size}
    assert len({each.numpy().tobytes() for each in taken}) == len(taken)


def test_it_goes_on_from_the_adapter_that_is_there(run: Path) -> None:
    first = personalize(run, "s1", 2)
    second = personalize(run, "s1", 1)
    assert second.loss_before == pytest.approx(first.loss_after, rel=1e-5)


def test_the_same_run_gives_the_same_adapter_whoever_was_served_before(run: Path) -> None:
    weights = []
    for _ in range(2):
        own = RunFolder(run).client("s2")
        weights.append((personalize(run, "s2", 1).folder / "adapter_model.safetensors").read_bytes())
        personalize(run, "s1", 1)
        assert (own.newest_adapter / "adapter_model.safetensors").read_bytes() == weights[-1]
        rmtree(own.path)
    assert weights[0] == weights[1]


def test_who_or_what_cannot_be_served_is_named(run: Path, make_config, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_config(make_config(), tmp_path / "empty" / "config.yaml")
    for where, client, error, says in (
        (run, "s9", ShardError, "client 's9' is not in the shards; they hold s1, s2, s3"),
        (run, "s3", ShardError, r"client 's3' has 1 clip\(s\) and none to spare: a client needs two"),
        (tmp_path, "s1", RunError, rf"{tmp_path} is no run folder \(no config.yaml\)"),
        (tmp_path / "empty", "s1", RunError, "has no trained model yet; finish a round first"),
    ):
        with pytest.raises(error, match=says):
            personalize(where, client, 1)
        assert client == "s1" or not RunFolder(run).client(client).path.exists()


def test_a_newcomer_is_personalised_from_shards_of_their_own(run: Path, make_shards, tmp_path: Path) -> None:
    make_shards(tmp_path / "own", {"new": [30, 30]})
    with pytest.raises(ShardError, match="client 'new' is not in the shards"):
        personalize(run, "new", 1)
    result = personalize(run, "new", 6, shards=str(tmp_path / "own"))
    assert result.folder == RunFolder(run).client("new").newest_adapter and result.loss_after < result.loss_before
