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


def test_a_client_has_the_newest_adapter_before_a_round(model, tmp_path: Path) -> None:
    assert RunFolder(tmp_path).client("s1").adapter_before(1) is None
    assert value_before(model, tmp_path, 5) is None
    save(model, tmp_path, 3)
    assert value_before(model, tmp_path, 3) is None
    assert value_before(model, tmp_path, 4) == 3.0
    save(model, tmp_path, 1, value=6, client="s10")
    assert value_before(model, tmp_path, 9) == 3.0 and value_before(model, tmp_path, 2, "s10") == 6.0
    for number in (4, 5):
        save(model, tmp_path, number)
    assert [value_before(model, tmp_path, number) for number in (9, 6, 5, 4)] == [5, 5, 4, 3]


def test_its_own_values_alone_are_kept_and_loaded_to_the_bit(model, tmp_path: Path) -> None:
    shared = adapters.to_vector(list(adapters.shared_parameters(model, "adapter")))
    parameters = list(adapters.identity_parameters(model))
    vector = np.random.default_rng(0).standard_normal(adapters.to_vector(parameters).shape).astype(np.float32)
    adapters.from_vector(parameters, vector)
    keep(model, tmp_path, 1)
    set_identity(model, 0)
    loaded = load_identity(model, tmp_path, "s1", 2)
    assert loaded is not None and loaded.tobytes() == vector.tobytes() == adapters.to_vector(parameters).tobytes()
    assert adapters.to_vector(list(adapters.shared_parameters(model, "adapter"))).tobytes() == shared.tobytes()
    weights = peft.load_peft_weights(str(RunFolder(tmp_path).client("s1").newest_adapter))
    assert sum(value.numel() for value in weights.values()) == len(vector)


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


def test_a_run_killed_between_the_two_renames_loses_nothing(model, tmp_path: Path) -> None:
    save(model, tmp_path, 1)
    folder = RunFolder(tmp_path).client("s1").path
    (folder / "identity").rename(folder / "identity.previous")
    (folder / "identity.new").mkdir()
    assert value_before(model, tmp_path, 2) == 1
    save(model, tmp_path, 2)
    assert value_before(model, tmp_path, 3) == 2 and value_before(model, tmp_path, 2) == 1
    assert not [path for path in folder.iterdir() if path.suffix in (".new", ".part", ".old")], "half written"
    for name, number in (("identity", 2), ("identity.previous", 1)):
        assert json.loads((folder / name / "state.json").read_text()) == {"round": number, "participations": number}
        assert ClientFolder.written_after(folder / name) == number


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
