"""The latent yardstick: motion errors written out, the loss against the trainer's own, and who is counted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.window_figures import DRAWS, MEASURES, measure_windows, motion_agreement, window_figures
from fedtalk_ray.media.face_template import mouth_mask
from fedtalk_ray.media.lips import LIP_MOTION
from fedtalk_ray.model.autoencoder import decode_latents
from fedtalk_ray.model.pipeline import load_pipeline
from fedtalk_ray.model.sampling import sample_clip
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.shards.reader import read_pieces
from fedtalk_ray.shards.windows import WindowBatch, held_out_windows
from fedtalk_ray.training.local import LocalTrainer


def test_the_motion_error_is_that_of_the_generated_windows(make_pipeline, make_windows) -> None:
    """Written out: each window generated, frame differences compared; a truth that moves more divides it by more."""
    pipeline, windows = make_pipeline(), make_windows(3)
    found = measure_windows(pipeline, windows, 5)["motion_error"]
    generator = torch.Generator().manual_seed(5)
    parts = zip(windows.reference, windows.speech, strict=True)
    made = [sample_clip(pipeline.denoiser, pipeline.scheduler, *part, generator=generator) for part in parts]
    true = windows.latents.diff(dim=1)
    error = (torch.stack(made).diff(dim=1) - true).abs().mean() / true.abs().mean()
    assert found == pytest.approx(float(error), rel=1e-4)
    pictures, truth = (
        decode_latents(pipeline.autoencoder, x.flatten(0, 1)) for x in (torch.stack(made), windows.latents)
    )
    figures = measure_windows(pipeline, windows, 5)
    assert figures["psnr"] == pytest.approx(metrics.psnr(pictures, truth), abs=0.02)
    assert figures["mouth_psnr"] == pytest.approx(metrics.mouth_psnr(pictures, truth), abs=0.02)
    steps = [np.abs(np.diff(x.astype(int).reshape(3, 4, -1), axis=1)).mean() for x in (pictures, truth)]
    assert figures["jitter_ratio"] == pytest.approx(steps[0] / steps[1], rel=0.01)


def test_the_mouths_agreement_is_a_correlation_and_no_matter_of_how_far_it_opens(make_pipeline, make_windows) -> None:
    pipeline, windows = make_pipeline(), make_windows(3)
    denoiser = pipeline.denoiser
    denoiser.liveliness.zero_()
    found = measure_windows(pipeline, windows, 5)
    parts = zip(windows.reference, windows.speech, strict=True)
    made = torch.stack([sample_clip(denoiser, pipeline.scheduler, *part) for part in parts])
    mouth = mouth_mask(made.shape[-1]).astype(bool)
    cells = [
        denoiser.to_residual(each, windows.reference).double().numpy()[..., mouth].reshape(12, -1)
        for each in (made, windows.latents)
    ]
    one, other = (each - each.mean(0) for each in cells)
    assert found["mouth_agreement"] == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1], rel=1e-4)
    denoiser.certainty.mul_(0.5)
    half = measure_windows(pipeline, windows, 5)
    assert half["mouth_agreement"] == pytest.approx(found["mouth_agreement"], rel=1e-4)
    assert half["motion_error"] != pytest.approx(found["motion_error"], rel=1e-3)


def test_the_loss_is_the_trainers_held_out_loss(make_pipeline, make_config, make_windows) -> None:
    """The trainer's fresh adapters have no effect, so both measure the same network on the same draws."""
    pipeline = make_pipeline()
    windows = make_windows(3)
    found = measure_windows(pipeline, windows, 5)
    trainer = LocalTrainer(make_pipeline(), make_config())
    assert found["loss"] == pytest.approx(trainer.held_out_loss(windows, seed=5, draws=DRAWS), rel=1e-5)
    assert measure_windows(pipeline, windows, 5) == found
    assert measure_windows(pipeline, windows, 6)["loss"] != found["loss"]


@pytest.fixture(scope="module")
def run_and_shards(make_shards, tmp_path_factory: pytest.TempPathFactory):
    """Two clients with test clips, one without, one unseen; a run that holds an untrained pipeline."""
    from fedtalk_ray.model.autoencoder import load_autoencoder
    from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
    from fedtalk_ray.model.pipeline import TalkingHeadPipeline
    from fedtalk_ray.model.schedule import make_scheduler

    folder = tmp_path_factory.mktemp("windows")
    clips = {"ann": [30, 30, 30], "bob": [30, 30, 40], "cy": [30, 30], "guest": [30, 40]}
    manifest = make_shards(folder / "shards", clips, unseen=("guest",))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = TalkingHeadDenoiser(latent_channels=16, latent_size=8, widths=(16, 32), window=4).eval()
    pipeline = TalkingHeadPipeline(load_autoencoder("patch"), denoiser, make_scheduler("sample"))
    pipeline.save_pretrained(str(folder / "run" / "pipeline"))
    return folder / "run", folder / "shards", manifest, pipeline


def test_figures_are_means_over_identities_by_group(run_and_shards) -> None:
    run, shards, manifest, pipeline = run_and_shards

    def alone(name: str) -> dict[str, float]:
        pieces = list(read_pieces(shards, manifest, name, "test"))
        windows = held_out_windows(pieces, 4, 4 * len(pieces))
        return measure_windows(pipeline, windows, derive_seed(0, "held out", name))

    figures = window_figures(run, shards)
    assert figures["seen"]["identities"] == 2 and figures["unseen"]["identities"] == 1
    for measure in ("loss", "motion_error"):
        seen = np.mean([alone(name)[measure] for name in ("ann", "bob")])
        assert figures["seen"][measure] == pytest.approx(seen, rel=1e-5)
        assert figures["unseen"][measure] == pytest.approx(alone("guest")[measure], rel=1e-5)
    without = window_figures(run, shards, excluded=["ann"])
    assert without["seen"]["loss"] == pytest.approx(alone("bob")["loss"], rel=1e-5)
    assert without["unseen"] == figures["unseen"]


def test_nobody_left_is_refused_and_an_empty_group_is_absent(run_and_shards) -> None:
    run, shards, *_ = run_and_shards
    assert set(window_figures(run, shards, ["ann", "bob"])) == {"unseen"}
    with pytest.raises(ShardError, match="no test clip of a reliable client"):
        window_figures(run, shards, ["ann", "bob", "guest"])


def test_another_autoencoders_shards_are_refused(run_and_shards, tmp_path: Path) -> None:
    run, shards, *_ = run_and_shards
    (tmp_path / "manifest.json").write_text(
        (shards / "manifest.json").read_text().replace('"autoencoder_fingerprint": "', '"autoencoder_fingerprint": "x')
    )
    with pytest.raises(ShardError, match="another one"):
        window_figures(run, tmp_path)


def clips(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 6, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_motion_like_the_truths_agrees_wherever_the_face_stands_and_however_far_it_moves() -> None:
    truth = clips()
    assert motion_agreement(truth, truth) == pytest.approx(1)
    assert motion_agreement(0.3 * truth + 5, truth) == pytest.approx(1)
    assert motion_agreement(-truth, truth) == pytest.approx(-1)


def test_agreement_is_numpys_correlation_of_the_mouth_around_each_cells_mean() -> None:
    made, true = clips(1) + 0.4 * clips(0) + 7, clips(0)
    rows, columns = slice(4, 7), slice(2, 6)  # of 8 cells: MOUTH_BOX is 0.54 to 0.92 down and 0.26 to 0.74 across
    flat = [x[..., rows, columns].numpy().astype(float).reshape(18, -1) for x in (made, true)]
    expected = np.corrcoef(*((x - x.mean(0)).ravel() for x in flat))[0, 1]
    assert motion_agreement(made, true) == pytest.approx(expected, abs=1e-6)


def test_what_moves_outside_the_mouth_does_not_count() -> None:
    made, true = clips(1), clips()
    before = motion_agreement(made, true)
    made[..., :4, :] = true[..., :4, :]
    assert motion_agreement(made, true) == before


def test_a_still_and_a_mouth_that_is_only_in_the_right_place_agree_with_nothing() -> None:
    truth = clips()
    assert motion_agreement(torch.zeros_like(truth), truth) == 0
    assert motion_agreement(truth.mean((0, 1), keepdim=True).expand_as(truth), truth) == pytest.approx(0, abs=1e-6)


def test_frames_out_of_order_agree_by_chance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = clips().cumsum(1)
    order = torch.randperm(18, generator=generator)
    shuffled = truth.flatten(0, 1)[order].unflatten(0, (3, 6))
    assert abs(motion_agreement(truth, shuffled)) < 0.3 < motion_agreement(truth, truth + clips(2))


def test_a_network_that_bends_is_measured_as_it_speaks(make_pipeline, make_windows, face_points, make_config) -> None:
    """From the reference bent to what is heard: loss and windows are those, not those of a face that stays as it is."""
    pipeline, windows = make_pipeline(bends=(4, 2, 1), region="lower face"), make_windows(3)
    torch.nn.init.normal_(pipeline.denoiser.lip_axes, std=0.2, generator=torch.Generator().manual_seed(0))
    pipeline.denoiser.lip_std.fill_(0.05)
    still = measure_windows(pipeline, windows, 5)
    windows.lips = torch.zeros(3, 4, LIP_MOTION)
    windows.reference_lips = torch.zeros(3, LIP_MOTION)
    windows.reference_points = torch.from_numpy(face_points).float().expand(3, -1, -1)
    bent = measure_windows(pipeline, windows, 5)
    assert bent["loss"] != still["loss"] and bent["motion_error"] != still["motion_error"]
    trainer = LocalTrainer(pipeline, make_config())
    assert bent["loss"] == pytest.approx(trainer.held_out_loss(windows, seed=5, draws=DRAWS), rel=1e-5)


def test_clips_are_read_with_their_lips_for_a_network_that_bends(run_and_shards, tmp_path: Path, monkeypatch) -> None:
    run, shards, *_ = run_and_shards
    pipeline = load_pipeline(str(run / "pipeline"))
    pipeline.denoiser.bend_latents(4, 10, 3)
    torch.nn.init.normal_(pipeline.denoiser.lip_axes, generator=torch.Generator().manual_seed(0))
    pipeline.save_pretrained(str(tmp_path / "run" / "pipeline"))
    seen = []

    def measure(_: object, batch: WindowBatch, __: int) -> dict[str, float]:
        seen.append(batch)
        return dict.fromkeys(MEASURES, 0.0)

    monkeypatch.setattr("fedtalk_ray.evaluation.window_figures.measure_windows", measure)
    window_figures(run, shards)
    assert {batch.reference_points.shape[1:] for batch in seen} == {(0, 2)}
    seen.clear()
    window_figures(tmp_path / "run", shards)
    assert {batch.reference_points.shape[1:] for batch in seen} == {(68, 2)}
