"""A video that is watched while it is made, and who is let in through a browser."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import requests

from fedtalk_ray.marking.verify import verify
from fedtalk_ray.media.video import read_video
from fedtalk_ray.service.admission import COOKIE
from tests.served import TOKEN, Served, form, frames_of, until, wav


def test_frames_come_as_they_are_made_and_are_those_of_the_file(served: Served, tmp_path) -> None:
    """Fragmented, playable from its beginning; the same pictures but for coding; sound beside them."""
    asked = {"files": form(sound=wav(1.2)), "data": {"seed": 3}}
    whole = frames_of(served.ask("POST", "/v1/generate", **asked).content, tmp_path)
    asked["data"]["stream"] = True
    with served.ask("POST", "/v1/generate", stream=True, **asked) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
        assert "content-length" not in answer.headers
        came = answer.content
    assert came.count(b"moof") > 4 and came.index(b"moov") < came.index(b"moof")
    (tmp_path / "stream.mp4").write_bytes(came)
    streamed = read_video(tmp_path / "stream.mp4")
    assert streamed.frames.shape == whole.shape and abs(len(streamed.audio) - 19_200) < 2048
    assert abs(streamed.frames.astype(int) - whole).mean() < 6 and len(whole) == 30
    assert verify(tmp_path / "answer.mp4").credentials is not None
    until(lambda: not list(served.folder.iterdir()))


def test_a_job_is_watched_by_several_from_its_beginning(served: Served, slow: threading.Event) -> None:
    name = served.ask("POST", "/v1/jobs", files=form(), data={"stream": True}).json()["job"]
    with served.ask("GET", "/v1/jobs/none/stream") as none:
        assert none.status_code == 404
    with ThreadPoolExecutor(3) as pool:
        watched = [pool.submit(served.ask, "GET", f"/v1/jobs/{name}/stream") for _ in range(3)]
        slow.set()
        seen = [each.result(30).content for each in watched]
    assert len(set(seen)) == 1 and b"moof" in seen[0]
    assert served.ask("GET", f"/v1/jobs/{name}/stream").content == seen[0]
    assert served.ask("DELETE", f"/v1/jobs/{name}").status_code == 204
    silent = served.ask("POST", "/v1/jobs", files=form()).json()["job"]
    assert served.ask("GET", f"/v1/jobs/{silent}/stream").json() == {"detail": "the job was begun without stream"}
    served.ask("DELETE", f"/v1/jobs/{silent}")


def test_a_browser_gives_its_token_once(served: Served) -> None:
    html = {"headers": {"Accept": "text/html"}}
    asked = served.ask("GET", "/", None, **html)
    assert asked.status_code == 401 and 'name="token"' in asked.text
    wrong = served.ask("POST", "/sign-in", None, data={"token": TOKEN[:-1]})
    assert wrong.status_code == 401 and "no token of this service" in wrong.text and not wrong.cookies
    with requests.Session() as browser:
        browser.trust_env = False
        at = f"http://127.0.0.1:{served.port}"
        there = browser.post(f"{at}/sign-in", data={"token": TOKEN}, allow_redirects=False)
        assert there.status_code == 303 and there.headers["location"] == "/"
        kept = next(cookie for cookie in browser.cookies if cookie.name == COOKIE)
        assert kept.has_nonstandard_attr("HttpOnly") and kept.get_nonstandard_attr("SameSite") == "lax"
        assert browser.get(f"{at}/v1/identities").status_code == 200
        # Somebody else's page, in the same browser.
        other = browser.post(f"{at}/v1/jobs", files=form(), headers={"Origin": "http://elsewhere.example"})
        assert other.status_code == 403 and other.json() == {"detail": "another site's page asks"}
        assert browser.get(f"{at}/v1/identities", headers={"Origin": at}).status_code == 200
    until(lambda: not list(served.folder.iterdir()))


def test_without_tokens_only_this_machines_own_names_are_answered(open_to_all: Served) -> None:
    """A name that somebody else's server turned to 127.0.0.1 while its page was open."""
    for host, code in (
        (f"127.0.0.1:{open_to_all.port}", b"200"),
        ("[::1]:80", b"200"),
        ("elsewhere.example", b"403"),
        ("127.0.0.1.elsewhere.example", b"403"),
        ("", b"403"),
    ):
        with socket.create_connection(("127.0.0.1", open_to_all.port), 10) as line:
            line.sendall(b"GET /v1/identities HTTP/1.1\r\nHost: " + host.encode() + b"\r\nConnection: close\r\n\r\n")
            assert line.recv(100).split()[1] == code, host


def test_a_full_disk_takes_no_place_in_the_queue(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as no_room:
        no_room.setattr(Path, "mkdir", Mock(side_effect=OSError(28, "No space left on device")))
        for _ in range(4):
            assert served.ask("POST", "/v1/jobs", files=form()).status_code == 507
    assert served.ask("POST", "/v1/generate", files=form()).status_code == 200
