"""A caller that asks a slot out of order: what one client's training left in the model is never shown to anybody."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.actors.slot import SlotProcess
from fedtalk_ray.errors import RunError, TrainingError
from fedtalk_ray.federation.roster import RosterFile, extend_roster
from fedtalk_ray.federation.secure_aggregator import clip_norm_of
from fedtalk_ray.messages import Plan
from fedtalk_ray.privacy import protocol
from fedtalk_ray.privacy.keys import SigningKey
from fedtalk_ray.runs.checkpoints import config_digest
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.training.backbone import untrained_pipeline

WHO = list("abcdefgh")


class Caller:
    """Whoever runs the server: it signs plans and may ask all that a slot answers.

    In the phase `sharpness`, which comes after one round of `faces`.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.run, self.config, self._server = RunFolder(Path(config.run)), config, SigningKey.generate()
        for place in (self.run.clients_folder, self.run.checkpoints):
            place.mkdir(parents=True)
        self.slot = SlotProcess(ClientSlot, config, "slot")
        self.faces = self.slot.call("start")
        self.shared = self.slot.call("enter", "sharpness", {"faces": self.faces})
        extend_roster(self.run.roster, self._server.public, self.slot.call("enrol", WHO))

    def plan(self, exchange: int = 1, shared: np.ndarray | None = None) -> bytes:
        name = RosterFile(self.run.roster).read()[1]
        digest = hashlib.sha256((self.shared if shared is None else shared).tobytes()).digest()
        clip_norm = clip_norm_of(self.config, 2, len(self.shared))
        who = tuple(WHO)
        backbone = self.slot.call("backbone")
        plan = Plan(name, exchange, 2, backbone, digest, config_digest(self.config), clip_norm, who)
        return protocol.seal_frame(self._server, protocol.run_context(name), plan)

    def weights(self) -> dict[str, torch.Tensor]:
        pipeline = self.slot._held._model.pipeline
        parts = {"denoiser": pipeline.denoiser, "decoder": pipeline.autoencoder}
        return {
            f"{part}.{name}": v.clone() for part, module in parts.items() for name, v in module.state_dict().items()
        }


@pytest.fixture
def make_caller(
    tmp_path: Path, make_config: Callable[..., TrainConfig], make_shards: Callable
) -> Callable[..., Caller]:
    clips = {who: [30, 30, 30] for who in (*WHO, "x")}
    manifest = make_shards(tmp_path / "shards", clips, 48, unseen=("x",), encoder="lower-face")
    untrained_pipeline(manifest, widths=(16, 32), window=4).save_pretrained(str(tmp_path / "pretrained"))

    def make(run: str = "run", **settings: Any) -> Caller:
        places = {"run": str(tmp_path / run)} | {name: str(tmp_path / name) for name in ("shards", "pretrained")}
        steps = {"rounds": 1, "steps": 1, "batch_size": 2}
        phases = ["faces", "sharpness"]
        more = {"rounds": 1, "cohort": {"size": 8}, "sharpness": steps} | settings
        return Caller(make_config(**places, phases=phases, **more))

    return make


def test_what_one_client_trained_is_not_shown_before_it_is_summed(make_caller: Callable[..., Caller]) -> None:
    """RUN/pipeline held the decoder that one client had trained, in the clear, without a stage of the protocol."""
    caller = make_caller()
    before = caller.weights()
    assert caller.slot.call("train", ["a"], caller.shared, caller.plan()).clients == ("a",)
    update = caller.slot._held._secure._updates["a"][0]
    assert np.linalg.norm(update) > 0
    after = caller.weights()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the next call sees what it did"
    for ask in (
        ("export", None, 2),
        ("export", caller.faces, 2),
        ("sample", ["x"], 2, None),
        ("sample", ["x"], 2, caller.faces),
        ("held_out_loss", ["x"], 2, caller.faces),
        ("lip_agreement", ["x"], 2, caller.faces),
    ):
        with pytest.raises(RunError, match="the model is in the phase sharpness"):
            caller.slot.call(*ask)
    assert not caller.run.has_model() and not caller.run.samples.exists()
    caller.slot.call("enter", "sharpness", {"faces": caller.faces, "sharpness": caller.shared + update})
    caller.slot.call("export", None, 2)
    assert caller.run.has_model(), "and is shown once the phase has its result"


def test_under_noise_nobody_tells_that_she_has_no_update(
    make_caller: Callable[..., Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who abstains because of her clips would tell of them, and no noise lies over that."""
    noise = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
    caller, noisy = make_caller(), make_caller("noisy", privacy=noise)
    fit_one = ClientSlot._fit_one

    def not_finite(self: ClientSlot, round_number: int, client: str, *rest: object) -> object:
        if client == "b":
            raise TrainingError("the local update holds values that are not finite")
        return fit_one(self, round_number, client, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ClientSlot, "_fit_one", not_finite)
    answers = noisy.slot.call("train", ["a", "b"], noisy.shared, noisy.plan())
    assert (answers.clients, answers.refused) == (("a", "b"), {})
    update, weight = noisy.slot._held._secure._updates["b"]
    assert weight == 0 and update.shape == noisy.shared.shape and not update.any()
    in_the_open = caller.slot.call("train", ["a", "b"], caller.shared, caller.plan())
    assert (in_the_open.clients, in_the_open.refused) == (("a",), {"not finite": 1}), "without noise she abstains"


def test_a_round_is_trained_for_from_one_model(make_caller: Callable[..., Caller]) -> None:
    """Whether an update is finite tells of the clips: bisecting the scale of what is trained from had their sizes."""
    caller = make_caller()
    for exchange, scale, refused in ((1, 1, {}), (2, 2, {"old round": 1}), (3, 1, {})):
        shared = scale * caller.shared
        answers = caller.slot.call("train", ["a"], shared, caller.plan(exchange, shared))
        assert (answers.clients, answers.refused) == (() if refused else ("a",), refused)
