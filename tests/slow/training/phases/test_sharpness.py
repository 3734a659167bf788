"""The phase `sharpness`: a decoder that is shown means becomes sharp, an adversary that learns beside it, and both
alone are summed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import NothingToGive, RunError
from fedtalk_ray.media.lips import LIP_MOTION
from fedtalk_ray.model.adversary import Adversary
from fedtalk_ray.model.autoencoder import frames_to_pixels
from fedtalk_ray.model.bending import Bends, bend
from fedtalk_ray.model.lower_face import LowerFaceAutoencoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.schedule import make_scheduler
from fedtalk_ray.model.st_lpips import VggFeatures
from fedtalk_ray.recipe import PHASES, PhaseRounds, SharpnessConfig
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.people import People
from fedtalk_ray.shards.windows import PictureBatch
from fedtalk_ray.slot_settings import StreamConfig
from fedtalk_ray.training.augment import View
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.phases.phase import Task
from fedtalk_ray.training.phases.sharpness import Painter, sharpness_phase
from fedtalk_ray.training.resident import ResidentModel

SIDE = 48


@pytest.fixture(scope="module")
def people(make_shards: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> People:
    folder: Path = tmp_path_factory.mktemp("sharpness") / "shards"
    return People(folder, make_shards(folder, {"s1": [30] * 3, "s2": [30] * 3}, SIDE, encoder="lower-face"))


def new_pipeline(people: People) -> TalkingHeadPipeline:
    torch.manual_seed(5)
    pipeline = untrained_pipeline(people.manifest, widths=(16, 32), window=4)
    pipeline.register_modules(autoencoder=LowerFaceAutoencoder(widths=(8, 16)).eval())
    return pipeline


def task_of(people: People, shared: np.ndarray, client: str = "s1", number: int = 1, rounds: int = 1) -> Task:
    return Task(people, client, shared, number, PhaseRounds("sharpness", 1, rounds), 1000 + number)


def phase_of(pipeline: TalkingHeadPipeline, **more: Any) -> Any:
    config = SharpnessConfig(**{"steps": 1, "batch_size": 2} | more)
    return sharpness_phase(pipeline, config, StreamConfig(), true_lips=0.9)


def test_decoder_and_adversary_are_what_is_summed(people: People) -> None:
    torch.manual_seed(0)
    pipeline = new_pipeline(people)
    phase, frozen = phase_of(pipeline), {}
    for part in ("autoencoder", "denoiser"):
        frozen[part] = {name: value.clone() for name, value in getattr(pipeline, part).state_dict().items()}
    shared = phase.initial()
    decoder = sum(value.numel() for value in pipeline.autoencoder.decoder.parameters())
    assert len(shared) == decoder + sum(value.numel() for value in Adversary().parameters())
    update = phase.fit(task_of(people, shared)).update
    # By name the adversary comes first. Before its word counts the decoder learns from the true pictures.
    assert update.dtype == np.float32 and update[:-decoder].any() and update[-decoder:].any()
    phase.finish(shared + update)
    for part, before in frozen.items():
        after = getattr(pipeline, part).state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == {
            name for name in before if part == "autoencoder" and name.startswith("decoder.conv_out")
        }
    assert not pipeline.autoencoder.training


def test_all_that_a_loss_goes_through_is_known_to_be_the_same_everywhere(people: People) -> None:
    """Denoiser and encoder are frozen and matter; decoder and adversary are the shared vector."""
    torch.manual_seed(0)
    pipeline = new_pipeline(people)
    phase = phase_of(pipeline)
    before = phase.frozen()
    pipeline.autoencoder.decoder.conv_in.weight.data += 1
    assert phase.frozen() == before
    pipeline.denoiser.conv_in.weight.data += 1
    other = phase.frozen()
    pipeline.autoencoder.encoder.weight.data += 1
    assert len({before, other, phase.frozen()}) == 3


def test_the_same_round_gives_the_same_update_whoever_trained_before(people: People) -> None:
    torch.manual_seed(0)
    phase = phase_of(new_pipeline(people), rounds=2)
    shared = phase.initial()
    first = phase.fit(task_of(people, shared, number=2, rounds=2)).update
    phase.fit(task_of(people, shared, "s2"))
    again = phase.fit(task_of(people, shared, number=2, rounds=2)).update
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != phase.fit(task_of(people, shared, "s2", number=2, rounds=2)).update.tobytes()


def still_windows(seed: int, count: int = 2, frames: int = 4) -> PictureBatch:
    """A rough face at rest: the reference says all that there is to know of it."""
    rng = np.random.default_rng(seed)
    faces = torch.from_numpy(rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))
    repeated = faces[:, None].expand(-1, frames, -1, -1, -1)
    return PictureBatch(repeated, torch.from_numpy(rng.normal(size=(count, frames, 44, 40))).float(), faces)


class Tells(torch.nn.Module):
    """Predicts so much of the residual that its reference is told, in the words of any kind of network."""

    def __init__(self, denoiser: Any, residual: float = 0.0, kind: str = "sample") -> None:
        super().__init__()
        self.denoiser, self.residual, self.kind = denoiser, residual, kind

    def get_base_model(self) -> Any:
        return self.denoiser

    def forward(self, sample: torch.Tensor, *rest: Any) -> torch.Tensor:
        # At the last timestep v is minus what it hides.
        return torch.full_like(sample, -self.residual if self.kind == "v_prediction" else self.residual)


def painter_of(people: People, **more: Any) -> Painter:
    pipeline = new_pipeline(people)
    pipeline.register_modules(denoiser=Tells(pipeline.denoiser))
    torch.manual_seed(1)
    return Painter(pipeline, Adversary((8, 16)), SharpnessConfig(**more), true_lips=0.9)


def test_a_face_at_rest_is_painted_without_a_fault(people: People) -> None:
    """Prediction and reference are right and the decoder is untrained: nothing is left to learn from the pictures."""
    painter = painter_of(people)
    _, terms = painter.loss(still_windows(0), np.random.default_rng(0), judged=False)
    assert terms["near"] == pytest.approx(0, abs=1e-5) and set(terms) == {"near", "adversary"}


def test_each_network_is_taught_by_its_own_part_of_the_loss(people: People) -> None:
    """The adversary is not moved by how well it is fooled, nor the decoder by how well the adversary tells."""
    painter = painter_of(people, adversarial=0.0, perceptual=0.0)
    networks = painter.networks

    def gradients(judged: bool) -> dict[str, torch.Tensor]:
        networks.zero_grad()
        painter.loss(still_windows(3), np.random.default_rng(0), judged)[0].backward()
        return {name: value.grad.clone() for name, value in networks.named_parameters() if value.grad is not None}

    networks.requires_grad_(True)
    torch.nn.init.normal_(networks.decoder.conv_out.weight, std=0.05)
    without, silent = gradients(False), gradients(True)
    assert all(torch.allclose(without[name], silent[name], atol=1e-7) for name in without)
    painter._config = SharpnessConfig(adversarial=1.0, perceptual=1.0)
    judged = gradients(True)
    moved = {name for name in judged if not torch.allclose(judged[name], without[name], atol=1e-6)}
    assert {"decoder.conv_in.weight", "decoder.conv_out.weight"} <= moved
    assert not [name for name in moved if name.startswith("adversary")]


def test_vgg_is_weighed_beside_the_rest_and_known_to_be_the_same_everywhere(people: People) -> None:
    pytest.importorskip("stlpips_pytorch")
    pipeline = new_pipeline(people)
    vgg = VggFeatures()

    def loss(weight: float) -> tuple[float, dict[str, float]]:
        torch.manual_seed(1)
        config = SharpnessConfig(vgg=weight)
        painter = Painter(pipeline, Adversary((8, 16)), config, true_lips=0.9, vgg=vgg if weight else None)
        total, terms = painter.loss(opened_mouths(0), np.random.default_rng(0), judged=True)
        return float(total.detach()), terms

    (without, plain), (weighed, terms) = loss(0), loss(3)
    assert terms.keys() - plain.keys() == {"vgg"} and terms["vgg"] > 0
    assert weighed - without == pytest.approx(3 * terms["vgg"], rel=1e-4)
    torch.manual_seed(0)
    with_vgg, bare = (phase_of(pipeline, vgg=weight).frozen() for weight in (1.0, 0.0))
    assert with_vgg != bare


def test_a_network_that_is_missing_is_told_before_the_first_phase(
    people: People, make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = make_config(phases=["units", "faces", "sharpness"], sharpness={"vgg": 2.0})
    with pytest.raises(RunError, match=r"sharpness.vgg asks for VGG-16"):
        ResidentModel(new_pipeline(people), config)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_what_is_painted_is_what_generation_begins_with(people: People, kind: str) -> None:
    """A network that tells a residual of 0.5 everywhere, whatever it is trained to predict."""
    pipeline = new_pipeline(people)
    pipeline.register_modules(
        denoiser=Tells(pipeline.denoiser, 0.5, kind), scheduler=make_scheduler(kind), autoencoder=pipeline.autoencoder
    )
    painter = Painter(pipeline, Adversary((8, 16)), SharpnessConfig(), true_lips=0.9)
    batch = still_windows(0, count=64)
    pixels = frames_to_pixels(torch.cat([batch.reference[:, None], batch.frames], dim=1).flatten(0, 1).numpy())
    pixels = pixels.unflatten(0, (64, 5))
    points = batch.reference_points
    latents, _ = painter._predicted(pixels, batch.speech, points, batch, np.random.default_rng(0))
    first = pipeline.autoencoder.encode(pixels[:, 0]).latents
    told = (latents - first[:, None]).flatten(1)
    exact = (told.abs() < 1e-4).all(1)
    assert 4 <= int(exact.sum()) <= 24, "a fifth is painted from true latents"
    expected = pipeline.denoiser.denoiser.from_residual(torch.full_like(latents, 0.5), first) - first[:, None]
    torch.testing.assert_close(told[~exact], expected.flatten(1)[~exact])


def test_latents_are_unscaled_before_they_are_painted(people: People) -> None:
    painter = painter_of(people)
    painter._autoencoder.register_to_config(scaling_factor=0.5)
    _, terms = painter.loss(still_windows(0), np.random.default_rng(0), judged=False)
    assert terms["near"] == pytest.approx(0, abs=1e-5)


def test_silent_clips_have_nothing_to_say(people: People) -> None:
    batch = still_windows(0)
    batch.speech.zero_()
    with pytest.raises(NothingToGive, match="its clips are silent"):
        painter_of(people).loss(batch, np.random.default_rng(0), judged=False)


def opened_mouths(seed: int) -> PictureBatch:
    """Blank faces whose lower half is rough in every frame, and always otherwise: nobody can know how."""
    rough = still_windows(seed, frames=5).frames
    faces = (rough[:, 0, :1, :1] // 2 + 64).expand(-1, SIDE, SIDE, -1)
    frames = faces[:, None].repeat(1, 4, 1, 1, 1)
    noise = np.random.default_rng(seed).integers(0, 256, (len(faces), 4, 12, SIDE, 3), np.uint8)
    frames[:, :, 30:42] = torch.from_numpy(noise)
    return PictureBatch(frames, still_windows(seed).speech, faces)


def test_the_adversary_makes_a_mouth_rough_that_its_mean_leaves_smooth(people: People) -> None:
    def roughness(**weights: float) -> float:
        painter = painter_of(people, frames=4, **weights)
        painter.networks.requires_grad_(True)
        optimiser = torch.optim.Adam(painter.networks.parameters(), 2e-3)
        for step in range(100):
            loss, _ = painter.loss(opened_mouths(step), np.random.default_rng(step), judged=step > 20)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        face = frames_to_pixels(opened_mouths(5000).reference.numpy())
        with torch.no_grad():
            # Rows 30 to 42 of the crop are 14 to 26 of its lower face.
            lower = painter._autoencoder.window(face)
            made = painter._autoencoder.windows(painter._autoencoder.encode(face).latents, lower)[:, :, 16:24, 8:24]
        return float((made[..., 1:] - made[..., :-1]).square().mean())

    assert roughness(adversarial=0.05, perceptual=0.1) > 3 * roughness(adversarial=0.0, perceptual=0.0)


def test_the_penalty_is_half_the_squared_slope_at_true_pictures(people: People) -> None:
    """Of an adversary that only sums what it sees, weighted by w, over 32 x 32 pixels of 3 colours: 3072 w^2 / 2."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.01))

        def forward(self, windows: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return (self.weight * windows).sum((1, 2, 3)), [windows]

    def learned(penalty: float) -> float:
        painter = painter_of(people, gradient_penalty=penalty)
        painter.networks.adversary = Linear()
        windows = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        _, terms = painter._with_adversary(torch.zeros(()), windows, windows, windows, False)
        return terms["adversary"]

    assert learned(0.7) - learned(0.0) == pytest.approx(0.7 / 2 * 3072 * 0.01**2, rel=1e-4)


def test_an_adversary_learns_to_tell_rough_from_smooth() -> None:
    torch.manual_seed(0)
    adversary = Adversary((8, 16))
    optimiser = torch.optim.Adam(adversary.parameters(), 2e-3)
    for _ in range(60):
        rough, face = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
        smooth = torch.nn.functional.avg_pool2d(rough, 5, 1, 2)
        loss = torch.relu(1 - adversary(rough, face)[0]).mean() + torch.relu(1 + adversary(smooth, face)[0]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    judged, seen = adversary(rough, face)
    assert judged.shape == (4, 1, 8, 8) and [stage.shape[1] for stage in seen] == [8, 16]
    assert judged.mean().item() > 0.5 and adversary(smooth, face)[0].mean().item() < -0.5


@pytest.mark.parametrize("when", ["faces", "units"])
def test_a_pipeline_around_another_autoencoder_is_refused_before_anything_trains(
    when: str, make_config, make_shards, tmp_path
) -> None:
    manifest = make_shards(tmp_path / "shards", {"s1": [16, 16]})
    config: TrainConfig = make_config(phases=sorted({when, "faces", "sharpness"}, key=PHASES.index))
    with pytest.raises(RunError, match="sharpness needs shards of --autoencoder lower-face; this pipeline has a Patch"):
        ResidentModel(untrained_pipeline(manifest, widths=(16, 32), window=4), config)


def test_a_network_that_predicts_noise_has_no_mean_to_paint(people: People, make_config) -> None:
    pipeline = untrained_pipeline(people.manifest, widths=(16, 32), window=4, prediction_type="epsilon")
    with pytest.raises(RunError, match=r"a network that predicts noise \(epsilon\) has none"):
        ResidentModel(pipeline, make_config(phases=["faces", "sharpness"]))


def test_the_painted_prediction_is_told_the_references_lips_as_in_faces(people: People) -> None:
    """Where nobody is told her own lips, what the reference's are known to be still moves the prediction."""
    pipeline = new_pipeline(people)
    pipeline.denoiser.see_reference_lips()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(pipeline.denoiser.lip_axes, std=3, generator=generator)
    torch.nn.init.normal_(pipeline.denoiser.reference_embedding.weight, generator=generator)
    for parameter in pipeline.denoiser.conv_out.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    painter = Painter(pipeline, Adversary((8, 16)), SharpnessConfig(), true_lips=0.0)
    batch = still_windows(0, count=64)
    batch.lips = torch.randn(64, 4, LIP_MOTION, generator=generator)
    pixels = frames_to_pixels(torch.cat([batch.reference[:, None], batch.frames], dim=1).flatten(0, 1).numpy())
    pixels = pixels.unflatten(0, (64, 5))

    points = torch.rand(64, 68, 2, generator=generator)

    def predicted(reference_lips: torch.Tensor) -> torch.Tensor:
        batch.reference_lips = reference_lips
        pipeline.denoiser.eval()
        return painter._predicted(pixels, batch.speech, points, batch, np.random.default_rng(0))[0]

    motion = torch.randn(64, LIP_MOTION, generator=generator)
    moved = (predicted(motion) - predicted(motion + 1)).abs().amax((1, 2, 3, 4)) > 1e-5
    # A fifth is painted from true latents, and of a quarter of the rest nothing is told.
    assert 24 <= int(moved.sum()) <= 52


@pytest.mark.parametrize("opens", [False, True])
def test_detail_is_painted_from_the_bent_reference(
    people: People, face_points: np.ndarray, monkeypatch, opens: bool
) -> None:
    """Of each frame that is painted the face with that frame's lips, and what they show when they open; where nothing
    is told, the face as it is."""
    pipeline = new_pipeline(people)
    base = pipeline.denoiser
    if opens:
        base.show_open_mouths()
        base.open_mouth.colours[0] = 0.7
    assert base.takes_bent()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(base.lip_axes, std=0.2, generator=generator)
    base.lip_std.fill_(0.1)
    painter = Painter(pipeline, Adversary((8, 16)), SharpnessConfig(frames=4), true_lips=1.0)
    batch = still_windows(0, count=40)
    batch.lips = 0.05 * torch.randn(40, 4, LIP_MOTION, generator=generator)
    batch.reference_lips = 0.05 * torch.randn(40, LIP_MOTION, generator=generator)
    batch.reference_points = torch.from_numpy(face_points).float().expand(40, -1, -1)
    painted = {}

    def windows(latents: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
        painted["latents"], painted["face"] = latents, face
        return face

    def bent(pictures: torch.Tensor, bends: Bends) -> torch.Tensor:
        painted["bends"] = bends
        return bend(pictures, bends)

    monkeypatch.setattr(pipeline.autoencoder, "windows", windows)
    monkeypatch.setattr("fedtalk_ray.training.phases.sharpness.bend", bent)
    still = View(False, np.eye(2, 3, dtype=np.float32), np.ones(3, np.float32), np.zeros(3, np.float32))
    monkeypatch.setattr(View, "drawn", lambda _: still)
    painter.loss(batch, np.random.default_rng(0), judged=False)
    lower = pipeline.autoencoder.window(frames_to_pixels(batch.reference.numpy()))
    as_it_is = (painted["face"].view(40, 4, *lower.shape[1:]) - lower[:, None]).abs().amax((1, 2, 3, 4)) < 1e-2
    assert 3 <= int(as_it_is.sum()) <= 18, "of a quarter nothing is told"
    laid = painted["bends"].laid
    assert (laid is not None and float(laid[:, 3].amax()) > 0.5) if opens else laid is None
    # The network is untrained and adds nothing: what is painted are the bent reference's latents, or true ones.
    first = pipeline.autoencoder.encoder(lower).repeat_interleave(4, dim=0)
    said = base.latent_bend(first, painted["bends"][:, None])[:, 0]
    alike = (said - painted["latents"]).abs().amax((1, 2, 3)) < 1e-3
    true = pipeline.autoencoder.window(frames_to_pixels(batch.frames.flatten(0, 1).numpy()))
    exact = torch.cdist(painted["latents"].flatten(1), pipeline.autoencoder.encoder(true).flatten(1)).amin(1) < 1e-2
    assert bool((alike | exact).all()) and float(alike.float().mean()) > 0.6
