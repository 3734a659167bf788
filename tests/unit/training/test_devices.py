"""Which device models compute on."""

import pytest
import torch

from fedtalk_ray.model.device import has_bf16, pick_device


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert (pick_device(), pick_device("cpu"), pick_device("cuda:1")) == (expected, "cpu", "cuda:1")


def test_a_cpu_has_bf16_where_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, expected in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda said=said: said, raising=False)
        assert has_bf16("cpu") is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bf16("cpu"), "an older torch does not say"
