"""Do these lips speak this sound? A small network of our own puts both into one space, where a cosine answers.

After SyncNet (Chung and Zisserman 2016), but on latents: it sees the mouth cells of five frames as a difference from
the clip's reference frame, so who speaks drops out, and no decoder stands between it and a generator. It judges
(`find_offset`, no landmarks needed) and teaches (`sync_loss`). The phase `sync` trains it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from fedtalk_ray.media.face_template import mouth_edges

SPAN = 5
"""Frames that one judgement looks at, 0.2 s; shorter mouths say too little (SyncNet takes five as well)."""

MAX_OFFSET = 5
"""Frames (0.2 s) to either side in which `find_offset` looks unless told otherwise."""

STILL = 1e-4
"""A mouth whose embedding never leaves its first value by more than this does not move; float32 noise is 1e-6."""


class SyncNetwork(ModelMixin, ConfigMixin):
    """Mouth latents and sound of the same `SPAN` frames to unit vectors; in step, their cosine is high.

    Shapes: B clips of T >= SPAN frames give W = T - SPAN + 1 windows, each one frame later than the one before; window
    i covers the frames i to i + SPAN - 1. Latents are scaled ones of the project's autoencoder, float32 [B, T, C, h, w]
    (`latent_channels`, `latent_size` squared); speech is what `media.speech` features give, float32 [B, T, hops, bins]
    (`speech` names them, `speech_hops` and `mel_bins` are their shape); the reference is one frame of the clip, float32
    [B, C, h, w]. Other shapes raise `ValueError`. `residual_std` [C] holds the units of differences from the reference.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        latent_size: int = 16,
        speech_hops: int = 44,
        mel_bins: int = 40,
        width: int = 64,
        dimensions: int = 64,
        dropout: float = 0.2,
        speech: str = "log-mel",
        region: str = "face",
    ) -> None:
        super().__init__()
        left, top, right, bottom = mouth_edges(latent_size, region)
        self.mouth = (slice(top, bottom), slice(left, right))
        # At most 3 x 4 places, so that the network does not grow with the picture.
        self.places = (min(3, -(-(bottom - top) // 2)), min(4, -(-(right - left) // 2)))
        self.see = nn.Sequential(
            nn.Conv2d(latent_channels, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, width, 3, stride=2, padding=1)
        )
        self.see_frame = nn.Linear(width * self.places[0] * self.places[1], 96)
        self.hear = nn.Sequential(
            nn.Conv1d(mel_bins, width, 5, padding=2), nn.SiLU(),
            nn.Conv1d(width, width, 5, stride=2, padding=2), nn.SiLU(),
            nn.Conv1d(width, width, 3, stride=2, padding=1),
        )  # fmt: skip
        self.hear_frame = nn.Linear(width * -(-speech_hops // 4), 96)
        self.see_span, self.hear_span = (
            nn.Sequential(
                nn.SiLU(), nn.Dropout(dropout), nn.Conv1d(96, 128, SPAN), nn.SiLU(), nn.Dropout(dropout),
                nn.Conv1d(128, dimensions, 1),
            )
            for _ in range(2)
        )  # fmt: skip
        # A cosine becomes the log-odds of being in step: scale * cosine + bias (Zhai et al. 2023, sigmoid loss).
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(torch.tensor(-5.0))
        self.residual_std: torch.Tensor
        self.register_buffer("residual_std", torch.ones(latent_channels))

    def embed_mouth(self, latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, W, dimensions] of latents [B, T, C, h, w], seen as differences from `reference`."""
        channels, size = self.config.latent_channels, self.config.latent_size
        _check("latents", latents, (channels, size, size))
        if reference.shape != (len(latents), *latents.shape[2:]):
            need = [len(latents), *latents.shape[2:]]
            raise ValueError(f"the reference is {list(reference.shape)}; one frame of each clip is {need}")
        rows, columns = self.mouth
        residual = (latents - reference[:, None])[..., rows, columns] / self.residual_std[:, None, None]
        seen = F.adaptive_avg_pool2d(F.silu(self.see(residual.flatten(0, 1))), self.places)
        return _over_time(self.see_span, self.see_frame(seen.flatten(1)), latents.shape[1])

    def embed_speech(self, speech: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, W, dimensions] of speech [B, T, hops, bins]."""
        _check("speech", speech, (self.config.speech_hops, self.config.mel_bins))
        heard = F.silu(self.hear(speech.flatten(0, 1).transpose(1, 2)))
        return _over_time(self.hear_span, self.hear_frame(heard.flatten(1)), speech.shape[1])

    def forward(self, latents: torch.Tensor, speech: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Cosines [B, W] of mouth and sound in the same windows."""
        if latents.shape[:2] != speech.shape[:2]:
            shapes = f"latents of {list(latents.shape[:2])} and speech of {list(speech.shape[:2])}"
            raise ValueError(f"{shapes} clips and frames: a sound is needed for every frame")
        return (self.embed_mouth(latents, reference) * self.embed_speech(speech)).sum(2)


def _check(name: str, values: torch.Tensor, frame: tuple[int, ...]) -> None:
    if values.ndim != 2 + len(frame) or values.shape[2:] != frame:
        need = ", ".join(str(length) for length in ("clips", "frames", *frame))
        raise ValueError(f"{name} of shape {list(values.shape)}; this network takes [{need}]")
    if values.shape[1] < SPAN:
        raise ValueError(f"{name} of {values.shape[1]} frames; one window is {SPAN}, so at least {SPAN} are needed")


def _over_time(span: nn.Module, each_frame: torch.Tensor, frames: int) -> torch.Tensor:
    series = each_frame.unflatten(0, (-1, frames)).transpose(1, 2)
    return F.normalize(span(series).transpose(1, 2), dim=2)


def sync_loss(
    network: SyncNetwork, latents: torch.Tensor, speech: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """How surprised the network is to be told that these lips are in step: a scalar, 0 when it is sure they are.

    The mean of -log sigmoid(scale * cosine + bias) over all windows. Arguments as `SyncNetwork.forward` takes them,
    the network in evaluation mode. Differentiable in `latents`; the network's parameters get no gradient.
    """
    frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
    cosines = torch.func.functional_call(network, frozen, (latents, speech, reference))
    return F.softplus(-(frozen["scale"] * cosines + frozen["bias"])).mean()


@torch.no_grad()
def find_offset(
    network: SyncNetwork,
    latents: torch.Tensor,
    speech: torch.Tensor,
    reference: torch.Tensor,
    max_offset: int = MAX_OFFSET,
) -> tuple[int | None, np.ndarray]:
    """By how many frames the lips run late (positive) or early, and the mean cosine at each offset.

    One clip: latents [T, C, h, w], speech [T, hops, bins], reference [C, h, w]; the network in evaluation mode.
    cosines: float32 [2 * max_offset + 1], the k-th at offset k - max_offset. Among equals the smallest shift wins. The
    offset is None where lips and sound fit nowhere (no positive cosine), where the mouth does not move (`STILL`), or
    where the clip has fewer than SPAN + 2 * max_offset frames (the cosines are then NaN). Raises `ValueError` as
    `SyncNetwork` does.
    """
    mouth = network.embed_mouth(latents[None], reference[None])[0]
    sound = network.embed_speech(speech[None])[0]
    # The same mouths at every offset. With all that overlap, the silent ends of a clip would count more at offset 0:
    # an untrained network then "finds" 0 in most clips, with any sentence's sound.
    inner = len(mouth) - 2 * max_offset
    if inner < 1:
        return None, np.full(2 * max_offset + 1, np.nan, np.float32)
    kept = mouth[max_offset : max_offset + inner]
    # Late lips show at frame i what was heard at i - offset.
    begins = [max_offset - offset for offset in range(-max_offset, max_offset + 1)]
    cosines = np.array([float((kept * sound[begin : begin + inner]).sum(1).mean()) for begin in begins], np.float32)
    best = min(range(-max_offset, max_offset + 1), key=lambda offset: (-cosines[offset + max_offset], abs(offset)))
    moves = bool((mouth - mouth[0]).abs().max() > STILL)
    return (best if moves and cosines[best + max_offset] > 0 else None), cosines
