"""Phase `speech`: the motion that each sound means, by regression, before the U-Net sees anything.

Pictures of an opening mouth differ from face to face, so a regression on pictures has to learn every face anew. The
landmarks of lips do not: as numbers of a code, regressed for a minute, they follow the truth's on unseen GRID speakers
with a correlation of 0.70 where somebody speaks; read off pictures regressed in their place, 0.44. The U-Net learns
from true lip shapes what they look like on the face of the reference.

A thousand times more frames go through here than through the U-Net in the same time, so this phase can hear what is
said rather than which clip it is. The U-Net then takes the code as given: trained further together with it, lips on
unseen GRID speakers got worse the longer it went on.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from fedtalk_ray.errors import NothingToGive, RunError, TrainingError
from fedtalk_ray.media.speech import LOG_MEL
from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import SPEECH_PARTS, TalkingHeadDenoiser
from fedtalk_ray.recipe import SpeechConfig
from fedtalk_ray.settings import StreamConfig
from fedtalk_ray.shards.windows import Wanted, WindowBatch
from fedtalk_ray.training.augment import vary_speech
from fedtalk_ray.training.losses import cell_weights
from fedtalk_ray.training.optimise import Loss, descend
from fedtalk_ray.training.phases.phase import Fitted, Task, state_digest, until_halted

WANTED = Wanted(lips=True, mean_reference=True)
"""Residuals on the piece's mean frame: how far a mouth is from where it is at rest."""


class Speech:
    """The speech encoder and the map from its code to motion, of a denoiser whose units are fixed."""

    def __init__(
        self,
        denoiser: TalkingHeadDenoiser,
        config: SpeechConfig,
        stream: StreamConfig,
        mouth_weight: float,
        device: str = "cpu",
    ) -> None:
        """Raises `RunError` for a denoiser without lip axes."""
        if not denoiser.knows_lips():
            raise RunError("phases: speech needs a backbone that knows lip axes, and this one has none; add units")
        self._denoiser, self._config, self._stream, self._device = denoiser.to(device), config, stream, device
        self._mask = cell_weights(denoiser.config.latent_size, mouth_weight).to(device)

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [each for each in sorted(self._denoiser.named_parameters()) if each[0].startswith(SPEECH_PARTS)]

    def initial(self) -> np.ndarray:
        return adapters.to_vector(self._parameters())

    def fit(self, task: Task) -> Fitted:
        config, parameters = self._config, self._parameters()
        adapters.from_vector(parameters, task.shared)
        self._denoiser.requires_grad_(False)
        trained = [parameter for _, parameter in parameters]
        for parameter in trained:
            parameter.requires_grad_(True)
        batches = task.people.batches(
            task.client,
            window=self._denoiser.config.window,
            windows=config.steps * config.batch_size,
            batch_size=config.batch_size,
            seed=task.seed,
            stream=self._stream,
            wanted=WANTED,
        )
        # Dropout draws from torch's global generator, whatever it was left at by the client before.
        torch.manual_seed(task.seed)
        self._denoiser.train()
        losses = descend(
            trained,
            self._losses(until_halted(task, batches), np.random.default_rng(task.seed)),
            config.steps,
            task.pace(config.learning_rate, config.steps).rate,
            weight_decay=config.weight_decay,
        )
        self._denoiser.eval().requires_grad_(False)
        update = adapters.to_vector(parameters) - task.shared
        if not np.isfinite(update).all():
            raise TrainingError("its update holds values that are not finite; lower speech.learning_rate")
        return Fitted(update, losses)

    def finish(self, vector: np.ndarray) -> None:
        adapters.from_vector(self._parameters(), vector)
        self._denoiser.eval().requires_grad_(False)

    def frozen(self) -> bytes:
        return state_digest(self._denoiser.state_dict(), (name for name, _ in self._parameters()))

    def _losses(self, batches: Iterable[WindowBatch], rng: np.random.Generator) -> Iterator[Loss]:
        """How far shapes and motion are from what the sound says, of each batch."""
        base, log_mel = self._denoiser, self._denoiser.config.speech == LOG_MEL
        for batch in batches:
            check_sound(batch.speech)
            varied = [vary_speech(window.numpy(), rng, log_mel) for window in batch.speech]
            speech = torch.from_numpy(np.stack(varied)).to(self._device)
            moved = batch.to(self._device)
            target, shape = base.to_residual(moved.latents, moved.reference), base.lip_shape(moved.lips)
            code = base.speech_encoder(speech)
            picture = (self._mask * (base.speech_map(code) - target).square()).mean()
            lips = (code[..., : shape.shape[-1]] - shape).square().mean()
            yield picture + lips, {"lips": float(lips.detach()), "motion": float(picture.detach())}


def check_sound(speech: torch.Tensor) -> None:
    """Raises `NothingToGive` for windows [B, T, hops, bins] that all hold the same value: clips without sound."""
    if float(speech.max() - speech.min()) < 1e-3:
        raise NothingToGive("its clips are silent, and nothing can be learned from what is not said")
