"""Adapters: zero at first, two that add up, vectors that lose no bit, and folders that stock PEFT loads."""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtalk_ray.errors import RunError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser


def predict(model: torch.nn.Module, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch.latents, torch.tensor([300, 700]), batch.speech, batch.reference)


def adapted(denoiser: TalkingHeadDenoiser, rank: int | None = 3, seed: int = 0) -> peft.PeftModel:
    torch.manual_seed(seed)
    return adapters.with_adapters(denoiser, rank, 6.0, 2)


def shake(parameters, seed: int = 0, size: float = 0.1) -> None:
    """Gives adapters an effect."""
    vector = adapters.to_vector(list(parameters))
    adapters.from_vector(parameters, np.random.default_rng(seed).normal(0, size, vector.shape).astype(np.float32))


def shared(model: peft.PeftModel) -> list:
    return list(adapters.shared_parameters(model, "adapter"))


def identity(model: peft.PeftModel) -> list:
    return list(adapters.identity_parameters(model))


def test_lora_adds_alpha_over_rank_times_b_a(make_denoiser) -> None:
    model = adapted(make_denoiser())
    shake(shared(model))
    shake(identity(model), seed=1)
    layer = model.get_base_model().mid_block.spatial.time_emb_proj
    inputs = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = inputs @ layer.base_layer.weight.T + layer.base_layer.bias
    for name, scale in (("shared", 6.0 / 3), ("identity", 2.0)):
        expected = expected + scale * inputs @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T
    assert torch.allclose(layer(inputs), expected, atol=1e-4)


def test_selections_are_disjoint_sorted_and_leave_the_backbone(make_denoiser) -> None:
    model = adapted(make_denoiser())
    names = {"shared": [name for name, _ in shared(model)], "identity": [name for name, _ in identity(model)]}
    backbone = [name for name, _ in adapters.shared_parameters(model, "backbone")]
    for chosen in (*names.values(), backbone):
        assert chosen == sorted(chosen) and len(chosen) > 40
    hears = (".speech_encoder.", ".speech_map.")
    hearing = [name for name in names["shared"] if any(part in name for part in hears)]
    assert len(hearing) == 10, "A and B of three convolutions and of a linear layer, and of the map's"
    own = {name.replace(".shared.", ".identity.") for name in names["shared"] if name not in hearing}
    assert own == set(names["identity"]), "what is heard is not a matter of whose face speaks"
    everything = sorted(names["shared"] + names["identity"] + backbone)
    assert everything == sorted(name for name, _ in model.named_parameters())
    ffa = [name for name, _ in adapters.shared_parameters(model, "adapter", "ffa")]
    assert ffa == [name for name in names["shared"] if ".lora_B." in name]
    for kind, whole in (("adapter", names["shared"]), ("backbone", backbone)):
        part = [name for name, _ in adapters.shared_parameters(model, kind, speech=False)]
        assert part == [name for name in whole if not any(hear in name for hear in hears)] != whole


@settings(max_examples=25, deadline=None)
@given(values=arrays(np.float32, 2 * 3 + 4 + 1, elements=st.floats(width=32)))
def test_a_vector_comes_back_to_the_bit(values: np.ndarray) -> None:
    parameters = [
        (name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in (("a", (2, 3)), ("b", (4,)), ("c", (1, 1)))
    ]
    values.flags.writeable = False  # as arrays out of Ray's object store are
    adapters.from_vector(parameters, values)
    assert parameters[0][1].shape == (2, 3) and parameters[0][1][1, 0].item() == pytest.approx(values[3], nan_ok=True)
    vector = adapters.to_vector(parameters)
    assert vector.dtype == np.float32 and vector.tobytes() == values.tobytes()
    with torch.no_grad():
        parameters[1][1].fill_(7)
    assert vector.tobytes() == values.tobytes(), "the vector does not share memory with the model"


def test_a_vector_of_another_length_is_refused_and_nothing_changes() -> None:
    parameters = [("a", torch.nn.Parameter(torch.zeros(2, 3))), ("b", torch.nn.Parameter(torch.zeros(4)))]
    for length in (9, 11):
        with pytest.raises(ValueError, match=rf"\({length},\) does not fit 10 parameters"):
            adapters.from_vector(parameters, np.ones(length, np.float32))
        assert not adapters.to_vector(parameters).any()


def test_only_what_is_chosen_gets_a_gradient(make_denoiser, make_windows) -> None:
    model, batch = adapted(make_denoiser()), make_windows()
    for chosen in (shared(model), identity(model)):
        parameters = adapters.train_only(model, chosen)
        assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
        model.zero_grad(set_to_none=True)
        model(batch.latents, torch.tensor([300, 700]), batch.speech, batch.reference).sum().backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} <= {name for name, _ in chosen}
        assert sum(p.grad.abs().sum() for p in parameters if p.grad is not None) > 0


def test_a_reset_identity_is_zero_in_effect_repeatable_and_drawn_as_pefts(make_denoiser, make_windows) -> None:
    model = adapted(make_denoiser())
    start, others = predict(model, make_windows()), adapters.to_vector(shared(model))
    vectors = []
    for seed in (3, 3, 4):
        shake(identity(model))
        adapters.reset_identity(model, torch.Generator().manual_seed(seed))
        assert torch.equal(predict(model, make_windows()), start)
        vectors.append(adapters.to_vector(identity(model)))
    assert (vectors[0] == vectors[1]).all() and (vectors[0] != vectors[2]).any()
    assert (adapters.to_vector(shared(model)) == others).all()
    for name, parameter in identity(model):
        if ".lora_A." in name:
            # PEFT draws evenly, by Kaiming with a = sqrt(5): up to 1 / sqrt(inputs).
            most = parameter[0].numel() ** -0.5
            assert 0.5 * most < parameter.abs().max() <= most, name


@pytest.fixture(scope="module")
def stored(make_denoiser, make_windows, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A denoiser and both adapters on disk, and what they predict together."""
    tmp_path, denoiser = tmp_path_factory.mktemp("stored"), make_denoiser()
    denoiser.save_pretrained(str(tmp_path / "denoiser"))
    model = adapted(denoiser)
    shake(shared(model))
    shake(identity(model), seed=1)
    for name in (adapters.SHARED, adapters.IDENTITY):
        adapters.save_adapter(model, name, tmp_path / name)
    return tmp_path, predict(model, make_windows())


def test_stock_peft_and_we_load_both_adapters_and_predict_the_same(stored, make_denoiser, make_windows) -> None:
    folder, expected = stored
    config = json.loads((folder / "identity" / "adapter_config.json").read_text())
    assert config["r"] == 2 and {path.suffix for path in (folder / "identity").iterdir()} == {".json", ".safetensors"}
    denoiser = TalkingHeadDenoiser.from_pretrained(str(folder / "denoiser")).eval()
    model = peft.PeftModel.from_pretrained(denoiser, str(folder / "shared"), adapter_name="shared")
    only_shared = predict(model, make_windows())
    model.load_adapter(str(folder / "identity"), adapter_name="identity")
    model.base_model.set_adapter(["shared", "identity"])
    assert torch.allclose(predict(model.eval(), make_windows()), expected, atol=1e-6)
    assert (only_shared - expected).abs().max() > 1e-3
    ours = adapted(make_denoiser(), seed=9)
    for name in ("shared", "identity"):
        adapters.load_adapter(ours, name, folder / name)
    assert torch.equal(predict(ours, make_windows()), expected)


def test_adapters_of_another_model_damaged_and_missing_are_refused_in_one_line(
    stored, make_denoiser, tmp_path: Path
) -> None:
    """One that covers only part of the model too: some layers would keep what the client before left in them."""
    model, part = adapted(make_denoiser(), 5), adapted(make_denoiser(blocks_per_level=2))
    damaged = shutil.copytree(stored[0] / "shared", tmp_path / "damaged") / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:200])
    for wrong, folder, says in (
        (model, stored[0] / "shared", "does not fit"),
        (part, stored[0] / "shared", "does not fit"),
        (part, tmp_path / "damaged", ""),
        (model, tmp_path / "none", "holds no PEFT adapter"),
    ):
        with pytest.raises(RunError, match=rf"{folder}.*{says}") as caught:
            adapters.load_adapter(wrong, "shared", folder)
        assert "\n" not in str(caught.value)
