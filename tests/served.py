"""The service over a real socket, for its tests, and what they ask it with."""

import io
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import requests
import uvicorn
from PIL import Image
from scipy.io import wavfile

from fedtalk_ray.corpora.synthetic import render_clip
from fedtalk_ray.marking.certificates import trial_signing
from fedtalk_ray.media.video import read_video
from fedtalk_ray.model import adapters
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service.http import Limits, make_app
from fedtalk_ray.service.making import Maker
from fedtalk_ray.service.speaker import Speaker
from fedtalk_ray.service.speaking import Speaking

# Loaded here and not when the service first sends a file, in its own thread: pytest compiles anyio's modules anew as
# they are imported, and Python 3.11 fails where two threads compile at once.
anyio.open_file  # noqa: B018

TOKEN = "a-token-of-24-characters"
LIMITS = Limits(body_mb=2, seconds=2.0, job_seconds=4.0)


class Served:
    """The service on a port of this machine, in a thread; `ask` is requests' own with the address and the token."""

    def __init__(
        self,
        run: Path,
        folder: Path,
        tokens: frozenset[str] = frozenset({TOKEN}),
        maker: Maker | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """maker: None for this process itself."""
        self.folder = folder
        maker = maker or Speaker(RunFolder(run), 3, "cpu")
        speaking = Speaking(RunFolder(run), maker, folder, 2, trial_signing())
        self.speaking = speaking
        app = make_app(speaking, tokens, limits)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        self._session = requests.Session()
        self._session.trust_env = False
        until(lambda: self._server.started)

    def ask(self, method: str, path: str, token: str | None = TOKEN, **more: Any) -> requests.Response:
        headers = more.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        return self._session.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, **more)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)


def run_of_five(pipeline: TalkingHeadPipeline, folder: Path) -> Path:
    """A run whose five clients each have an adapter of their own."""
    return run_of(5, pipeline, folder)


def run_of(clients: int, pipeline: TalkingHeadPipeline, folder: Path) -> Path:
    """A run whose clients each have an adapter of their own."""
    pipeline.save_pretrained(str(folder / "pipeline"))
    model = adapters.with_adapters(pipeline.denoiser, None, 1.0, 3)
    for number in range(clients):
        own_adapter(folder, f"c{number}", model)
    return folder


def own_adapter(folder: Path, name: str, model: Any) -> None:
    """Gives somebody an adapter that is nobody else's."""
    for _, parameter in adapters.identity_parameters(model):
        parameter.data.normal_(0, 0.3)
    place = RunFolder(folder).client(name)
    place.path.mkdir(parents=True, exist_ok=True)
    adapters.save_adapter(model, adapters.IDENTITY, place.newest_adapter)


def until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def png(side: int = 32) -> bytes:
    """An aligned crop of a drawn face: as large as the model's own."""
    kept = io.BytesIO()
    Image.fromarray(render_clip(2, 0, size=side, seconds=0.04).video.frames[0]).save(kept, "PNG")
    return kept.getvalue()


def wav(seconds: float = 0.5) -> bytes:
    kept = io.BytesIO()
    wavfile.write(kept, 16_000, np.random.default_rng(0).normal(0, 3000, int(16_000 * seconds)).astype(np.int16))
    return kept.getvalue()


def form(reference: bytes | None = None, sound: bytes | None = None) -> dict[str, tuple[str, bytes]]:
    return {"reference": ("f", reference or png()), "sound": ("../../s", sound or wav())}


def frames_of(video: bytes, tmp_path: Path) -> np.ndarray:
    (tmp_path / "answer.mp4").write_bytes(video)
    return read_video(tmp_path / "answer.mp4").frames
