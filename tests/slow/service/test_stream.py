"""A video that is watched while it is made, and who is let in through a browser."""

import io
import socket
import threading
import time
from pathlib import Path

import av
import pytest
import requests

from fedtalk_ray.marking import marked_video
from fedtalk_ray.media.video import read_video
from fedtalk_ray.service.admission import COOKIE
from tests.served import TOKEN, Served, ask_alone, form, frames_of, until, wav


def test_frames_come_as_they_are_made_and_are_those_of_the_file(served: Served, tmp_path) -> None:
    """Fragmented, playable from its beginning; the same pictures but for coding; sound beside them."""
    asked = {"files": form(sound=wav(1.5)), "data": {"seed": 3}}
    whole = frames_of(served.ask("POST", "/v1/generate", **asked).content, tmp_path)
    asked["data"]["stream"] = True
    with served.ask("POST", "/v1/generate", stream=True, **asked) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
        assert "content-length" not in answer.headers
        came = answer.content
    assert came.count(b"moof") > 4 and came.index(b"moov") < came.index(b"moof")
    (tmp_path / "stream.mp4").write_bytes(came)
    streamed = read_video(tmp_path / "stream.mp4")
    assert streamed.frames.shape == whole.shape and abs(len(streamed.audio) - 24_000) < 2048
    assert abs(streamed.frames.astype(int) - whole).mean() < 6
    until(lambda: not list(served.folder.iterdir()))


def test_what_has_come_plays_before_the_rest_is_there(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maker is held after half of the frames: half of them can be decoded by then."""
    go, real = threading.Event(), marked_video.also_growing

    def held(*given):
        for number, block in enumerate(real(*given)):
            yield block
            if number == 1:
                assert go.wait(20)

    monkeypatch.setattr(marked_video, "also_growing", held)
    try:
        with served.ask("POST", "/v1/generate", files=form(sound=wav(2.0)), data={"stream": True}, stream=True) as come:
            chunks, first = come.iter_content(None), b""
            while first.count(b"moof") < 4:
                first += next(chunks)
            assert not go.is_set()
            go.set()
            rest = b"".join(chunks)
    finally:
        go.set()
    with av.open(io.BytesIO(first)) as container:
        early = 0
        try:
            for _ in container.decode(video=0):
                early += 1
        except av.error.FFmpegError:
            pass  # the last fragment may have been cut
    with av.open(io.BytesIO(first + rest)) as container:
        assert 5 <= early < len(list(container.decode(video=0))) == 50


def test_a_job_is_watched_by_several_from_its_beginning(served: Served, slow: threading.Event) -> None:
    name = served.ask("POST", "/v1/jobs", files=form(), data={"stream": True}).json()["job"]
    with served.ask("GET", "/v1/jobs/none/stream") as none:
        assert none.status_code == 404
    seen: list[bytes] = []
    watchers = [
        threading.Thread(target=lambda: seen.append(served.ask("GET", f"/v1/jobs/{name}/stream").content))
        for _ in range(3)
    ]
    for watcher in watchers:
        watcher.start()
    slow.set()
    for watcher in watchers:
        watcher.join(30)
    assert len(seen) == 3 and len(set(seen)) == 1 and b"moof" in seen[0]
    assert served.ask("GET", f"/v1/jobs/{name}/stream").content == seen[0]
    assert served.ask("DELETE", f"/v1/jobs/{name}").status_code == 204
    silent = served.ask("POST", "/v1/jobs", files=form()).json()["job"]
    assert served.ask("GET", f"/v1/jobs/{silent}/stream").json() == {"detail": "the job was begun without stream"}
    served.ask("DELETE", f"/v1/jobs/{silent}")


def test_a_stream_that_cannot_begin_is_told_why_and_one_that_is_left_is_stopped(
    served: Served, slow: threading.Event
) -> None:
    slow.set()
    answer = served.ask("POST", "/v1/generate", files=form(reference=b"\0" * 500), data={"stream": True})
    assert answer.status_code == 400 and answer.json()["detail"].startswith("reference: cannot be decoded")
    until(lambda: not list(served.folder.iterdir()))
    slow.clear()
    with pytest.raises(requests.ReadTimeout):
        served.ask("POST", "/v1/generate", files=form(), data={"stream": True}, timeout=1)
    until(lambda: not list(served.folder.iterdir()))


def test_a_browser_gives_its_token_once(served: Served) -> None:
    html = {"headers": {"Accept": "text/html"}}
    asked = served.ask("GET", "/", None, **html)
    assert asked.status_code == 401 and 'name="token"' in asked.text
    wrong = served.ask("POST", "/sign-in", None, data={"token": TOKEN[:-1]})
    assert wrong.status_code == 401 and "no token of this service" in wrong.text and not wrong.cookies
    long = served.ask("POST", "/sign-in", None, data={"token": "x" * 5000})
    assert long.status_code == 413
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
    assert not list(served.folder.iterdir())


def test_no_other_site_frames_it_and_nothing_of_another_place_is_handed_out(served: Served) -> None:
    answer = served.ask("GET", "/v1/identities")
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    for path in ("/file=http://elsewhere.example/x.png", "/file=http%3A%2F%2Felsewhere.example/x.png", "/file=http:/x"):
        assert served.ask("GET", path).status_code == 403


def test_what_is_parsed_at_once_is_short(served: Served) -> None:
    """Two MiB may come as a form of files; as JSON they would hold everybody up."""
    answer = served.ask("POST", "/v1/jobs", data=b"[]," * 400_000, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and answer.json() == {"detail": "the body is longer than 1024 KiB"}


def test_a_job_that_is_taken_back_before_its_turn_is_gone_for_who_watches(
    served: Served, slow: threading.Event
) -> None:
    first, second = (
        served.ask("POST", "/v1/jobs", files=form(), data={"stream": True}).json()["job"] for _ in range(2)
    )
    seen: list[int] = []
    watcher = threading.Thread(
        target=lambda: seen.append(ask_alone(served, "GET", f"/v1/jobs/{second}/stream").status_code)
    )
    watcher.start()
    time.sleep(0.3)
    assert served.ask("DELETE", f"/v1/jobs/{second}").status_code == 204
    watcher.join(20)
    assert seen == [410]
    slow.set()
    served.ask("DELETE", f"/v1/jobs/{first}")
    until(lambda: not list(served.folder.iterdir()))


def test_another_programs_cookies_do_not_hide_the_token(served: Served) -> None:
    headers = {"Cookie": f'a={{"x":1}}; b[c]=d e; {COOKIE}={TOKEN}'}
    assert served.ask("GET", "/v1/identities", None, headers=headers).status_code == 200
    for odd in ({"Host": "["}, {"Origin": "http://["}):
        assert served.ask("GET", "/v1/identities", None, headers=odd).status_code in (401, 403)


def test_a_full_disk_takes_no_place_in_the_queue(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as no_room:
        no_room.setattr(Path, "mkdir", full)
        for _ in range(4):
            assert served.ask("POST", "/v1/jobs", files=form()).status_code == 507
    assert served.ask("POST", "/v1/generate", files=form()).status_code == 200


def test_without_tokens_only_this_machines_own_names_are_answered(open_to_all: Served) -> None:
    """A name that somebody else's server turned to 127.0.0.1 while its page was open."""
    for host, code in (
        (f"127.0.0.1:{open_to_all.port}", b"200"),
        (f"localhost:{open_to_all.port}", b"200"),
        ("[::1]:80", b"200"),
        ("elsewhere.example", b"403"),
        ("127.0.0.1.elsewhere.example", b"403"),
        ("127.0.0.1@elsewhere.example", b"403"),
        ("", b"403"),
    ):
        with socket.create_connection(("127.0.0.1", open_to_all.port), 10) as line:
            line.sendall(b"GET /v1/identities HTTP/1.1\r\nHost: " + host.encode() + b"\r\nConnection: close\r\n\r\n")
            assert line.recv(100).split()[1] == code, host
