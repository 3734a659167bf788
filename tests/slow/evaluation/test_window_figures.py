"""The latent yardstick: motion errors written out, the loss against the trainer's own, and who is counted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.window_figures import DRAWS, measure_windows, motion_agreement, window_figures
from fedtalk_ray.model.autoencoder import decode_latents
from fedtalk_ray.model.released import load_released
from fedtalk_ray.model.sampling import sample_clip
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.reader import read_pieces
from fedtalk_ray.shards.windows import held_out_windows
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


def test_the_loss_is_the_trainers_held_out_loss(make_pipeline, make_config, make_windows) -> None:
    """The trainer's fresh adapters have no effect, so both measure the same network on the same draws."""
    pipeline = make_pipeline()
    windows = make_windows(3)
    found = measure_windows(pipeline, windows, 5)
    trainer = LocalTrainer(make_pipeline(), make_config())
    assert found["loss"] == pytest.approx(trainer.held_out_loss(windows, seed=5, draws=DRAWS), rel=1e-5)
    assert measure_windows(pipeline, windows, 5) == found
    assert measure_windows(pipeline, windows, 6)["loss"] != found["loss"]


def test_figures_are_means_over_identities_by_group(exported: Path, report_shards: Path) -> None:
    manifest, model = load_manifest(report_shards), load_released(RunFolder(exported))

    def alone(name: str) -> dict[str, float]:
        pieces = list(read_pieces(report_shards, manifest, name, "test"))
        windows = held_out_windows(pieces, 4, 4 * len(pieces))
        return measure_windows(model, windows, derive_seed(0, "held out", name))

    figures = window_figures(exported, report_shards)
    assert figures["seen"]["identities"] == 2 and figures["unseen"]["identities"] == 1
    for measure in ("loss", "motion_error"):
        seen = np.mean([alone(name)[measure] for name in ("anna", "c$1$")])
        assert figures["seen"][measure] == pytest.approx(seen, rel=1e-5)
        assert figures["unseen"][measure] == pytest.approx(alone("zoe")[measure], rel=1e-5)
    without = window_figures(exported, report_shards, excluded=["anna"])
    assert without["seen"]["loss"] == pytest.approx(alone("c$1$")["loss"], rel=1e-5)
    assert without["unseen"] == figures["unseen"]


def test_nobody_left_is_refused_and_an_empty_group_is_absent(exported: Path, report_shards: Path) -> None:
    assert set(window_figures(exported, report_shards, ["anna", "c$1$"])) == {"unseen"}
    with pytest.raises(ShardError, match="no test clip of a reliable client"):
        window_figures(exported, report_shards, ["anna", "c$1$", "zoe"])


def clips(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 6, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_agreement_is_numpys_correlation_of_the_mouth_around_each_cells_mean() -> None:
    made, true = clips(1) + 0.4 * clips(0) + 7, clips(0)
    rows, columns = slice(4, 7), slice(2, 6)  # of 8 cells: MOUTH_BOX is 0.54 to 0.92 down and 0.26 to 0.74 across
    flat = [x[..., rows, columns].numpy().astype(float).reshape(18, -1) for x in (made, true)]
    expected = np.corrcoef(*((x - x.mean(0)).ravel() for x in flat))[0, 1]
    assert motion_agreement(made, true) == pytest.approx(expected, abs=1e-6)


def test_a_still_and_a_mouth_that_is_only_in_the_right_place_agree_with_nothing() -> None:
    truth = clips()
    assert motion_agreement(-0.3 * truth + 5, truth) == pytest.approx(-1)
    assert motion_agreement(torch.zeros_like(truth), truth) == 0
    assert motion_agreement(truth.mean((0, 1), keepdim=True).expand_as(truth), truth) == pytest.approx(0, abs=1e-6)
