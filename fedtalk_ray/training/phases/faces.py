"""Phase `faces`: the denoiser learns what lips of a shape look like on a face, as a shared adapter or all of it.

Most windows get their true lip shapes: from those the U-Net learns to do what a code says, which the shapes that it
hears, being guesses, would not teach it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from fedtalk_ray.model import adapters
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.windows import PictureBatch, Wanted, WindowBatch
from fedtalk_ray.training.augment import vary_windows
from fedtalk_ray.training.local import LocalTrainer, batches_needed
from fedtalk_ray.training.phases.phase import Fitted, Score, Task, until_halted
from fedtalk_ray.training.phases.speech import check_sound
from fedtalk_ray.training.told_lips import lips_wanted, tell


class Faces:
    """The denoiser with its adapters (`LocalTrainer`), client after client."""

    def __init__(
        self, trainer: LocalTrainer, config: TrainConfig, proximal: float = 0.0, score: Score | None = None
    ) -> None:
        """proximal: FedProx's mu. score: None where nobody asks for one."""
        self._trainer, self._config, self._proximal, self._score = trainer, config, proximal, score

    def initial(self) -> np.ndarray:
        return adapters.to_vector(self._trainer.shared())

    def fit(self, task: Task) -> Fitted:
        local, trainer, people = self._config.local, self._trainer, task.people
        base = bare_denoiser(trainer.model)
        wanted = Wanted(pictures=local.vary, lips=lips_wanted(base, local.true_lips))
        batches = people.batches(
            task.client,
            window=trainer.window,
            windows=batches_needed(local) * local.batch_size,
            batch_size=local.batch_size,
            seed=task.seed,
            stream=self._config.stream,
            wanted=wanted,
        )
        pace = task.pace(local.learning_rate, local.steps) if local.schedule == "cosine" else None
        fitted = trainer.fit(
            task.shared,
            task.identity,
            self._taught(until_halted(task, batches), np.random.default_rng(task.seed)),
            seed=task.seed,
            index=task.index,
            pace=pace,
            proximal=self._proximal,
        )
        return replace(fitted, reliability=self._score(task)) if self._score else fitted

    def finish(self, vector: np.ndarray) -> None:
        self._trainer.load(vector, None)

    def frozen(self) -> bytes:
        return self._trainer.frozen_digest()

    def _taught(self, batches: Iterable[PictureBatch | WindowBatch], rng: np.random.Generator) -> Iterator[WindowBatch]:
        """Windows to train on: varied where that is wanted, and most with lip shapes (`tell`)."""
        base = bare_denoiser(self._trainer.model)
        for batch in batches:
            check_sound(batch.speech)
            windows = vary_windows(self._trainer.pipeline, batch, rng) if isinstance(batch, PictureBatch) else batch
            tell(base, windows, self._config.local.true_lips, rng)
            yield windows
