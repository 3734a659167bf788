"""Pretraining, third part: the motion that each sound means, by regression, before the U-Net sees anything.

Pictures of an opening mouth differ from face to face, so a regression on pictures has to learn every face anew. The
landmarks of lips do not: as numbers of a code, regressed for a minute, they follow the truth's on unseen GRID speakers
with a correlation of 0.70 where somebody speaks; read off pictures regressed in their place, 0.44. The U-Net learns
from true lip shapes what they look like on the face of the reference.

A thousand times more frames go through here than through the U-Net in the same time, so this part can hear what is
said rather than which clip it is. The U-Net then takes the code as given: trained further together with it, lips on
unseen GRID speakers got worse the longer it went on.
"""

from collections.abc import Iterator

import numpy as np
import torch

from fedtalk_ray.media.lips import aperture_of, face_landmarks
from fedtalk_ray.media.speech import LOG_MEL
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.progress import progress
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.augment import vary_speech
from fedtalk_ray.training.losses import cell_weights
from fedtalk_ray.training.optimise import cosine, optimise

MOUTH_POINTS = slice(48, 68)
MIRRORED = [6, 5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 16, 15, 14, 13, 12, 19, 18, 17]
"""Which of the mouth's points lies where each one does in a mirror: 12 around the outer lip, 8 around the inner."""


def lip_shapes(pieces: list[Piece], count: int) -> list[np.ndarray]:
    """Float32 [T, count] for each piece, in standard deviations over all pieces; needs the pieces' frames.

    The first number is the aperture, as it is. The others are the mouth landmarks' largest variations around their
    clip's mean (principal components), where a mouth habitually sits taken out, and made even left and right, so that
    mirrored pictures have the same.
    """
    points = [face_landmarks(piece.frames).astype(np.float64) for piece in progress(pieces, len(pieces), "lips")]
    apertures = [aperture_of(each)[:, None] for each in points]
    moved = [_even(each[:, MOUTH_POINTS] - each[:, MOUTH_POINTS].mean(0)).reshape(len(each), -1) for each in points]
    axes = np.linalg.svd(np.concatenate(moved), full_matrices=False)[2][: count - 1]
    raw = [np.concatenate([gap, each @ axes.T], axis=1) for gap, each in zip(apertures, moved, strict=True)]
    together = np.concatenate(raw)
    mean, spread = together.mean(0), together.std(0).clip(min=1e-6)
    return [((each - mean) / spread).astype(np.float32) for each in raw]


def _even(moved: np.ndarray) -> np.ndarray:
    """Displacements [T, 20, 2] averaged with their mirror image's."""
    return (moved + moved[:, MIRRORED] * (-1, 1)) / 2


FRAMES, CLIPS = 25, 16
"""Frames of one clip, and clips, in a step."""


def train_speech_motion(
    denoiser: TalkingHeadDenoiser,
    pieces: list[Piece],
    lips: list[np.ndarray],
    progress: Iterator[float],
    mouth_weight: float,
    rng: np.random.Generator,
    device: str = "cpu",
) -> None:
    """Regresses each frame's lip shape, and its residual on its clip's mean frame, from the sound alone.

    lips: of each piece, float32 [T, lip_numbers] (`lip_shapes`). Residuals are in the denoiser's units.
    """
    heard = torch.nn.ModuleList([denoiser.speech_encoder, denoiser.speech_map])
    heard.to(device).train()
    optimiser = torch.optim.AdamW(heard.parameters(), lr=1e-3, weight_decay=0.05)
    mask = cell_weights(denoiser.config.latent_size, mouth_weight).to(device)
    means = [torch.from_numpy(piece.latents.astype(np.float32).mean(0)) for piece in pieces]
    log_mel = denoiser.config.speech == LOG_MEL
    for step, done in enumerate(progress):
        targets, shapes, sounds = [], [], []
        for index in rng.integers(len(pieces), size=CLIPS):
            piece = pieces[index]
            count = min(FRAMES, len(piece.latents))
            begin = int(rng.integers(len(piece.latents) - count + 1))
            part = slice(begin, begin + count)
            latents = torch.from_numpy(piece.latents[part].astype(np.float32))
            targets.append(denoiser.to_residual(latents[None], means[index][None])[0])
            shapes.append(lips[index][part])
            sounds.append(vary_speech(piece.speech[part].astype(np.float32), rng, log_mel))
        parts = (torch.cat(targets), *(torch.from_numpy(np.concatenate(each)) for each in (shapes, sounds)))
        target, shape, sound = (part.to(device) for part in parts)
        code = denoiser.speech_encoder(sound[None])
        picture = (mask * (denoiser.speech_map(code)[0] - target).square()).mean()
        loss = picture + (code[0, :, : shape.shape[1]] - shape).square().mean()
        optimise(optimiser, heard, loss, 1e-3 * min(1.0, (step + 1) / 50) * cosine(done))
    heard.to("cpu")
