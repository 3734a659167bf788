"""Adapters: zero at first, two that add up, vectors that lose no bit, and folders that stock PEFT loads."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
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


@pytest.mark.parametrize("rank", [3, None])
def test_fresh_adapters_change_nothing_and_all_weights_are_frozen(make_denoiser, make_windows, rank) -> None:
    before = predict(make_denoiser(), make_windows())
    model = adapted(make_denoiser(), rank)
    assert torch.equal(predict(model, make_windows()), before)
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(model.peft_config) == (["identity", "shared"] if rank else ["identity"])


def test_both_adapters_act_together(make_denoiser, make_windows) -> None:
    model, batch = adapted(make_denoiser()), make_windows()
    bare = predict(model, batch)
    shake(shared(model))
    with_shared = predict(model, batch)
    shake(identity(model), seed=1)
    with_both = predict(model, batch)
    shake(shared(model), size=0)
    with_identity = predict(model, batch)
    outputs = [bare, with_shared, with_both, with_identity]
    for index, one in enumerate(outputs):
        for other in outputs[:index]:
            assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [3, None])
def test_an_identity_adapter_of_zeros_rests_where_another_one_acts(make_denoiser, make_windows, rank) -> None:
    model, batch = adapted(make_denoiser(), rank), make_windows()
    if rank:
        shake(shared(model))
    before = predict(model, batch)
    adapters.use_adapters_with_effect(model)
    assert model.active_adapters == (["shared"] if rank else [])
    assert torch.equal(predict(model, batch), before)
    shake(identity(model), seed=1)
    adapters.use_adapters_with_effect(model)
    assert sorted(model.active_adapters) == (["identity", "shared"] if rank else ["identity"])
    assert not torch.allclose(predict(model, batch), before, atol=1e-3)


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
    hearing = [name for name in names["shared"] if ".speech_encoder." in name or ".speech_map." in name]
    assert len(hearing) == 10, "A and B of three convolutions and of a linear layer, and of the map's"
    own = {name.replace(".shared.", ".identity.") for name in names["shared"] if name not in hearing}
    assert own == set(names["identity"]), "what is heard is not a matter of whose face speaks"
    everything = sorted(names["shared"] + names["identity"] + backbone)
    assert everything == sorted(name for name, _ in model.named_parameters())


def test_a_shared_backbone_is_every_weight_of_the_denoiser(make_denoiser) -> None:
    bare = make_denoiser()
    model = adapted(make_denoiser(), rank=None)
    values = np.sort(adapters.to_vector(adapters.shared_parameters(model, "backbone")))
    np.testing.assert_array_equal(values, np.sort(adapters.to_vector(bare.named_parameters())))
    assert not list(adapters.shared_parameters(model, "adapter"))


def test_the_order_is_the_same_in_every_process(make_denoiser) -> None:
    one, other = adapted(make_denoiser(), seed=1), adapted(make_denoiser(seed=5), seed=2)
    for kind in ("adapter", "backbone"):
        order = [[name for name, _ in adapters.shared_parameters(model, kind)] for model in (one, other)]
        assert order[0] == order[1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize("more", [-1, 1])
def test_a_vector_of_another_length_is_refused_and_nothing_changes(make_denoiser, more: int) -> None:
    model = adapted(make_denoiser())
    before = adapters.to_vector(shared(model))
    with pytest.raises(ValueError, match=rf"\({len(before) + more},\) does not fit {len(before)} parameters"):
        adapters.from_vector(shared(model), np.ones(len(before) + more, np.float32))
    assert adapters.to_vector(shared(model)).tobytes() == before.tobytes()


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
    drawn = {name: parameter.detach().clone() for name, parameter in identity(model)}
    vectors = []
    for seed in (3, 3, 4):
        shake(identity(model))
        adapters.reset_identity(model, torch.Generator().manual_seed(seed))
        assert torch.equal(predict(model, make_windows()), start)
        vectors.append(adapters.to_vector(identity(model)))
    assert (vectors[0] == vectors[1]).all() and (vectors[0] != vectors[2]).any()
    assert (adapters.to_vector(shared(model)) == others).all()
    for name, parameter in identity(model):
        if ".lora_A." in name and parameter.numel() > 500:
            assert parameter.std().item() == pytest.approx(drawn[name].std().item(), rel=0.15), name
            assert parameter.abs().max() <= drawn[name].abs().max() * 1.05


def test_the_backbone_comes_out_of_the_wrapping_as_it_went_in(make_denoiser) -> None:
    bare = make_denoiser()
    model = adapted(make_denoiser())
    shake(shared(model))
    state = adapters.backbone_state(model)
    assert list(state) == list(bare.state_dict())
    assert all(torch.equal(state[name], value) for name, value in bare.state_dict().items())
    TalkingHeadDenoiser.from_config(model.get_base_model().config).load_state_dict(state, strict=True)


@pytest.fixture
def stored(make_denoiser, make_windows, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A denoiser and both adapters on disk, and what they predict together."""
    denoiser = make_denoiser()
    denoiser.save_pretrained(str(tmp_path / "denoiser"))
    model = adapted(denoiser)
    shake(shared(model))
    shake(identity(model), seed=1)
    for name in (adapters.SHARED, adapters.IDENTITY):
        adapters.save_adapter(model, name, tmp_path / name)
    return tmp_path, predict(model, make_windows())


def test_an_adapter_folder_is_what_peft_writes_and_nothing_else(stored) -> None:
    folder, _ = stored
    assert sorted(path.name for path in folder.iterdir()) == ["denoiser", "identity", "shared"]
    for name, rank in (("shared", 3), ("identity", 2)):
        assert {path.name for path in (folder / name).iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        assert json.loads((folder / name / "adapter_config.json").read_text())["r"] == rank


def test_stock_peft_loads_both_adapters_and_predicts_the_same(stored, make_windows) -> None:
    folder, expected = stored
    denoiser = TalkingHeadDenoiser.from_pretrained(str(folder / "denoiser")).eval()
    model = peft.PeftModel.from_pretrained(denoiser, str(folder / "shared"), adapter_name="shared")
    only_shared = predict(model, make_windows())
    model.load_adapter(str(folder / "identity"), adapter_name="identity")
    model.base_model.set_adapter(["shared", "identity"])
    assert torch.allclose(predict(model.eval(), make_windows()), expected, atol=1e-6)
    assert (only_shared - expected).abs().max() > 1e-3


def test_a_saved_adapter_fills_an_existing_one(stored, make_denoiser, make_windows) -> None:
    folder, expected = stored
    model = adapted(make_denoiser(), seed=9)
    adapters.load_adapter(model, "shared", folder / "shared")
    assert (predict(model, make_windows()) - expected).abs().max() > 1e-3
    adapters.load_adapter(model, "identity", folder / "identity")
    assert torch.equal(predict(model, make_windows()), expected)


def test_a_folder_without_an_adapter_is_named(make_denoiser, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        adapters.load_adapter(adapted(make_denoiser()), "identity", tmp_path)
    assert str(caught.value) == f"{tmp_path} holds no PEFT adapter"


@pytest.mark.parametrize("other", [{"rank": 5}, {"widths": (16, 24)}, {"blocks_per_level": 2}])
def test_an_adapter_of_another_model_is_refused_in_one_line(make_denoiser, tmp_path: Path, other: dict) -> None:
    model = adapted(make_denoiser(), **other) if "rank" in other else adapted(make_denoiser(**other))
    adapters.save_adapter(model, "shared", tmp_path / "shared")
    with pytest.raises(RunError, match=f"adapter {tmp_path / 'shared'} does not fit") as caught:
        adapters.load_adapter(adapted(make_denoiser()), "shared", tmp_path / "shared")
    assert "\n" not in str(caught.value)


def test_an_adapter_that_covers_only_part_of_the_model_is_refused(make_denoiser, tmp_path: Path) -> None:
    """Some layers would silently keep whatever the client before left in them."""
    adapters.save_adapter(adapted(make_denoiser()), "shared", tmp_path / "shared")
    with pytest.raises(RunError, match="does not fit"):
        adapters.load_adapter(adapted(make_denoiser(blocks_per_level=2)), "shared", tmp_path / "shared")


def test_a_damaged_adapter_is_refused_in_one_line(make_denoiser, tmp_path: Path) -> None:
    model = adapted(make_denoiser())
    adapters.save_adapter(model, "shared", tmp_path / "shared")
    weights = tmp_path / "shared" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(RunError, match=str(tmp_path)) as caught:
        adapters.load_adapter(model, "shared", tmp_path / "shared")
    assert "\n" not in str(caught.value)


def test_ffa_federates_every_b_and_no_a(make_denoiser) -> None:
    model = adapters.with_adapters(make_denoiser(), 2, 4.0, 2)
    whole = [name for name, _ in adapters.shared_parameters(model, "adapter")]
    part = [name for name, _ in adapters.shared_parameters(model, "adapter", "ffa")]
    assert part == [name for name in whole if ".lora_B." in name] and 0 < len(part) < len(whole)


def test_what_turns_sound_into_motion_can_be_left_out(make_denoiser) -> None:
    """Where the phase `speech` has taught it: neither the adapter nor the backbone's weights there are federated."""
    model = adapters.with_adapters(make_denoiser(), 2, 4.0, 2)
    for kind in ("adapter", "backbone"):
        whole = [name for name, _ in adapters.shared_parameters(model, kind)]
        part = [name for name, _ in adapters.shared_parameters(model, kind, speech=False)]
        left_out = [name for name in whole if ".speech_encoder." in name or ".speech_map." in name]
        assert left_out and part == [name for name in whole if name not in left_out]
