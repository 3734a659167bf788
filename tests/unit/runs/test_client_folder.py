"""What a client keeps: the right adapter before every round, also after a run that died in the middle of one."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from fedtalk_ray.model import adapters
from fedtalk_ray.runs.client_folder import ClientFolder
from fedtalk_ray.runs.folder import RunFolder


@pytest.fixture(scope="module")
def model(make_denoiser) -> peft.PeftModel:
    torch.manual_seed(0)
    return adapters.with_adapters(make_denoiser(), 2, 4.0, 2)


def set_identity(model: peft.PeftModel, value: float) -> np.ndarray:
    parameters = list(adapters.identity_parameters(model))
    vector = np.full(adapters.to_vector(parameters).shape, value, np.float32)
    adapters.from_vector(parameters, vector)
    return vector


def keep(model: peft.PeftModel, run: Path, number: int, client: str = "s1") -> None:
    folder = RunFolder(run).client(client)
    folder.keep_adapter(number, lambda place: adapters.save_adapter(model, adapters.IDENTITY, place))


def load_identity(model: peft.PeftModel, run: Path, client: str, number: int) -> np.ndarray | None:
    return adapters.load_identity(model, RunFolder(run).client(client).adapter_before(number))


def save(model: peft.PeftModel, run: Path, number: int, value: float | None = None, client: str = "s1") -> None:
    """Writes an adapter that can be told by its value."""
    set_identity(model, number if value is None else value)
    keep(model, run, number, client)


def value_before(model: peft.PeftModel, run: Path, number: int, client: str = "s1") -> float | None:
    set_identity(model, -1)
    vector = load_identity(model, run, client, number)
    if vector is None:
        return None
    assert len(set(vector.tolist())) == 1
    return float(vector[0])


def test_a_client_is_new_until_its_first_round(model, tmp_path: Path) -> None:
    assert RunFolder(tmp_path).client("s1").adapter_before(1) is None
    assert value_before(model, tmp_path, 5) is None
    save(model, tmp_path, 3)
    assert value_before(model, tmp_path, 3) is None
    assert value_before(model, tmp_path, 4) == 3.0


def test_the_newest_adapter_before_a_round_is_the_one(model, tmp_path: Path) -> None:
    for number in (1, 4, 5):
        save(model, tmp_path, number)
    assert [value_before(model, tmp_path, number) for number in (9, 6, 5)] == [5, 5, 4]


def test_the_values_are_loaded_into_the_model_and_returned_to_the_bit(model, tmp_path: Path) -> None:
    parameters = list(adapters.identity_parameters(model))
    vector = np.random.default_rng(0).standard_normal(adapters.to_vector(parameters).shape).astype(np.float32)
    adapters.from_vector(parameters, vector)
    keep(model, tmp_path, 1)
    set_identity(model, 0)
    loaded = load_identity(model, tmp_path, "s1", 2)
    assert loaded is not None and loaded.tobytes() == vector.tobytes() == adapters.to_vector(parameters).tobytes()


def test_the_shared_adapter_is_neither_written_nor_touched(model, tmp_path: Path) -> None:
    shared = list(adapters.shared_parameters(model, "adapter"))
    before = adapters.to_vector(shared)
    save(model, tmp_path, 1)
    load_identity(model, tmp_path, "s1", 2)
    assert adapters.to_vector(shared).tobytes() == before.tobytes()
    weights = peft.load_peft_weights(str(RunFolder(tmp_path).client("s1").newest_adapter))
    assert sum(value.numel() for value in weights.values()) == len(set_identity(model, 0))


def test_repeating_a_round_starts_from_what_it_started_from_and_replaces_its_result(model, tmp_path: Path) -> None:
    """The run died in round 2 after this client was done; round 2 is run again, then round 3."""
    save(model, tmp_path, 1)
    save(model, tmp_path, 2, value=20)
    assert value_before(model, tmp_path, 2) == 1
    save(model, tmp_path, 2, value=21)
    assert value_before(model, tmp_path, 2) == 1
    assert value_before(model, tmp_path, 3) == 21
    save(model, tmp_path, 3)
    assert value_before(model, tmp_path, 3) == 21


def test_a_client_that_sat_out_the_repeated_round_is_where_it_was(model, tmp_path: Path) -> None:
    save(model, tmp_path, 1)
    save(model, tmp_path, 4)
    assert value_before(model, tmp_path, 4) == value_before(model, tmp_path, 3) == 1


def test_going_back_one_more_round_still_finds_the_state(model, tmp_path: Path) -> None:
    """The newest checkpoint was damaged and removed, as its error says: rounds 2 and 3 are run again."""
    for number in (1, 2, 3):
        save(model, tmp_path, number)
    assert value_before(model, tmp_path, 2) == 1


def test_a_run_killed_between_the_two_renames_loses_nothing(model, tmp_path: Path) -> None:
    save(model, tmp_path, 1)
    folder = RunFolder(tmp_path).client("s1").path
    (folder / "identity").rename(folder / "identity.previous")
    (folder / "identity.new").mkdir()
    assert value_before(model, tmp_path, 2) == 1
    save(model, tmp_path, 2)
    assert value_before(model, tmp_path, 3) == 2 and value_before(model, tmp_path, 2) == 1


def test_the_names_on_disk_are_peft_folders_and_nothing_half_written_stays(model, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(model, tmp_path, number)
        save(model, tmp_path, number)
    folder = RunFolder(tmp_path).client("s1").path
    assert folder == tmp_path.with_name(f"{tmp_path.name}.clients") / "s1"
    # Older states may stay as well; a folder that is still being written must not.
    found = {path.name for path in folder.iterdir()}
    assert {"identity", "identity.previous"} <= found
    assert not [name for name in found if name.endswith((".new", ".part", ".old"))]
    for name, number in (("identity", 3), ("identity.previous", 2)):
        assert sorted(path.name for path in (folder / name).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "state.json",
        ]
        assert json.loads((folder / name / "state.json").read_text()) == {"round": number, "participations": number}
        assert ClientFolder.written_after(folder / name) == number


def test_a_disk_that_is_full_leaves_the_state_before(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model, tmp_path, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model, "save_pretrained", full)
        with pytest.raises(Exception, match="No space left on device"):
            save(model, tmp_path, 2)
    assert value_before(model, tmp_path, 9) == 1
    assert sorted(path.name for path in RunFolder(tmp_path).client("s1").path.iterdir()) == ["identity"]


def test_clients_have_folders_of_their_own(model, tmp_path: Path) -> None:
    save(model, tmp_path, 1, value=5, client="s1")
    save(model, tmp_path, 1, value=6, client="s10")
    assert (value_before(model, tmp_path, 2, "s1"), value_before(model, tmp_path, 2, "s10")) == (5, 6)


def test_stock_peft_loads_a_clients_adapter(make_denoiser, make_windows, tmp_path: Path) -> None:
    batch, step = make_windows(), torch.tensor([10, 500])
    alone = adapters.with_adapters(make_denoiser(), None, 4.0, 2)
    save(alone, tmp_path, 1, value=0.05)
    with torch.no_grad():
        expected = alone(batch.latents, step, batch.speech, batch.reference)
        own = peft.PeftModel.from_pretrained(make_denoiser(), str(RunFolder(tmp_path).client("s1").path / "identity"))
        found = own(batch.latents, step, batch.speech, batch.reference)
        without = make_denoiser()(batch.latents, step, batch.speech, batch.reference)
    assert torch.allclose(found, expected, atol=1e-6) and (found - without).abs().max() > 1e-3


def test_whoever_was_personalised_beside_an_older_released_model_loses_no_round(model, tmp_path: Path) -> None:
    """Released after round 5, died after round 9: the personalised adapter is of 5, and the run goes on from 9's."""
    for number in (7, 8, 9):
        save(model, tmp_path, number)
    folder = RunFolder(tmp_path).client("s1")
    took_part = folder.participations(folder.newest_adapter)
    set_identity(model, 50)
    written = folder.keep_adapter(
        5, lambda place: adapters.save_adapter(model, adapters.IDENTITY, place), took_part=False
    )
    assert value_before(model, tmp_path, 10) == 9
    assert value_before(model, tmp_path, 6) == 50, "which speaks for the released model"
    assert folder.participations(written) == took_part == 3
    # Which adapter goes with the released model is the same question, asked of a later round.
    for released, place in ((5, folder.newest_adapter), (9, folder.adapter_before(10))):
        (tmp_path / "adapters").mkdir(exist_ok=True)
        (tmp_path / "adapters" / "released.json").write_text(json.dumps({"round": released}))
        assert RunFolder(tmp_path).identity_adapter("s1") == place
