"""The service over a real socket: what it makes, what it refuses and before what, who hangs up, who gives rubbish."""

import io
import re
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from fedtalk_ray.commands.cli import main
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.service import making
from fedtalk_ray.service.speaker import Speaker, identities
from tests.served import TOKEN, Served, form, frames_of, png, until, wav


def test_five_people_by_turns_in_the_memory_of_three_are_each_ones_own(run: Path) -> None:
    """To the bit what a model gives that was loaded for that one alone: twice each, and some again at once."""
    speaker, face = Speaker(RunFolder(run), 3, "cpu"), np.array(Image.open(io.BytesIO(png())))
    sound = np.random.default_rng(0).normal(0, 0.1, 1200).astype(np.float32)

    def said(model: TalkingHeadPipeline) -> bytes:
        return model(face, sound, generator=torch.Generator().manual_seed(0)).frames.tobytes()

    names = identities(RunFolder(run))
    alone = {name: said(load_released(RunFolder(run), name)) for name in names}
    assert len(set(alone.values())) == 5
    order = [0, 1, 2, 3, 4, 0, 3, 3, 1, 2, 4, 4]
    assert all(said(speaker.model(names[number])) == alone[names[number]] for number in order)
    assert said(speaker.model()) == said(load_released(RunFolder(run)))


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


def test_settings_beyond_their_range_and_what_is_no_setting_are_told_in_one_line(served: Served) -> None:
    for data in ({"seed": "x"}, {"steps": 0}, {"steps": 51}, {"guidance": "nan"}, {"guidance": -1}, {"face": 0}):
        answer = served.ask("POST", "/v1/generate", files=form(), data=data)
        assert answer.status_code == 422 and answer.json()["detail"].startswith(f"{next(iter(data))}: ")
    answer = served.ask("POST", "/v1/jobs", files={"reference": ("f", png())})
    assert answer.json() == {"detail": "sound: Field required"}
    answer = served.ask("POST", "/v1/jobs", files=form(), data={"identity": "../c0"})
    assert answer.status_code == 404 and answer.json()["detail"] == "identity '../c0' has no adapter here"
    assert served.ask("GET", "/v1/jobs/..%2f..%2fetc").status_code == 404


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


def test_an_error_of_its_own_is_told_as_one_and_the_next_is_served(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("inside")

    with monkeypatch.context() as broken:
        broken.setattr(making, "speak_into", breaks)
        answer = served.ask("POST", "/v1/generate", files=form())
        assert answer.status_code == 500 and "ZeroDivision" not in answer.text
        name = served.ask("POST", "/v1/jobs", files=form()).json()["job"]
        until(lambda: served.ask("GET", f"/v1/jobs/{name}").json()["state"] == "failed")
        assert served.ask("GET", f"/v1/jobs/{name}").json()["why"] == answer.json()["detail"]
        assert served.ask("DELETE", f"/v1/jobs/{name}").status_code == 204
    assert served.ask("POST", "/v1/generate", files=form()).status_code == 200


def test_who_hangs_up_frees_the_worker(served: Served, slow: threading.Event) -> None:
    with pytest.raises(requests.ReadTimeout):
        served.ask("POST", "/v1/generate", files=form(), timeout=1)
    until(lambda: not list(served.folder.iterdir()))
    slow.set()
    assert served.ask("POST", "/v1/generate", files=form()).status_code == 200


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
