"""How our own denoisers hear: a few numbers a frame, the motion code, and the motion that it alone suggests.

The first numbers of a code are a lip shape, which means the same on every face. The phase `speech` teaches encoder and
map by a regression of their own; while faces are learned they stay as they are, and carry the shared adapter alone. A
network that bends its reference hears a lip shape and nothing else: it has no use for the map. What a pretrained
encoder hears says so much of lips that a linear map is enough (`LipRegression`, the phase `hearing`).
"""

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from fedtalk_ray.model.motion_units import MotionUnits

STRETCHES = ((-4.5, 3.0), (0.0, 1.0), (4.5, 3.0))
"""What a frame hears before it, in it and after it: centres and deviations of Gaussians over the steps of its window,
counted from its middle; a step of Whisper's is 20 ms. On eight GRID speakers by whom settings are chosen apertures
follow the sound as well as with eleven stretches of 40 ms or with cosines."""

FEATURES_NORM = 8.0
"""The squared norm of a stretch's features, where each feature is about 1: so that products of them, as clients send
them, are about as long as other statistics (`recipe.STATISTICS_NORM`)."""

MOST_HEARD = 4.0
"""Deviations to which heard lip shapes are held: honest ones stay within, unless one of those who taught them lied."""

SPEECH_PARTS = ("speech_encoder.", "speech_map.")
"""What the parameters' names begin with that turn sound into motion codes, and those into motion."""


class CodedDenoiser(MotionUnits):
    """A base of every denoiser that the phases `units`, `speech`, `hearing` and `calibration` can teach. Its `__init__`
    calls `add_parts` once; its `forward` asks `codes` for the sound."""

    config: Any
    device: Any
    dtype: Any
    training: bool
    register_to_config: Any

    def add_parts(
        self,
        latent_channels: int,
        latent_size: int,
        motions: int,
        lip_numbers: int,
        speech_hops: int,
        mel_bins: int,
        region: str = "face",
        linear_hearing: bool = False,
    ) -> None:
        """Speech encoder, speech map and units; arguments as in `TalkingHeadDenoiser`."""
        encoder = LipRegression if linear_hearing else SpeechEncoder
        self.speech_encoder: nn.Module = encoder(speech_hops, mel_bins, motions)
        self.silence = nn.Parameter(torch.zeros(motions))
        self.speech_map = SpeechMap(motions, latent_channels, latent_size)
        self.add_units(latent_channels, latent_size, lip_numbers, region)

    def codes(
        self, speech: torch.Tensor, heard: torch.Tensor | None = None, lips: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Motion codes [B, T, motions] of windows of sound [B, T, hops, bins].

        heard: bool [B]; where False the code is that of "no sound". lips: true lip shapes [B, T, L] in place of those
        that are heard; NaN keeps these.
        """
        sound = self._heard(speech)
        if lips is not None and lips.shape[-1]:
            shapes, rest = sound.split([lips.shape[-1], sound.shape[-1] - lips.shape[-1]], dim=-1)
            sound = torch.cat([torch.where(lips.isnan(), shapes, lips), rest], dim=-1)
        return sound if heard is None else torch.where(heard[:, None, None], sound, self.silence)

    def _heard(self, speech: torch.Tensor) -> torch.Tensor:
        """Codes of what is heard. Of a network that bends its reference: lip shapes, and zeros."""
        code: torch.Tensor = self.speech_encoder(speech)
        if not self.takes_bent():
            return code
        shapes, rest = code.tensor_split([len(self.lip_std)], dim=-1)
        return torch.cat([shapes.clamp(-MOST_HEARD, MOST_HEARD), torch.zeros_like(rest)], dim=-1)

    def hears_linearly(self) -> bool:
        """Whether its speech encoder is a linear map, which the phase `hearing` teaches and `speech` does not."""
        return isinstance(self.speech_encoder, LipRegression)

    @torch.no_grad()
    def heard_shapes(self, speech: torch.Tensor) -> torch.Tensor:
        """The lip shapes [..., lip_numbers] that are heard in windows [..., hops, bins], without dropout."""
        training = self.speech_encoder.training
        self.speech_encoder.eval()
        code = self._heard(speech.flatten(0, -3)[None].to(self.device))[0]
        self.speech_encoder.train(training)
        return code[:, : len(self.lip_std)].unflatten(0, speech.shape[:-2])

    def hear_by(self, speech: str, hops: int, bins: int, linear: bool = False) -> None:
        """From now on hears windows [hops, bins] of other features, by an untrained encoder of torch's generator.

        linear: by a `LipRegression`, of a network whose configuration knows `linear_hearing`; others ignore it.
        """
        known = {"linear_hearing": linear} if "linear_hearing" in self.config else {}
        encoder = (LipRegression if any(known.values()) else SpeechEncoder)(hops, bins, int(self.config.motions))
        self.speech_encoder = encoder.to(self.device, self.dtype).train(self.training)
        self.register_to_config(speech=speech, speech_hops=hops, mel_bins=bins, **known)

    def speech_motion(self, speech: torch.Tensor) -> torch.Tensor:
        """The motion that the sound alone suggests: residuals [B, T, C, h, w] in standard deviations."""
        return self.speech_map(self.speech_encoder(speech))


class SpeechEncoder(nn.Module):
    """One window of features a frame [B, T, hops, bins] to its motion code [B, T, motions]."""

    def __init__(self, hops: int, bins: int, motions: int, width: int = 96, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bins, width, 5, padding=2)
        self.conv2 = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.conv3 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.context = nn.ModuleList(nn.Conv1d(width, width, 3, padding=step, dilation=step) for step in (1, 2))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in self.context)
        self.linear1 = nn.Linear(width * -(-hops // 4), motions)
        self.dropout = nn.Dropout(dropout)

    def forward(self, speech: torch.Tensor, dropout: float | None = None) -> torch.Tensor:
        """dropout: in training, in place of what it was made with."""
        drop = self.dropout if dropout is None else partial(nn.functional.dropout, p=dropout, training=self.training)
        hidden = speech.flatten(0, 1).transpose(1, 2)
        for layer in (self.conv1, self.conv2, self.conv3):
            hidden = drop(nn.functional.silu(layer(hidden)))
        for wider, norm in zip(self.context, self.norms, strict=True):
            hidden = hidden + drop(wider(nn.functional.silu(norm(hidden))))
        return self.linear1(hidden.flatten(1)).unflatten(0, speech.shape[:2])


class LipRegression(nn.Module):
    """One window of a pretrained encoder's features a frame [B, T, hops, bins] to its motion code [B, T, motions]: a
    linear map of three soft stretches of the window."""

    stretches: torch.Tensor

    def __init__(self, hops: int, bins: int, motions: int) -> None:
        super().__init__()
        steps = torch.arange(hops, dtype=torch.float64) - (hops - 1) / 2
        weights = torch.stack([(-(((steps - centre) / width) ** 2) / 2).exp() for centre, width in STRETCHES])
        weights = weights / weights.sum(1, keepdim=True) * math.sqrt(FEATURES_NORM / bins)
        self.register_buffer("stretches", weights.float(), persistent=False)
        self.linear1 = nn.Linear(len(STRETCHES) * bins, motions)
        for parameter in self.linear1.parameters():
            nn.init.zeros_(parameter)

    def features(self, speech: torch.Tensor) -> torch.Tensor:
        """What is regressed on: [..., stretches, bins] of windows [..., hops, bins]."""
        return torch.einsum("sh,...hd->...sd", self.stretches, speech.to(self.stretches.dtype))

    def forward(self, speech: torch.Tensor) -> torch.Tensor:
        return self.linear1(self.features(speech).flatten(-2))


class SpeechMap(nn.Module):
    """Motion codes [B, T, motions] to motion pictures [B, T, C, h, w]: a weighted sum of learned motion patterns."""

    def __init__(self, motions: int, channels: int, size: int) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.linear1 = nn.Linear(motions, channels * size * size)
        nn.init.zeros_(self.linear1.bias)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        return self.linear1(code).unflatten(2, self.shape)
