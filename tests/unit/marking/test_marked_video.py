"""Marked videos: what c2pa's own reader says of them in another process, and what `verify` says when they change."""

import json
import subprocess
import sys
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
from tests.unit.marking.conftest import Issue

READ = """
import c2pa, json, sys
context = c2pa.Context.from_dict({"trust": {"trust_anchors": open(sys.argv[2]).read()}})
reader = c2pa.Reader(sys.argv[1], context=context)
print(json.dumps([reader.get_validation_state(), json.loads(reader.json())]))
"""


def written(tmp_path: Path, frames: np.ndarray, kind: str = SYNTHETIC, name: str = "talk.mp4") -> Path:
    write_marked(tmp_path / name, [frames], np.zeros(16_000, np.float32), kind, trial_signing())
    return tmp_path / name


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
    assert verdict.lines()[0].startswith("credentials: unchanged ") and 'signed by "ann"' in verdict.lines()[0]
    assert not verdict.problem()


def test_every_change_is_told(tmp_path: Path, frames: np.ndarray) -> None:
    file = written(tmp_path, frames[[0] * 25])
    assert verify(file).problem() == ""
    content = bytearray(file.read_bytes())
    content[content.rindex(b"mdat") + 400] ^= 1
    (tmp_path / "changed.mp4").write_bytes(content)
    assert "it was changed after its credentials were signed" in verify(tmp_path / "changed.mp4").problem()
    assert "DO NOT HOLD (assertion.bmffHash.mismatch)" in verify(tmp_path / "changed.mp4").lines()[0]
    write_video(tmp_path / "plain.mp4", frames, None)
    assert verify(tmp_path / "plain.mp4").lines() == ["credentials: none", "invisible mark: none found"]
    assert "nor that it was not" in verify(tmp_path / "plain.mp4").problem()


def test_a_file_that_holds_no_credentials_still_shows_its_mark(tmp_path: Path, frames: np.ndarray) -> None:
    file = written(tmp_path, frames)
    again = [frame.to_ndarray(format="rgb24") for frame in av.open(str(file)).decode(video=0)]
    write_video(tmp_path / "again.mkv", np.stack(again), None)
    (tmp_path / "junk.mp4").write_bytes(file.read_bytes() + b"x" * 40)
    for name, says in (("again.mkv", "were taken out"), ("junk.mp4", "its credentials cannot be read")):
        verdict = verify(tmp_path / name)
        assert verdict.mark is not None and verdict.lines()[1].startswith("invisible mark: ")
        assert says in verdict.problem()


def test_pictures_that_cannot_carry_the_mark_get_credentials_that_name_none(tmp_path: Path) -> None:
    number = write_marked(tmp_path / "a.mp4", [np.zeros((5, 16, 16, 3), np.uint8)], None, SYNTHETIC, trial_signing())
    assert number is None
    assert verify(tmp_path / "a.mp4").problem() == ""


@pytest.mark.parametrize(
    ("carried", "kind", "named", "says"),
    [
        (9, SYNTHETIC, 7, "its credentials are of another video: they name the mark 0007, not 0009"),
        (9, SYNTHETIC, None, "its credentials name no mark, and its pictures carry 0009"),
        (None, SYNTHETIC, 7, "its credentials name the mark 0007, and it is not in the pictures"),
        (None, "digitalCapture", None, "its credentials do not say that it was generated"),
    ],
)
def test_credentials_that_do_not_go_with_the_pictures_are_told(
    tmp_path: Path, frames: np.ndarray, carried: int | None, kind: str, named: int | None, says: str
) -> None:
    if carried is not None:
        frames = np.stack([invisible.mark(frame, carried) for frame in frames])
    write_video(tmp_path / "unsigned.mp4", frames, None)
    credentials.sign(tmp_path / "unsigned.mp4", tmp_path / "signed.mp4", trial_signing(), kind, named)
    assert verify(tmp_path / "signed.mp4").problem() == says


def test_another_machines_trial_certificate_is_told(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTALK_HOME", str(tmp_path / "home"))
    file = written(tmp_path, frames)
    assert "it does not say who" in verify(file).lines()[0]
    (certificates.trial_folder() / "key.pem").unlink()
    trial_signing()
    assert "it does not say who" in verify(file).lines()[0], "a new one leaves older videos this machine's own"
    monkeypatch.setenv("FEDTALK_HOME", str(tmp_path / "elsewhere"))
    assert "of another machine" in verify(file).lines()[0]


def test_trial_key_is_for_its_owner_alone_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTALK_HOME", str(tmp_path / "home"))
    first = trial_signing()
    assert trial_signing() == first
    folder = certificates.trial_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    (folder / "chain.pem").write_bytes(b"damaged")
    assert trial_signing() != first
    folder.chmod(0o777)
    with pytest.raises(CertificateError, match="is open to others"):
        trial_signing()


def test_unusable_certificates_are_told_in_one_line(tmp_path: Path, issue: Issue) -> None:
    chain, key, _ = issue()
    _, other_key, _ = issue(name="bob")
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(chain.read_bytes()[:200])
    for wrong, of, said in (
        (damaged, key, "is no PEM certificate, or damaged"),
        (chain, damaged, "is no PEM private key without a password, or damaged"),
        (chain, other_key, "is not the key of the first certificate"),
        (tmp_path / "none.pem", key, "No such file"),
        (*issue(name="dora", days=(-60, -1))[:2], "today is"),
        (*issue(name="eve", days=(5, 60))[:2], "today is"),
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
    with pytest.raises(CredentialsError, match="no credentials can be signed with it"):
        signing_with(chain, key)
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
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/hostname\n")
    for name in ("a.mp4", "none.mp4", "", "list.m3u8", "a" * 300):
        with pytest.raises(MarkError):
            verify(tmp_path / name)
    with pytest.raises(VideoError, match="no frame"):
        write_marked(tmp_path / "b.mp4", [], None, SYNTHETIC, None)
    assert not (tmp_path / "b.mp4").exists()


IDENTITY = """
import os, sys, socket, threading
from pathlib import Path
listening = socket.create_server(("127.0.0.1", 0))
calls = []
def accept():
    while True:
        line, _ = listening.accept()
        calls.append(line.recv(200))
        line.close()
threading.Thread(target=accept, daemon=True).start()
os.environ["HTTPS_PROXY"] = os.environ["HTTP_PROXY"] = f"http://127.0.0.1:{listening.getsockname()[1]}"
from fedtalk_ray.marking.verify import verify
verify(sys.argv[1])
if len(sys.argv) > 2:
    import c2pa
    c2pa.Reader(sys.argv[1])
print(len(calls))
"""


def test_nobody_is_asked_who_stands_behind_a_file(tmp_path: Path, frames: np.ndarray, issue: Issue) -> None:
    """An identity that a file names lies at a host that the file's maker chose (CAWG, did:web)."""
    chain, key, _ = issue()
    write_video(tmp_path / "plain.mp4", frames, None)
    signing = signing_of(chain, key)
    payload = {
        "sig_type": "cawg.identity_claims_aggregation",
        "referenced_assertions": [
            {"url": f"self#jumbf=c2pa.assertions/{name}", "hash": "A" * 43 + "="}
            for name in ("c2pa.hash.bmff.v3", "c2pa.actions.v2")
        ],
    }
    someone = {
        "type": "cawg.social_media",
        "name": "x",
        "username": "x",
        "uri": "https://x.example/",
        "verifiedAt": "2026-01-01T00:00:00Z",
        "provider": {"id": "https://x.example/", "name": "x"},
    }
    said = {
        "@context": ["https://www.w3.org/ns/credentials/v2", "https://cawg.io/identity/1.1/ica/context/"],
        "type": ["VerifiableCredential", "IdentityClaimsAggregationCredential"],
        "issuer": "did:web:tracker.example.com",
        "validFrom": "2026-01-01T00:00:00Z",
        "credentialSubject": {"verifiedIdentities": [someone], "c2paAsset": payload},
    }

    def part(content: bytes) -> bytes:
        """A CBOR byte string of 256 bytes or more."""
        return b"\x59" + len(content).to_bytes(2, "big") + content

    # COSE_Sign1 with algorithm EdDSA and a JSON credential, its signature all zeros: the issuer is asked first.
    content = json.dumps(said).encode()
    protected = b"\xa2\x01\x27\x03\x6eapplication/vc"
    cose = b"\xd2\x84" + bytes([0x40 + len(protected)]) + protected + b"\xa0" + part(content) + b"\x58\x40" + bytes(64)
    identity = {"signer_payload": payload, "signature": list(cose), "pad1": [0] * 16}
    created = {"action": "c2pa.created", "digitalSourceType": "x/\x1b[2J"}
    statement = {
        "claim_generator_info": [{"name": "\x1b[2Jelse"}],
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [created]}},
            {"label": "cawg.identity", "data": identity},
        ],
    }
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(signing.algorithm, signing.chain, signing.key, None))
    careless = c2pa.Context.from_dict(
        {"verify": {"verify_after_sign": False}, "core": {"decode_identity_assertions": False}}
    )
    with c2pa.Builder(statement, careless) as builder:
        builder.sign_file(str(tmp_path / "plain.mp4"), str(tmp_path / "signed.mp4"), signer)

    def calls(*more: str) -> int:
        command = [sys.executable, "-c", IDENTITY, str(tmp_path / "signed.mp4"), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
        return int(done.stdout.split()[-1])

    verdict = verify(tmp_path / "signed.mp4")
    assert verdict.credentials is not None and verdict.credentials.number is None and verdict.problem()
    assert all(line.isprintable() for line in verdict.lines()), "whatever a stranger wrote"
    assert calls() == 0
    assert calls("carelessly") > 0, "the file asks nobody even of a reader that lets it"
