"""Content credentials (C2PA): a signed statement inside a video that it was generated, and by what.

Signed last: whoever decodes the file and writes it again loses them. c2pa-python writes and reads them, off line.
"""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import c2pa

from fedtalk_ray.errors import UserError
from fedtalk_ray.marking.certificates import Signing
from fedtalk_ray.outputs import OutputError

_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SYNTHETIC, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
"""What a video is, in IPTC's words: all of it made by a model, or a real picture of which a model made a part."""

GENERATOR = "fedtalk_ray"
MARK = "fedtalk.mark.1"
"""How the credentials name the invisible mark; its number stands beside it (C2PA: soft binding)."""


class CredentialsError(UserError):
    """A file cannot be signed, or what it carries cannot be read."""


@dataclass(frozen=True)
class Credentials:
    """What a file's credentials say.

    fits: whether nothing was changed since they were signed. problem: the standard's code for what does not fit, or "".
    trusted: whether the signer's certificate leads to one that the reader trusts. signer: the name in the certificate.
    generator: which program signed. kind: `SYNTHETIC`, `COMPOSITE`, or another of IPTC's words. number: of the
    invisible mark, None where they name none.
    """

    fits: bool
    problem: str
    trusted: bool
    signer: str
    generator: str
    kind: str
    number: int | None


def sign(source: Path, target: Path, signing: Signing, kind: str, number: int) -> None:
    """Writes a video again as `target`, with credentials.

    Raises `CredentialsError` where the certificate will not do, `OutputError` where nothing can be written.
    """
    statement = {
        "claim_generator_info": [{"name": GENERATOR, "version": version("fedtalk-ray")}],
        "assertions": [
            {
                "label": "c2pa.actions",
                "data": {
                    "actions": [
                        {"action": "c2pa.created", "digitalSourceType": _TYPES + kind},
                        {"action": "c2pa.watermarked"},
                    ]
                },
            },
            {
                "label": "c2pa.soft-binding",
                "data": {"alg": MARK, "blocks": [{"scope": {}, "value": f"{number:04x}"}]},
            },
        ],
    }
    try:
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(signing.algorithm, signing.chain, signing.key, None))
        with c2pa.Builder(statement, _context(())) as builder:
            builder.sign_file(str(source), str(target), signer)
    except c2pa.C2paError.Io as error:
        raise OutputError(f"cannot write {target}: {_one_line(error)}; nothing was left half written") from error
    except c2pa.C2paError as error:
        raise CredentialsError(f"{signing.where}: no credentials can be signed with it ({_one_line(error)})") from error


def read(path: str | Path, trusted: tuple[bytes, ...] = ()) -> Credentials | None:
    """A file's credentials; None where it has none. trusted: certificates of authorities, PEM.

    Nothing is fetched from anywhere. Raises `CredentialsError` for a file that cannot be read.
    """
    try:
        with c2pa.Reader(str(path), context=_context(trusted)) as reader:
            said = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except (c2pa.C2paError, OSError) as error:
        raise CredentialsError(f"{path}: its credentials cannot be read ({_one_line(error)})") from error
    wrong = [status["code"] for status in said.get("validation_status") or ()]
    claim = said["manifests"][said["active_manifest"]]
    actions, number = [], None
    for assertion in claim.get("assertions", ()):
        data = assertion.get("data")
        if assertion["label"].startswith("c2pa.actions"):
            actions += data["actions"]
        elif assertion["label"].startswith("c2pa.soft-binding") and data.get("alg") == MARK:
            number = int(data["blocks"][0]["value"], 16)
    generators = claim.get("claim_generator_info") or [{}]
    return Credentials(
        fits=said.get("validation_state") in ("Valid", "Trusted"),
        problem=next((code for code in wrong if code != "signingCredential.untrusted"), ""),
        trusted=said.get("validation_state") == "Trusted",
        signer=_printable((claim.get("signature_info") or {}).get("common_name", "")),
        generator=_printable(f"{generators[0].get('name', '')} {generators[0].get('version', '')}"),
        kind=_printable(next((a["digitalSourceType"] for a in actions if "digitalSourceType" in a), "").split("/")[-1]),
        number=number,
    )


def _context(trusted: tuple[bytes, ...]) -> c2pa.Context:
    settings: dict[str, object] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    if trusted:
        settings["trust"] = {"trust_anchors": b"\n".join(trusted).decode()}
    return c2pa.Context.from_dict(settings)


def _printable(text: object) -> str:
    """What a file says of itself, without what would move a terminal's cursor."""
    return "".join(sign for sign in str(text) if sign.isprintable()).strip()[:200]


def _one_line(error: Exception) -> str:
    return _printable(" ".join(str(error).split()))
