"""Personalisation: a client's own adapter learns its own face, and nothing else changes anywhere."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.config import save_config
from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.model import adapters
from fedtalk_ray.model import own_hearing as hearing_files
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.own_mouth import FILE, OwnMouth, load_own_mouth
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline
from fedtalk_ray.model.released import load_released, release_model
from fedtalk_ray.model.schedule import make_scheduler
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.client_folder import ClientFolder
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.shards.people import people_of
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.local import LocalTrainer, released_trainer
from fedtalk_ray.training.personalize import personalize, varied_windows
from fedtalk_ray.training.phases.units import moments, set_units


@pytest.fixture
def run(make_shards, make_config, wake_zeros, tmp_path: Path) -> Path:
    """A run after round 2, as `fedtalk train` leaves it, whose client s1 has an adapter and s2 has none."""
    from fedtalk_ray.model.autoencoder import load_autoencoder

    make_shards(tmp_path / "shards", {"s1": [40, 30, 30], "s2": [30, 30], "s3": [30]})
    config = make_config(run=str(tmp_path / "run"), shards=str(tmp_path / "shards"))
    torch.manual_seed(0)
    denoiser = TalkingHeadDenoiser(latent_channels=16, latent_size=8, widths=(16, 32), window=4).eval()
    wake_zeros(denoiser)
    pipeline = TalkingHeadPipeline(load_autoencoder("patch"), denoiser, make_scheduler("sample"))
    trainer = LocalTrainer(pipeline, config)
    run = tmp_path / "run"
    run.mkdir()
    save_config(config, run / "config.yaml")
    save_checkpoint(
        run / "checkpoints", Checkpoint(2, adapters.to_vector(trainer.shared()), {}), config_fingerprint(config)
    )
    release_model(RunFolder(run), 2, pipeline, trainer.model, "adapter")
    RunFolder(run).client("s1").keep_adapter(
        2, lambda place: adapters.save_adapter(trainer.model, adapters.IDENTITY, place)
    )
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("client", ["s1", "s2"])
def test_only_the_clients_own_folder_changes_and_its_loss_falls(run: Path, client: str) -> None:
    before, ticks = contents(run.parent), []
    result = personalize(run, client, 15, ticks.append)
    after = contents(run.parent)
    own = f"run.clients/{client}/"
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed and all(name.startswith(own) for name in changed)
    assert (
        result.folder == RunFolder(run).client(client).newest_adapter and ClientFolder.written_after(result.folder) == 2
    )
    assert result.loss_after < 0.97 * result.loss_before
    assert len(ticks) == 15


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
    first = personalize(run, "s1", 4)
    second = personalize(run, "s1", 1)
    assert second.loss_before == pytest.approx(first.loss_after, rel=1e-5)


def test_the_same_run_gives_the_same_adapter(run: Path) -> None:
    weights = []
    for _ in range(2):
        personalize(run, "s2", 3)
        weights.append((RunFolder(run).client("s2").newest_adapter / "adapter_model.safetensors").read_bytes())
        for path in sorted(RunFolder(run).client("s2").path.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("client", "says"),
    [
        ("s9", "client 's9' is not in the shards; they hold s1, s2, s3"),
        ("s3", r"client 's3' has 1 clip\(s\) and none to spare: a client needs two"),
    ],
)
def test_a_client_that_cannot_be_served_is_named(run: Path, client: str, says: str) -> None:
    with pytest.raises(ShardError, match=says):
        personalize(run, client, 1)
    assert not RunFolder(run).client(client).path.exists()


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"{tmp_path} is no run folder \(no config.yaml\)"):
        personalize(tmp_path, "s1", 1)


def test_a_run_without_a_finished_round_is_named(make_config, tmp_path: Path) -> None:
    save_config(make_config(), tmp_path / "config.yaml")
    with pytest.raises(RunError, match="has no trained model yet; finish a round first"):
        personalize(tmp_path, "s1", 1)


def test_the_adapter_of_another_client_plays_no_part(run: Path) -> None:
    lone = personalize(run, "s2", 3)
    theirs = np.frombuffer((lone.folder / "adapter_model.safetensors").read_bytes(), np.uint8)
    personalize(run, "s1", 3)
    assert (np.frombuffer((lone.folder / "adapter_model.safetensors").read_bytes(), np.uint8) == theirs).all()


def test_a_newcomer_is_personalised_from_shards_of_their_own(run: Path, make_shards, tmp_path: Path) -> None:
    make_shards(tmp_path / "own", {"new": [30, 30]})
    with pytest.raises(ShardError, match="client 'new' is not in the shards"):
        personalize(run, "new", 1)
    result = personalize(run, "new", 15, shards=str(tmp_path / "own"))
    assert result.folder == RunFolder(run).client("new").newest_adapter and result.loss_after < result.loss_before


def test_of_her_own_clips_nothing_is_told_but_the_references_lips_to_who_takes_them(run: Path) -> None:
    config = RunFolder(run).config()
    people, trainer = people_of(config), released_trainer(RunFolder(run), config, pick_device("cpu"))
    base = bare_denoiser(trainer.model)

    def drawn() -> list[WindowBatch]:
        return list(islice(varied_windows(trainer, people, config, "s1", 60, 7), 60))

    assert {batch.lips.shape[-1] for batch in drawn()} == {0}
    set_units(base, moments(list(people.pieces("s1", "train"))))
    base.see_reference_lips()
    windows = drawn()
    assert all(bool(batch.lips.isnan().all()) for batch in windows)
    known = ~torch.cat([batch.reference_lips for batch in windows]).isnan()
    assert 0.3 < float(known.all(1).float().mean()) < 0.7
    assert not any(batch.bent.shape[2] for batch in windows)


def test_who_paints_on_a_bent_reference_is_personalised_on_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, and where the loss is taken before and after."""
    config = RunFolder(run).config()
    people, trainer = people_of(config), released_trainer(RunFolder(run), config, pick_device("cpu"))
    base = bare_denoiser(trainer.model)
    set_units(base, moments(list(people.pieces("s1", "train"))))
    base.see_reference_lips()
    channels = int(base.config.latent_channels)
    base.bend_latents(4, channels - 2, 1)
    windows = list(islice(varied_windows(trainer, people, config, "s1", 20, 7), 20))
    for batch in windows:
        told = ~batch.reference_lips[:, 0].isnan()
        moved = (batch.bent - batch.reference[:, None]).abs().amax((1, 2, 3, 4)) > 1e-3
        assert batch.bent.shape == batch.latents.shape and torch.equal(moved, told)
    judged = []
    monkeypatch.setattr("fedtalk_ray.training.personalize.released_trainer", lambda *_: trainer)
    monkeypatch.setattr(trainer, "held_out_loss", lambda held_out, **_: judged.append(held_out) or 1.0)
    personalize(run, "s1", 1)
    assert [batch.reference_points.shape[1:] for batch in judged] == [(68, 2)] * 2


def test_who_is_personalised_speaks_with_her_own_open_mouth_and_nobody_else_does(run: Path) -> None:
    config, folder = RunFolder(run).config(), RunFolder(run)
    people, trainer = people_of(config), released_trainer(folder, config, pick_device("cpu"))
    base = bare_denoiser(trainer.model)
    set_units(base, moments(list(people.pieces("s1", "train"))))
    base.bend_latents(4, int(base.config.latent_channels) - 2, 1)
    base.show_open_mouths()
    base.open_mouth.colours[0] = 0.5
    release_model(folder, 2, trainer.pipeline, trainer.model, "adapter", anew=True)
    written = personalize(run, "s2", 1).folder
    assert load_own_mouth(written, len(base.lip_std)) is not None
    hers, theirs = (bare_denoiser(load_released(folder, client).denoiser).open_mouth for client in ("s2", "s1"))
    assert isinstance(hers.own, OwnMouth) and theirs.own is None
    assert bare_denoiser(load_released(folder).denoiser).open_mouth.own is None
    (written / FILE).write_bytes(b"")
    with pytest.raises(RunError, match=rf"{FILE} is damaged"):
        load_released(folder, "s2")


def test_who_is_personalised_moves_her_lips_by_a_hearing_of_her_own_and_nobody_else_does(run: Path) -> None:
    folder, config = RunFolder(run), RunFolder(run).config()
    pipeline = load_pipeline(str(folder.pipeline))
    base = pipeline.denoiser
    set_units(base, moments(list(people_of(config).pieces("s1", "train"))))
    base.bend_latents(4, int(base.config.latent_channels) - 2, 1)
    base.hear_by(base.config.speech, int(base.config.speech_hops), int(base.config.mel_bins), linear=True)
    model = LocalTrainer(pipeline, config).model
    release_model(folder, 2, pipeline, model, "adapter", anew=True)
    folder.client("s1").keep_adapter(2, lambda place: adapters.save_adapter(model, adapters.IDENTITY, place))
    written = personalize(run, "s2", 1).folder
    own = hearing_files.load_own_hearing(written, len(base.lip_std), base.speech_encoder.linear1.in_features)
    assert own is not None and own.weight.any()
    hers, others, everybodys = (
        bare_denoiser(load_released(folder, client).denoiser).speech_encoder.linear1 for client in ("s2", "s1", None)
    )
    lips = len(own.bias)
    assert torch.allclose(hers.weight[:lips], everybodys.weight[:lips] + own.weight, atol=1e-6)
    assert torch.allclose(hers.bias[:lips], everybodys.bias[:lips] + own.bias, atol=1e-6)
    assert torch.equal(others.weight, everybodys.weight) and torch.equal(others.bias, everybodys.bias)
    (written / hearing_files.FILE).write_bytes(b"")
    with pytest.raises(RunError, match=rf"{hearing_files.FILE} is damaged"):
        load_released(folder, "s2")
