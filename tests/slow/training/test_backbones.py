"""What holds for every backbone: ours, MuseTalk's with small random weights, the page's transformer."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import RunError
from fedtalk_ray.model import adapters
from fedtalk_ray.model.autoencoder import encode_frames
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser, bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline, new_pipeline
from fedtalk_ray.model.released import load_released, release_model
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.backbone import shard_settings
from fedtalk_ray.training.local import LocalTrainer
from fedtalk_ray.training.resident import ResidentModel
from tests.musetalk_folder import write_musetalk
from tests.page_examples import install

KINDS = ("ours", "musetalk", "transformer")


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TalkingHeadPipeline]:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "musetalk":
            yield load_pipeline(str(write_musetalk(folder / "models")))
        else:
            pipeline = new_pipeline("patch", 16, 8, widths=(16, 24, 32), window=4, reference_lips=True)
            if request.param == "transformer":
                module = install("fedtalk_ray/model/transformer_denoiser.py", folder, patch)
                pipeline.register_modules(denoiser=module.TransformerDenoiser(latent_size=8, width=48, depth=2))
            yield pipeline


@pytest.fixture
def pipeline(made: TalkingHeadPipeline) -> TalkingHeadPipeline:
    return copy.deepcopy(made)


def picture(pipeline: TalkingHeadPipeline, seed: int = 0) -> np.ndarray:
    """A smooth face-sized picture uint8 [S, S, 3]."""
    side = pipeline.frame_size()
    y, x = np.mgrid[:side, :side] / side
    rng = np.random.default_rng(seed)
    waves = np.stack([np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y) for _ in range(3)], -1)
    return (128 + 80 * waves).astype(np.uint8)


def windows(pipeline: TalkingHeadPipeline, count: int = 4, frames: int = 8, seed: int = 0) -> WindowBatch:
    """Of one face, whose lower half follows the sound."""
    config = bare_denoiser(pipeline.denoiser).config
    rng = np.random.default_rng(seed)
    level = rng.uniform(-1, 1, (count, frames))
    still = np.repeat(picture(pipeline, seed + 100)[None], count, axis=0)
    seen = np.repeat(still[:, None], frames, axis=1).astype(float)
    half = seen.shape[2] // 2
    seen[:, :, half:] += 15 * level[:, :, None, None, None]
    pixels = seen.clip(0, 255).astype(np.uint8)
    speech = 0.1 * rng.normal(size=(count, frames, config.speech_hops, config.mel_bins)) + level[..., None, None]
    latents = encode_frames(pipeline.autoencoder, pixels.reshape(-1, *pixels.shape[2:]))
    reference = encode_frames(pipeline.autoencoder, still)
    return WindowBatch(
        torch.from_numpy(latents).unflatten(0, (count, frames)),
        torch.from_numpy(speech).float(),
        torch.from_numpy(reference),
    )


@pytest.fixture
def config(make_config: Callable[..., TrainConfig]) -> TrainConfig:
    loss = {"tdc": 0.0, "speech_dropout": 0.0, "noise_bias": 1000.0, "mouth_weight": 1.0}
    local = {"steps": 30, "identity_steps": 0, "learning_rate": 6e-3, "schedule": "constant", "loss": loss}
    return make_config(local=local, phases=["faces"], adapter={"rank": 8})


def test_an_adapter_learns_two_windows_to_less_than_half_of_the_loss(pipeline, config) -> None:
    """On the same two windows again and again; identity and backbone stay as they are."""
    batch = windows(pipeline, 2, 1 if bare_denoiser(pipeline.denoiser).each_frame_alone else 4)
    trainer = LocalTrainer(pipeline, config)
    before = {name: value.clone() for name, value in adapters.backbone_state(trainer.model).items()}
    start = adapters.to_vector(trainer.shared())
    trainer.load(start, None)
    first = trainer.held_out_loss(batch, seed=0, draws=1)
    fitted = trainer.fit(start, None, [batch] * config.local.steps, seed=1)
    assert trainer.held_out_loss(batch, seed=0, draws=1) < 0.5 * first
    assert np.isfinite(fitted.update).all() and fitted.update.shape == start.shape and fitted.update.any()
    after = adapters.backbone_state(trainer.model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_gradient_checkpointing_changes_nothing_but_memory(pipeline: TalkingHeadPipeline, config: TrainConfig) -> None:
    """Who has none says so."""
    batch, found = windows(pipeline, 2, 2), []
    for again in (False, True):
        local = config.local.model_copy(update={"steps": 1, "gradient_checkpointing": again})
        of_local = config.model_copy(update={"local": local})
        kind = type(bare_denoiser(pipeline.denoiser)).__name__
        if again and kind == "TransformerDenoiser":
            with pytest.raises(RunError, match=rf"^local\.gradient_checkpointing: a {kind} cannot recompute"):
                LocalTrainer(pipeline, of_local)
            return
        trainer = LocalTrainer(copy.deepcopy(pipeline), of_local)
        assert bare_denoiser(trainer.model).is_gradient_checkpointing is again
        if kind == "MuseTalkDenoiser":
            assert trainer.pipeline.autoencoder.is_gradient_checkpointing is again
        found.append(trainer.fit(adapters.to_vector(trainer.shared()), None, [batch], seed=2).update)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_every_adapter_has_its_layers_and_the_vector_its_order(pipeline, config) -> None:
    """All layers that the backbone names, and no others; the same vector in, the same out."""
    names = tuple(bare_denoiser(pipeline.denoiser).adapter_layers)
    fits = {
        name
        for name, layer in pipeline.denoiser.named_modules()
        if name.endswith(names) and isinstance(layer, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d)
        if any(name == each or name.endswith(f".{each}") for each in names)
    }
    trainer = LocalTrainer(pipeline, config)
    carrying = {
        name.partition(".lora_")[0].removeprefix("base_model.model.")
        for name, _ in adapters.shared_parameters(trainer.model, "adapter")
    }
    assert carrying == fits and carrying
    assert not any("speech_encoder" in name or "speech_map" in name for name, _ in trainer.identity())
    vector = np.random.default_rng(0).normal(0, 0.01, len(adapters.to_vector(trainer.shared()))).astype(np.float32)
    trainer.load(vector, None)
    np.testing.assert_array_equal(adapters.to_vector(trainer.shared()), vector)


def test_it_speaks_as_long_as_the_sound_and_repeats(pipeline: TalkingHeadPipeline) -> None:
    """In whatever blocks it is asked for; with another sound something else."""
    face, config = picture(pipeline), bare_denoiser(pipeline.denoiser).config
    for parameter in pipeline.denoiser.parameters():
        # What begins as zero would leave the face as it is.
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    pipeline.denoiser.eval()
    sound = np.random.default_rng(0).normal(0, 0.1, int(16_000 * 0.21)).astype(np.float32)

    def said(of: np.ndarray) -> np.ndarray:
        return pipeline(face, of, generator=torch.Generator().manual_seed(3)).frames

    frames = said(sound)
    assert frames.shape == (6, *face.shape) and frames.dtype == np.uint8
    assert (frames == said(sound)).all() and (frames != said(sound[::-1].copy())).any()
    stream = pipeline.stream(face, sound, generator=torch.Generator().manual_seed(3), block=4)
    assert (np.concatenate(list(stream)) == frames).all()
    assert pipeline.at_rest(face).shape == face.shape
    assert config.latent_size == encode_frames(pipeline.autoencoder, face[None]).shape[-1]


def test_a_run_releases_and_loads_it(pipeline: TalkingHeadPipeline, config: TrainConfig, tmp_path: Path) -> None:
    """Pipeline and adapter written as a round does it, and loaded as whoever generates does."""
    trainer = LocalTrainer(pipeline, config)
    vector = np.random.default_rng(0).normal(0, 0.02, len(adapters.to_vector(trainer.shared()))).astype(np.float32)
    trainer.load(vector, None)
    trainer.model.eval()
    pipeline.register_modules(denoiser=trainer.model)
    face, sound = picture(pipeline), np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    run = RunFolder(tmp_path / "run")
    expected = pipeline(face, sound, generator=torch.Generator().manual_seed(0)).frames
    release_model(run, 3, pipeline, trainer.model, "adapter")
    loaded = load_released(run)
    assert type(bare_denoiser(loaded.denoiser)) is type(trainer.model.get_base_model())
    made = loaded(face, sound, generator=torch.Generator().manual_seed(0)).frames
    assert np.abs(made.astype(int) - expected).max() <= 2
    fit = shard_settings(str(run.pipeline))
    assert (fit.size, fit.framing) == (pipeline.frame_size(), pipeline.framing)
    assert fit.speech == bare_denoiser(pipeline.denoiser).config.speech


def test_the_held_out_loss_is_that_of_its_windows_one_by_one(pipeline, config) -> None:
    """Where nothing is drawn it is the mean of each window's own, and one draw says all."""
    trainer, batch = LocalTrainer(pipeline, config), windows(pipeline, 3, 2)
    if bare_denoiser(pipeline.denoiser).taught_on == "pixels":
        alone = [trainer.held_out_loss(each, seed=9) for each in batch.each()]
        assert trainer.held_out_loss(batch, seed=0, draws=5) == pytest.approx(np.mean(alone), rel=1e-5)
    else:
        generator = torch.Generator().manual_seed(3)
        quiet = config.local.loss
        one = [float(trainer.loss(trainer.model.eval(), batch, quiet, generator).diffusion) for _ in range(2)]
        assert trainer.held_out_loss(batch, seed=3, draws=2) == pytest.approx(np.mean(one), rel=1e-5)


def test_who_has_another_decoder_has_another_backbone_where_the_loss_goes_through_it(pipeline, config) -> None:
    trainer = LocalTrainer(pipeline, config)
    before = trainer.frozen_digest()
    next(pipeline.autoencoder.decoder.parameters()).data += 1.0
    taught_on = bare_denoiser(pipeline.denoiser).taught_on
    assert (trainer.frozen_digest() != before) == (taught_on == "pixels")


def test_what_it_knows_nothing_of_is_refused_before_anything_is_taught(pipeline, make_config) -> None:
    base, config = pipeline.denoiser, make_config(phases=["units", "speech", "faces", "calibration"])
    kind = type(base).__name__
    if kind != "MuseTalkDenoiser":
        ResidentModel(pipeline, config)
    else:
        with pytest.raises(RunError, match=rf"^phases: units, speech, calibration: a {kind} is taught by the phase"):
            ResidentModel(pipeline, config)
    config = make_config(phases=["faces"], local={"loss": {"motion": 1.0}})
    if base.taught_on == "latents":
        ResidentModel(pipeline, config)
        if not isinstance(base, TalkingHeadDenoiser):
            return
        base.bend_latents(4, 2, 1)
    with pytest.raises(RunError, match=r"^loss motion is 1, and this backbone makes no motion of sound alone"):
        ResidentModel(pipeline, config)
