"""Marked videos: what c2pa's own reader says of them in another process, and what `verify` says when they change."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import c2pa
import numpy as np
import pytest

from fedtalk_ray.errors import UserError
from fedtalk_ray.marking import certificates, credentials, invisible
from fedtalk_ray.marking.certificates import CertificateError, authority_of, signing_of, trial_signing
from fedtalk_ray.marking.credentials import COMPOSITE, SYNTHETIC, CredentialsError
from fedtalk_ray.marking.marked_video import signing_if_possible, signing_with, write_marked
from fedtalk_ray.marking.verify import MarkError, verify
from fedtalk_ray.media.encoding import write_video
from fedtalk_ray.media.video import VideoError

Issue = Callable[..., tuple[Path, Path, Path]]

READ = """
import c2pa, json, sys
context = c2pa.Context.from_dict({"trust": {"trust_anchors": open(sys.argv[2]).read()}})
reader = c2pa.Reader(sys.argv[1], context=context)
print(json.dumps([reader.get_validation_state(), json.loads(reader.json())]))
"""


def written(tmp_path: Path, frames: np.ndarray, kind: str = SYNTHETIC, name: str = "talk.mp4") -> Path:
    write_marked(tmp_path / name, [frames], np.zeros(16_000, np.float32), kind, trial_signing())
    return tmp_path / name


def coded_again(source: Path, target: Path, seconds: float = 10.0) -> Path:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream("h264", rate=25, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = old.streams.video[0].width, old.streams.video[0].height, "yuv420p"
        for frame in old.decode(video=0):
            if frame.time < seconds:
                new.mux(stream.encode(frame.reformat(format="yuv420p")))
        new.mux(stream.encode())
    return target


@pytest.mark.parametrize("kind", [SYNTHETIC, COMPOSITE])
def test_a_reader_in_another_process_finds_valid_credentials(tmp_path: Path, frames: np.ndarray, kind: str) -> None:
    file = written(tmp_path, frames, kind)
    anchor = certificates.trial_folder() / "authority.pem"
    done = subprocess.run([sys.executable, "-c", READ, file, anchor], capture_output=True, text=True, check=True)
    state, said = json.loads(done.stdout)
    assert state == "Trusted"
    assert not said.get("validation_status")
    assertions = {a["label"]: a["data"] for a in said["manifests"][said["active_manifest"]]["assertions"]}
    created = assertions["c2pa.actions.v2"]["actions"][0]
    assert created["action"] == "c2pa.created"
    assert created["digitalSourceType"] == f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"
    mark = invisible.read(frame.to_ndarray(format="rgb24") for frame in av.open(str(file)).decode(video=0))
    assert mark is not None
    assert assertions["c2pa.soft-binding"]["blocks"][0]["value"] == f"{mark.number:04x}"


def test_credentials_say_nothing_of_the_machine_or_the_files(tmp_path: Path, frames: np.ndarray) -> None:
    content = written(tmp_path, frames, name="a-secret-name.mp4").read_bytes()
    for word in (b"a-secret-name", str(tmp_path).encode(), str(Path.home()).encode() + b"/"):
        assert word not in content


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa"])
def test_a_certificate_by_path_signs(tmp_path: Path, frames: np.ndarray, issue: Issue, kind: str) -> None:
    chain, key, authority = issue(kind=kind)
    write_marked(tmp_path / "talk.mp4", [frames], None, SYNTHETIC, signing_with(chain, key))
    assert '"ann", whom nothing here vouches for' in verify(tmp_path / "talk.mp4").lines()[0]
    verdict = verify(tmp_path / "talk.mp4", (authority_of(authority),))
    assert verdict.lines()[0].endswith('unchanged since it was signed; signed by "ann"')
    assert not verdict.problem()


def test_every_change_is_told(tmp_path: Path, frames: np.ndarray) -> None:
    file = written(tmp_path, frames)
    assert verify(file).problem() == ""
    content = bytearray(file.read_bytes())
    content[content.rindex(b"mdat") + 400] ^= 1
    (tmp_path / "changed.mp4").write_bytes(content)
    assert "changed after it was signed" in verify(tmp_path / "changed.mp4").problem()
    assert "DO NOT FIT (assertion.bmffHash.mismatch)" in verify(tmp_path / "changed.mp4").lines()[0]
    again = verify(coded_again(file, tmp_path / "again.mp4"))
    assert again.credentials is None and again.mark is not None
    assert "were taken out" in again.problem()
    write_video(tmp_path / "plain.mp4", frames, None)
    assert verify(tmp_path / "plain.mp4").lines() == ["credentials: none", "invisible mark: none found"]
    assert "nor that it was not" in verify(tmp_path / "plain.mp4").problem()


def test_credentials_of_another_video_are_told(tmp_path: Path, frames: np.ndarray) -> None:
    """A liar signs pictures that carry another number."""
    other = (invisible.nearest_number(frames[0]) + 1) % 65536
    write_video(tmp_path / "unsigned.mp4", np.stack([invisible.mark(frame, other) for frame in frames]), None)
    credentials.sign(tmp_path / "unsigned.mp4", tmp_path / "signed.mp4", trial_signing(), SYNTHETIC, 7)
    assert verify(tmp_path / "signed.mp4").problem() == (
        f"its credentials are of another video: they name the mark 0007, not {other:04x}"
    )


def test_credentials_without_a_mark_are_told(tmp_path: Path, frames: np.ndarray) -> None:
    write_video(tmp_path / "unsigned.mp4", frames, None)
    credentials.sign(tmp_path / "unsigned.mp4", tmp_path / "signed.mp4", trial_signing(), SYNTHETIC, 7)
    verdict = verify(tmp_path / "signed.mp4")
    assert verdict.lines()[1] == "invisible mark: none found"
    assert verdict.problem() == "its credentials name the mark 0007, and it is not in the pictures"


def test_signer_cannot_move_the_cursor(tmp_path: Path, frames: np.ndarray, issue: Issue) -> None:
    chain, key, _ = issue(name="ann\x1b[2J\r")
    write_marked(tmp_path / "talk.mp4", [frames], None, SYNTHETIC, signing_of(chain, key))
    assert verify(tmp_path / "talk.mp4").lines()[0].isprintable()


def test_another_machines_trial_certificate_is_told(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, frames)
    assert "it does not say who" in verify(file).lines()[0]
    monkeypatch.setenv("FEDTALK_HOME", str(tmp_path / "elsewhere"))
    assert "of another machine" in verify(file).lines()[0]


def test_trial_key_is_for_its_owner_alone_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTALK_HOME", str(tmp_path / "home"))
    first = trial_signing()
    assert trial_signing() == first
    folder = certificates.trial_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    (folder / "chain.pem").write_text("damaged")
    assert trial_signing() != first


@pytest.mark.parametrize(
    ("days", "expected"), [((-60, -1), "today is"), ((5, 60), "today is")], ids=["expired", "not yet"]
)
def test_certificates_out_of_their_time_are_refused(issue: Issue, days: tuple[int, int], expected: str) -> None:
    chain, key, _ = issue(days=days)
    with pytest.raises(CertificateError, match=expected):
        signing_of(chain, key)


def test_unusable_certificates_are_told_in_one_line(tmp_path: Path, frames: np.ndarray, issue: Issue) -> None:
    chain, key, _ = issue()
    _, other_key, _ = issue(name="bob")
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(chain.read_bytes()[:200])
    for wrong, of, said in (
        (damaged, key, "is no PEM certificate, or damaged"),
        (chain, damaged, "is no PEM private key without a password, or damaged"),
        (chain, other_key, "is not the key of the first certificate"),
        (tmp_path / "none.pem", key, "No such file"),
        (*issue(name="carl", kind="secp256k1")[:2], "is of no kind that C2PA signs with"),
    ):
        with pytest.raises(CertificateError, match=said):
            signing_of(wrong, of)
    with pytest.raises(CertificateError, match="--key is missing"):
        signing_with(chain, None)
    with pytest.raises(CertificateError, match="is no PEM certificate"):
        authority_of(damaged)


def test_a_certificate_for_another_purpose_signs_nothing(tmp_path: Path, frames: np.ndarray, issue: Issue) -> None:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    chain, key, _ = issue(purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    (tmp_path / "talk.mp4").write_bytes(b"what was there")
    with pytest.raises(CredentialsError, match="no credentials can be signed with it"):
        write_marked(tmp_path / "talk.mp4", [frames], None, SYNTHETIC, signing_of(chain, key))
    assert (tmp_path / "talk.mp4").read_bytes() == b"what was there"
    assert not list(tmp_path.glob(".*"))


def test_what_is_watched_in_passing_is_marked_where_no_key_can_be_kept(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDTALK_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError):
        trial_signing()
    signing = signing_if_possible()
    assert signing is None
    write_marked(tmp_path / "sample.mp4", [frames], None, COMPOSITE, signing)
    verdict = verify(tmp_path / "sample.mp4")
    assert verdict.credentials is None and verdict.mark is not None


def test_files_that_are_no_video_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    for file in (tmp_path / "a.mp4", tmp_path / "none.mp4", tmp_path):
        with pytest.raises(MarkError):
            verify(file)
    with pytest.raises(VideoError, match="no frame"):
        write_marked(tmp_path / "b.mp4", [], None, SYNTHETIC, None)
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize(
    "assertions",
    [
        [],
        [{"label": "c2pa.soft-binding", "data": {"alg": credentials.MARK, "blocks": []}}],
        [{"label": "c2pa.soft-binding", "data": {"alg": credentials.MARK, "blocks": [{"scope": {}, "value": "zz"}]}}],
        [{"label": "c2pa.soft-binding", "data": {"alg": credentials.MARK, "blocks": {"value": 7}}}],
        [{"label": "c2pa.soft-binding", "data": {"alg": credentials.MARK}}],
        [{"label": "org.else", "data": {"blocks": "a" * 10_000}}, {"label": "org.list", "data": [1, 2]}],
    ],
    ids=["none", "no blocks", "no number", "no list", "nothing", "other"],
)
def test_whatever_a_stranger_signed_is_told_in_two_lines(
    tmp_path: Path, frames: np.ndarray, issue: Issue, assertions: list
) -> None:
    chain, key, _ = issue()
    write_video(tmp_path / "plain.mp4", frames, None)
    signing = signing_of(chain, key)
    created = {
        "label": "c2pa.actions",
        "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": "x/\x1b[2J"}]},
    }
    statement = {"claim_generator_info": [{"name": "\x1b[2Jelse"}], "assertions": [created, *assertions]}
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(signing.algorithm, signing.chain, signing.key, None))
    careless = c2pa.Context.from_dict({"verify": {"verify_after_sign": False}})
    with c2pa.Builder(statement, careless) as builder:
        builder.sign_file(str(tmp_path / "plain.mp4"), str(tmp_path / "signed.mp4"), signer)
    verdict = verify(tmp_path / "signed.mp4")
    assert verdict.credentials is not None and verdict.credentials.number is None
    assert all(line.isprintable() for line in verdict.lines())
