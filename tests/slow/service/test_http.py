"""The service over a real socket: what it makes, what it refuses and before what, who hangs up, who gives rubbish."""

import gc
import io
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
import torch
from PIL import Image

from fedtalk_ray.commands.cli import main
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.excerpt import Footage
from fedtalk_ray.media.video import read_video
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service import making
from fedtalk_ray.service.speaker import Speaker, identities
from tests.page_examples import example
from tests.served import TOKEN, Served, ask_alone, form, frames_of, png, run_of, until, wav


def test_a_face_and_a_sound_become_a_marked_video_and_nothing_stays(served: Served, tmp_path: Path) -> None:
    answer = served.ask("POST", "/v1/generate", files=form(), data={"seed": 3})
    assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
    (tmp_path / "talk.mp4").write_bytes(answer.content)
    with av.open(str(tmp_path / "talk.mp4")) as container:
        assert len(list(container.decode(video=0))) == 13 and container.streams.audio
    found = verify(tmp_path / "talk.mp4")
    assert found.credentials is not None
    until(lambda: not list(served.folder.iterdir()))


def test_twenty_people_by_turns_in_the_memory_of_three_are_each_ones_own(
    make_pipeline: Callable[..., TalkingHeadPipeline], tmp_path: Path
) -> None:
    """To the bit what a model gives that was loaded for that one alone: twice each, and some again at once."""
    run = run_of(20, make_pipeline(), tmp_path / "run")
    speaker, face = Speaker(RunFolder(run), 3, "cpu"), np.array(Image.open(io.BytesIO(png())))
    sound = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)

    def said(model: TalkingHeadPipeline) -> bytes:
        return model(face, sound, generator=torch.Generator().manual_seed(0)).frames.tobytes()

    names = identities(RunFolder(run))
    alone = {name: said(load_released(RunFolder(run), name)) for name in names}
    assert len(set(alone.values())) == 20
    rng = np.random.default_rng(1)
    order = [*rng.permutation(20), *rng.permutation(20), *rng.integers(20, size=10).repeat(2)]
    assert all(said(speaker.model(names[number])) == alone[names[number]] for number in order)
    assert said(speaker.model()) == said(load_released(RunFolder(run)))


def test_somebodys_own_adapter_speaks(served: Served, tmp_path: Path) -> None:
    assert served.ask("GET", "/v1/identities").json() == [f"c{number}" for number in range(5)]
    shared, *own = (
        frames_of(served.ask("POST", "/v1/generate", files=form(), data=data).content, tmp_path)
        for data in ({}, {"identity": "c0"}, {"identity": "c1"})
    )
    assert all((each != shared).any() for each in own) and (own[0] != own[1]).any()


def test_who_has_no_token_is_turned_away_before_the_body_is_read(served: Served) -> None:
    for token in (None, "another-token-of-24-char", TOKEN[:-1]):
        answer = served.ask("POST", "/v1/generate", token, files=form())
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    # A body that never comes: the answer does.
    with socket.create_connection(("127.0.0.1", served.port), 10) as line:
        line.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 401 " in line.recv(100)
        assert not list(served.folder.iterdir())


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (b"Content-Length: 999999999999", 413),
        (b"Transfer-Encoding: chunked", 411),
        (b"Content-Length: 10\r\nTransfer-Encoding: chunked", 400),
    ],
)
def test_a_body_too_long_or_of_no_known_length_is_not_read(served: Served, length: bytes, code: int) -> None:
    with socket.create_connection(("127.0.0.1", served.port), 10) as line:
        head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
        line.sendall(head + length + b"\r\n\r\n")
        assert b" %d " % code in line.recv(100)


BAD = {
    "no picture": (form(reference=b"\x00" * 500), {}, r"^reference: cannot be decoded"),
    "no face": (form(reference=png(32)[:-40]), {}, r"^reference: "),
    "no sound": (form(sound=b"RIFF" + b"\x01" * 300), {}, r"^sound: cannot be decoded"),
    "a playlist": (form(sound=b"#EXTM3U\n#EXTINF:3,\n/etc/passwd\n#EXT-X-ENDLIST\n"), {}, r"^sound: cannot be decoded"),
    "too long a sound": (form(sound=wav(2.1)), {}, r"^sound: is longer than 2 s$"),
    "a face that is not there": (form(), {"face": 2}, r"^--face 2: reference is an aligned crop"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_is_told_in_one_line_without_a_path_of_this_machine(served: Served, kind: str) -> None:
    files, data, line = BAD[kind]
    answer = served.ask("POST", "/v1/generate", files=files, data=data)
    told = answer.json()["detail"]
    assert answer.status_code == 400 and re.search(line, told), told
    assert "\n" not in told and "/" not in told.replace("and/or", "")
    until(lambda: not list(served.folder.iterdir()))


def test_a_picture_of_two_hundred_megapixels_is_refused_and_small(served: Served) -> None:
    """21 kB of PNG that would be 600 MB of pixels."""
    kept = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(kept, "PNG")
    answer = served.ask("POST", "/v1/generate", files=form(reference=kept.getvalue()))
    assert answer.status_code == 400 and answer.json()["detail"].startswith("reference: ")


@pytest.mark.parametrize(
    "data", [{"seed": "x"}, {"steps": 0}, {"steps": 51}, {"guidance": "nan"}, {"guidance": -1}, {"face": 0}]
)
def test_settings_beyond_their_range_are_refused(served: Served, data: dict[str, Any]) -> None:
    answer = served.ask("POST", "/v1/generate", files=form(), data=data)
    assert answer.status_code == 422 and answer.json()["detail"].startswith(f"{next(iter(data))}: ")


def test_a_file_in_the_place_of_a_setting_is_told_in_one_line(served: Served) -> None:
    answer = served.ask("POST", "/v1/generate", files=form() | {"seed": ("s", b"5")})
    assert answer.status_code == 422 and answer.json()["detail"].startswith("seed: ") and "_Temp" not in answer.text
    assert served.ask("POST", "/v1/jobs", files={"reference": ("f", png())}).json() == {
        "detail": "sound: Field required"
    }


def test_nobody_of_that_name(served: Served) -> None:
    answer = served.ask("POST", "/v1/jobs", files=form(), data={"identity": "../c0"})
    assert answer.status_code == 404 and answer.json()["detail"] == "identity '../c0' has no adapter here"
    for path in ("/v1/jobs/none", "/v1/jobs/none/video", "/v1/jobs/..%2f..%2fetc"):
        assert served.ask("GET", path).status_code == 404


def test_a_job_is_looked_at_fetched_and_forgotten(served: Served, tmp_path: Path) -> None:
    name = served.ask("POST", "/v1/jobs", files=form(sound=wav(3.0))).json()["job"]
    until(lambda: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "done")
    assert len(frames_of(served.ask("GET", f"/v1/jobs/{name}/video").content, tmp_path)) == 75
    assert served.ask("DELETE", f"/v1/jobs/{name}").status_code == 204
    assert served.ask("GET", f"/v1/jobs/{name}").status_code == 404
    assert not list(served.folder.iterdir())
    failed = served.ask("POST", "/v1/jobs", files=form(sound=wav(4.5))).json()["job"]
    until(lambda: served.ask("GET", f"/v1/jobs/{failed}").json()["state"] == "failed")
    # What was given is gone as soon as nobody needs it.
    assert not list((served.folder / failed).iterdir())
    assert served.ask("GET", f"/v1/jobs/{failed}").json() == {"state": "failed", "why": "sound: is longer than 4 s"}
    assert served.ask("DELETE", f"/v1/jobs/{failed}").status_code == 204


def test_beyond_the_bound_everybody_is_told_429_and_served_later(served: Served, slow: threading.Event) -> None:
    names = [served.ask("POST", "/v1/jobs", files=form()).json()["job"] for _ in range(3)]
    answer = served.ask("POST", "/v1/jobs", files=form())
    assert answer.status_code == 429 and answer.headers["retry-after"] == "10"
    assert served.ask("GET", "/v1/health").json() == {"state": "ready"}
    slow.set()
    for name in names:
        until(lambda name=name: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "done")
        assert served.ask("DELETE", f"/v1/jobs/{name}").status_code == 204


def test_the_log_says_nothing_of_what_whoever_asked_is_told(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    assert served.ask("POST", "/v1/generate", files=form(sound=b"no sound")).status_code == 400
    until(lambda: not list(served.folder.iterdir()))
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_error_of_its_own_is_told_as_one_and_the_next_is_served(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("inside")

    with monkeypatch.context() as broken:
        broken.setattr(making, "speak_into", breaks)
        answer = served.ask("POST", "/v1/generate", files=form())
        assert answer.status_code == 500
        assert answer.json() == {"detail": "an error of the service's own; its log says which"}
        name = served.ask("POST", "/v1/jobs", files=form()).json()["job"]
        until(lambda: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "failed")
        assert (
            served.ask("GET", f"/v1/jobs/{name}").json()["why"] == "an error of the service's own; its log says which"
        )
        assert served.ask("DELETE", f"/v1/jobs/{name}").status_code == 204
    assert served.ask("POST", "/v1/generate", files=form()).status_code == 200


def test_who_hangs_up_frees_the_worker(served: Served, slow: threading.Event) -> None:
    with pytest.raises(requests.ReadTimeout):
        served.ask("POST", "/v1/generate", files=form(), timeout=1)
    until(lambda: not list(served.folder.iterdir()))
    slow.set()
    assert served.ask("POST", "/v1/generate", files=form()).status_code == 200


def test_who_fetches_what_another_takes_back_has_all_of_it_or_is_told_that_it_is_gone(served: Served) -> None:
    for _ in range(3):
        name = served.ask("POST", "/v1/jobs", files=form()).json()["job"]
        until(lambda name=name: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "done")
        with ThreadPoolExecutor(8) as pool:
            fetched = [pool.submit(ask_alone, served, "GET", f"/v1/jobs/{name}/video") for _ in range(7)]
            assert pool.submit(ask_alone, served, "DELETE", f"/v1/jobs/{name}").result().status_code == 204
        answers = [each.result() for each in fetched]
        assert {answer.status_code for answer in answers} <= {200, 404}
        assert len({answer.content for answer in answers if answer.ok}) <= 1


def test_who_hangs_up_while_a_face_is_followed_frees_the_worker(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A video whose frames never end: only whoever is gone ends it."""
    clip = tmp_path / "clip.mp4"
    write_video(clip, np.full((30, 64, 64, 3), 90, np.uint8), None)
    seen = []

    def endless(self: Footage) -> Iterator[np.ndarray]:
        while True:
            seen.append(1)
            time.sleep(0.01)
            yield np.full((64, 64, 3), 90, np.uint8)

    monkeypatch.setattr(Footage, "__iter__", endless)
    with pytest.raises(requests.ReadTimeout):
        served.ask("POST", "/v1/generate", files=form(reference=clip.read_bytes()), timeout=1.5)
    until(lambda: not list(served.folder.iterdir()))
    assert seen


def test_the_description_names_every_path_and_the_pages_client_speaks(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    described = served.ask("GET", "/openapi.json").json()
    assert {"/v1/generate", "/v1/jobs", "/v1/jobs/{name}", "/v1/jobs/{name}/video", "/v1/identities"} < set(
        described["paths"]
    )
    assert {"429", "507"} < set(described["paths"]["/v1/generate"]["post"]["responses"])
    client: dict[str, Any] = {}
    text = example("service.md", "def speak").replace("127.0.0.1:8080", f"127.0.0.1:{served.port}")
    exec(compile(text.replace("the token that you were given", TOKEN), "service.md", "exec"), client)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "face.png").write_bytes(png())
    (tmp_path / "speech.wav").write_bytes(wav())
    client["speak"](str(tmp_path / "face.png"), str(tmp_path / "speech.wav"), str(tmp_path / "talk.mp4"), seed=2)
    assert len(read_video(tmp_path / "talk.mp4").frames) == 13
    with pytest.raises(RuntimeError, match=r"^identity 'nobody' has no adapter here$"):
        client["speak"](str(tmp_path / "face.png"), str(tmp_path / "speech.wav"), "x.mp4", identity="nobody")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--host", "0.0.0.0"], r"--host 0\.0\.0\.0: others can reach that; give --tokens FILE"),
        (["--tokens", "{folder}/none"], r"--tokens .*none cannot be read"),
        (["--tokens", "{folder}/short"], r"--tokens .*short: 1 of 2 tokens have under 16 characters"),
        (["--tokens", "{folder}/empty"], r"--tokens .*empty holds no token"),
    ],
)
def test_the_command_refuses_to_stand_open(more: list[str], line: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "short").write_text("0123456789abcdef\nabc\n")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SystemExit) as ended:
        main(["app", *(each.format(folder=tmp_path) for each in more)])
    told = capsys.readouterr().err
    assert ended.value.code == 1 and re.search(line, told) and told.count("\n") == 1


def ends_without_an_answer(session: requests.Session, port: int, files: dict[str, tuple[str, bytes]]) -> None:
    try:
        assert session.post(f"http://127.0.0.1:{port}/v1/generate", files=files).status_code >= 500
    except requests.ConnectionError:
        return


def test_a_port_that_is_taken_is_told_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        main(["app", "--run", str(run), "--port", str(taken.getsockname()[1])])
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 1 and re.search(r"--port [0-9]+: Address already in use.*; give another$", told)
    assert "\n" not in told


def test_the_command_serves_until_it_is_stopped_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "fedtalk_ray.commands.cli", "app", "--run", str(run), "--port", "0", "--no-page"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = re.match(r"http://127\.0\.0\.1:([0-9]+)/v1 for programs", process.stdout.readline())
        assert told
        port = int(told[1])
        session = requests.Session()
        session.trust_env = False

        def answers() -> bool:
            try:
                return session.get(f"http://127.0.0.1:{port}/v1/health").ok
            except requests.ConnectionError:
                return False

        until(answers)
        assert session.get(f"http://127.0.0.1:{port}/v1/identities").json()[0] == "c0"
        assert [path for path in Path(os.environ["TMPDIR"]).iterdir() if path.name.startswith("fedtalk-app-")]
        # Somebody waits for a minute of sound, which is given up.
        files = form(sound=wav(59.0))
        waits = threading.Thread(target=ends_without_an_answer, args=(session, port, files))
        waits.start()
        until(lambda: list(Path(os.environ["TMPDIR"]).glob("fedtalk-app-*/jobs/*/sound")))
    finally:
        process.terminate()
        process.wait(30)
    waits.join(10)
    assert not [path for path in Path(os.environ["TMPDIR"]).iterdir() if path.name.startswith("fedtalk-app-")]
