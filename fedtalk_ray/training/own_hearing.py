"""What sounds mean for one person's lips, out of her clips: everybody's regression, moved as far as her frames say."""

from collections.abc import Iterable

import numpy as np
import torch

from fedtalk_ray.errors import NothingToGive
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.own_hearing import OwnHearing
from fedtalk_ray.shards.format import Piece
from fedtalk_ray.training.phases.hearing import encoder_of
from fedtalk_ray.training.phases.speech import check_sound
from fedtalk_ray.training.phases.statistics import check_landmarks

OWN_FRAMES = 4500
"""Frames of hers at which a value of her own map costs as much as a feature varies; with fewer it costs more. Chosen on
held-out clips of six GRID clients (not of s4, by whom this is reported): the root mean square of what lip shapes are
off falls from 0.96 to about 0.83 of a deviation for s26 (5 training clips), 1.49 to 1.25 for s31 (5), 0.72 to 0.71 for
s1 (20), and 0.93 to 0.87, 1.21 to 1.18, 0.88 to 0.83 for three of one clip each. With a tenth of it apertures follow
the sound less (0.85 of 0.86 for s1), and with ten times as much most of that is gone. As pictures, bent with her own
mouth, seven clips of theirs: mouths 28.94 -> 29.13 dB, lips open 0.57 -> 0.61 of the truth's, their correlation 0.80
-> 0.78, ST-LPIPS 0.0276 -> 0.0279."""


@torch.no_grad()
def own_hearing(pieces: Iterable[Piece], denoiser: object) -> OwnHearing | None:
    """argmin over W, b of E|shape - heard - W f - b|^2 + lambda |W|^2, for what everybody hears in her features f.

    None where no linear map hears (`speech_code.LipRegression`), or nothing of hers can be heard or seen. Raises
    `ShardError` for pieces without landmarks.
    """
    if not isinstance(denoiser, TalkingHeadDenoiser) or not (denoiser.hears_linearly() and denoiser.takes_bent()):
        return None
    encoder, lips = encoder_of(denoiser), len(denoiser.lip_std)
    count = encoder.linear1.in_features + lips
    frames, sums, squares = 0, np.zeros(count), np.zeros((count, count))
    for piece in pieces:
        check_landmarks(piece, len(piece.speech))
        sound = torch.from_numpy(np.asarray(piece.speech, np.float32)).to(denoiser.device)
        try:
            check_sound(sound)
        except NothingToGive:
            continue
        shapes = denoiser.lip_shape(torch.from_numpy(lip_motion(piece.landmarks)).to(denoiser.device))
        off = shapes - encoder(sound[None])[0, :, :lips]
        both = torch.cat([encoder.features(sound).flatten(1), off], dim=1).double().cpu().numpy()
        both = both[np.isfinite(both).all(1)]
        frames, sums, squares = frames + len(both), sums + both.sum(0), squares + both.T @ both
    if not frames:
        return None
    mean = sums / frames
    covariance = squares / frames - np.outer(mean, mean)
    heard, together = covariance[:-lips, :-lips], covariance[:-lips, -lips:]
    cost = OWN_FRAMES / frames * np.trace(heard) / len(heard)
    weight = np.linalg.solve(heard + cost * np.eye(len(heard)), together).T
    return OwnHearing(*(torch.from_numpy(each).float() for each in (weight, mean[-lips:] - weight @ mean[:-lips])))
