"""How well a run's model predicts clips that nobody trained on, in latents: far more precise than measures of videos.

One yardstick for all runs: the same windows, timesteps and noise for each identity, and the loss's default weights
whatever a run was trained with. Only clips of the test split count, which corruption never touches, and clients that
are left out by name (`excluded`) do not count at all.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.errors import ShardError
from fedtalk_ray.evaluation import metrics
from fedtalk_ray.media.face_template import mouth_mask, region_edges
from fedtalk_ray.model.autoencoder import decode_latents
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.device import pick_device
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released, open_model
from fedtalk_ray.model.sampling import DEFAULT_STEPS
from fedtalk_ray.recipe import LossConfig
from fedtalk_ray.seeding import derive_seed
from fedtalk_ray.shards.format import load_manifest
from fedtalk_ray.shards.people import People, speakers
from fedtalk_ray.shards.windows import Wanted, WindowBatch, held_out_windows
from fedtalk_ray.training.backbone import check_fits
from fedtalk_ray.training.objective import Objective
from fedtalk_ray.training.reliability import generate_windows
from fedtalk_ray.training.told_lips import lips_wanted, tell_held_out

MEASURES = ("loss", "motion_error", "mouth_agreement", "psnr", "mouth_psnr", "jitter_ratio")
GROUPS = ("seen", "unseen")
WINDOWS_PER_CLIP = 4
DRAWS = 8
"""Timesteps and noises drawn for each window."""

YARDSTICK = LossConfig(tdc=0, motion=0, identity=0, perceptual=0, sync=0, speech_dropout=0)


def window_figures(
    run: str | Path,
    shards: str | Path,
    excluded: Collection[str] = (),
    personal: bool = False,
    device: str = "auto",
) -> dict[str, dict[str, float]]:
    """{"seen": {"loss", ..., "identities"}, "unseen": ...}: means over identities of `shards`' test clips.

    loss: diffusion loss. The others are of windows generated as `fedtalk generate` does it, against the truth through
    the autoencoder: `motion_error` (0 for the truth's own motion, 1 for a still, more for flicker), `mouth_agreement`
    (correlation of the mouth's cells with the true ones, which does not ask how far it opens but when), PSNR in dB, and
    the jitter over the truth's. A group without an identity is absent. personal: clients speak with their own identity
    adapters where the run has them. Raises `UserError`s, among them `ShardError` when nobody is left to measure.
    """
    folder, device, people = open_model(run), pick_device(device), People(shards, load_manifest(shards))
    model, loaded = load_released(folder, device=device), None
    manifest, speaker_of = people.manifest, speakers(folder, personal)
    check_fits(manifest, model, str(folder.pipeline))
    window, lips = bare_denoiser(model.denoiser).config.window, lips_wanted(bare_denoiser(model.denoiser), 0.0)
    unseen = set(manifest.unseen())
    figures: dict[str, list[dict[str, float]]] = {}
    for name in sorted(set(manifest.identities) - set(excluded)):
        if not manifest.pieces(name, "test"):
            continue
        if (client := speaker_of(name)) != loaded:
            model, loaded = load_released(folder, client, device), client
        pieces = list(people.pieces(name, "test", Wanted(lips=lips).columns))
        batch = held_out_windows(pieces, window, WINDOWS_PER_CLIP * len(pieces), lips)
        group = "unseen" if name in unseen else "seen"
        figures.setdefault(group, []).append(measure_windows(model, batch, derive_seed(0, "held out", name)))
    if not figures:
        raise ShardError(f"shards {shards} hold no test clip of a reliable client or of an unseen identity")
    return {
        group: {name: float(np.mean([each[name] for each in parts])) for name in MEASURES} | {"identities": len(parts)}
        for group, parts in figures.items()
    }


@torch.no_grad()
def measure_windows(model: TalkingHeadPipeline, batch: WindowBatch, seed: int) -> dict[str, float]:
    """Diffusion loss and motion error of one identity's windows; the same seed means the same noise."""
    generator = torch.Generator().manual_seed(seed)
    base = bare_denoiser(model.denoiser)
    told = tell_held_out(base, batch).to(base.device)
    loss = Objective(model).held_out(model.denoiser, told, YARDSTICK, generator, DRAWS)
    batch = batch.to(base.device)
    truth = base.split(batch.latents)[0].cpu()
    generated = generate_windows(model.denoiser, model.scheduler, batch, seed, DEFAULT_STEPS)
    made, true = (decode_latents(model.autoencoder, latents.flatten(0, 1)) for latents in (generated, truth))
    moved = [sum(metrics.temporal_jitter(clip) for clip in np.split(frames, len(truth))) for frames in (made, true)]
    # What latents say nothing of is blank in both.
    left, top, right, bottom = region_edges(made.shape[1], base.region)
    return {
        "loss": loss,
        "motion_error": motion_error(generated, truth),
        "mouth_agreement": motion_agreement(
            base.to_residual(generated.to(base.device), batch.reference),
            base.to_residual(truth.to(base.device), batch.reference),
            base.region,
        ),
        "psnr": metrics.psnr(made[:, top:bottom, left:right], true[:, top:bottom, left:right]),
        "mouth_psnr": metrics.mouth_psnr(made, true),
        "jitter_ratio": moved[0] / moved[1],
    }


def motion_error(generated: torch.Tensor, truth: torch.Tensor) -> float:
    """mean |dg - dy| / mean |dy| over frame differences d of latents [B, T, C, h, w]."""
    true_motion = truth[:, 1:] - truth[:, :-1]
    error = (generated[:, 1:] - generated[:, :-1] - true_motion).abs().mean()
    return float(error / true_motion.abs().mean().clamp(min=1e-8))


def motion_agreement(generated: torch.Tensor, truth: torch.Tensor, region: str = "face") -> float:
    """Correlation in [-1, 1] of generated and true mouth cells around their means, residuals [B, T, C, h, w].

    Means are taken cell by cell over all windows, so a mouth that is merely in the right place agrees with nothing.
    0 where either does not move.
    """
    mouth = torch.from_numpy(mouth_mask(truth.shape[-1], region)).to(truth.device).bool()
    made, true = (values[..., mouth].double().flatten(0, 1) for values in (generated, truth))
    made, true = made - made.mean(0), true - true.mean(0)
    size = float(made.norm() * true.norm())
    return float((made * true).sum()) / size if size != 0 else 0.0
