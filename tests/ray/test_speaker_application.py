"""The service and its page as an application of Ray Serve, asked through Serve's own proxy."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from ray import serve

from fedtalk_ray.actors.application import Settings, application
from fedtalk_ray.errors import UserError
from tests.served import TOKEN, form, frames_of, run_of_five
from tests.unit.conftest import tiny_pipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of_five(tiny_pipeline(), tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def address(ray_cluster: None, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tokens = tmp_path_factory.mktemp("asked") / "tokens"
    tokens.write_text(TOKEN)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(Settings(run=str(run), tokens=str(tokens))), name="whole", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_it_speaks_streams_and_shows_the_page_to_who_has_a_token(address: str, tmp_path: Path) -> None:
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(f"{address}/v1/health").status_code == 401
        assert "Sign in" in session.get(address, headers={"accept": "text/html"}).text
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        video = session.post(f"{address}/v1/generate", files=form(), data={"identity": "c1"})
        assert video.status_code == 200 and len(frames_of(video.content, tmp_path)) == 13
        with session.post(f"{address}/v1/generate", files=form(), data={"stream": True}, stream=True) as streamed:
            parts = list(streamed.iter_content(None))
        assert len(parts) > 1 and len(frames_of(b"".join(parts), tmp_path)) == 13
        assert "gradio" in session.get(address).text
        assert "Speak" in session.get(f"{address}/config").text


@pytest.mark.parametrize(
    ("changed", "line"), [({"run": "no/such"}, "no/such"), ({"tokens": "no/such"}, "no/such cannot be read")]
)
def test_what_is_not_there_is_told_before_anything_starts(changed: dict[str, str], line: str, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    given = {"run": "fedtalk-tiny", "tokens": str(tmp_path / "tokens")} | changed
    with pytest.raises(UserError, match=line):
        application(Settings.model_validate(given))
