"""Sound that is still coming: written by whoever hears it, read by whoever waits for more."""

import threading

import numpy as np
import torch

from fedtalk_ray.media.speech import SpeechFeatures
from fedtalk_ray.media.video import FPS, SAMPLE_RATE

FRAME = SAMPLE_RATE // FPS
"""Samples of one frame."""

HEARD_AHEAD = SAMPLE_RATE * 26 // 100
"""Samples after a frame's start that its features need, and a little more: log-mel spectra hear 240 ms ahead."""

LEVEL_S = 10
"""How loud is loud is told by so many seconds before."""


class LiveSound:
    """Mono float32 samples at `SAMPLE_RATE`. asked: so many were waited for. Any number of threads may read."""

    def __init__(self) -> None:
        self._samples = np.empty(LEVEL_S * SAMPLE_RATE, np.float32)
        self._length = self.asked = 0
        self._ended = False
        self._news = threading.Condition()

    def add(self, samples: np.ndarray) -> None:
        with self._news:
            end = self._length + len(samples)
            if end > len(self._samples):
                room = np.empty(2 * end, np.float32)
                room[: self._length] = self._samples[: self._length]
                self._samples = room
            self._samples[self._length : end] = samples
            self._length = end
            self._news.notify_all()

    def end(self) -> None:
        """Nothing more comes."""
        with self._news:
            self._ended = True
            self._news.notify_all()

    def __len__(self) -> int:
        """Samples so far."""
        return self._length

    @property
    def ended(self) -> bool:
        return self._ended

    def wait_for(self, samples: int) -> None:
        """Returns when so many are there, or no more will be."""
        with self._news:
            self.asked = max(self.asked, samples)
            self._news.wait_for(lambda: self._ended or self._length >= samples)

    def __getitem__(self, part: slice) -> np.ndarray:
        """What is there of a part, float32; waits for its end, where it has one."""
        if part.stop is not None:
            self.wait_for(part.stop)
        with self._news:
            return self._samples[: self._length][part]


class LiveSpeech:
    """What each frame hears of a sound that is still coming, as `SpeechFeatures.windows` gives it, a few at a time.

    The level is that of the last `LEVEL_S` seconds and of what has come since, where `windows` has the whole clip's.
    """

    def __init__(self, sound: LiveSound, features: SpeechFeatures, most: int) -> None:
        """most: frames at most."""
        self._sound, self._features, self._most = sound, features, most

    def __len__(self) -> int:
        return self._most

    def __getitem__(self, places: torch.Tensor) -> torch.Tensor:
        """Of the frames with these numbers, int64 [...]: float32 [..., hops, bins]. Waits for their sound."""
        last = int(places.max())
        self._sound.wait_for(last * FRAME + HEARD_AHEAD)
        first = max(0, int(places.min()) - LEVEL_S * FPS)
        # All that has come, of which nobody need wait for more.
        heard = self._sound[first * FRAME :]
        windows = self._features.windows(heard, last - first + 1)
        return torch.from_numpy(windows[(places - first).numpy()])
