"""Content credentials (C2PA): a signed statement inside a video that it was generated, and by what.

Signed last: whoever decodes the file and writes it again loses them. c2pa-python writes and reads them, off line.
"""

import json
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import c2pa

from fedtalk_ray.errors import UserError
from fedtalk_ray.marking.certificates import Signing
from fedtalk_ray.outputs import OutputError

_CHANGED = ("mismatch", "claimSignature.missing", "assertion.missing", "assertion.inaccessible")
"""How the standard's codes end, or which they are, where a file is not what was signed."""

_SETTINGS: dict[str, object] = {
    # Nothing is asked of anybody: neither a manifest elsewhere, nor who is behind an identity that a file names.
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "core": {
        "decode_identity_assertions": False,
        "allowed_network_hosts": [],
        # Pieces, so that memory does not grow with the file.
        "merkle_tree_chunk_size_in_kb": 1024,
        "backing_store_memory_threshold_in_mb": 8,
    },
}

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

    fits: whether they hold: the file is the one that was signed, by a certificate that holds. problem: the standard's
    code for what does not, or "". changed: whether the file is another than was signed.
    trusted: whether the signer's certificate leads to one that the reader trusts. signer: the name in the certificate.
    generator: which program signed. kind: `SYNTHETIC`, `COMPOSITE`, or another of IPTC's words. number: of the
    invisible mark, None where they name none.
    """

    fits: bool
    problem: str
    changed: bool
    trusted: bool
    signer: str
    generator: str
    kind: str
    number: int | None


def sign(source: Path, target: Path, signing: Signing, kind: str, number: int | None) -> None:
    """Writes a video again as `target`, with credentials. number: of the mark in it, None for none.

    Raises `CredentialsError` where the certificate will not do, `OutputError` where nothing can be written.
    """
    actions: list[dict[str, str]] = [{"action": "c2pa.created", "digitalSourceType": _TYPES + kind}]
    assertions: list[dict[str, Any]] = [{"label": "c2pa.actions", "data": {"actions": actions}}]
    if number is not None:
        actions.append({"action": "c2pa.watermarked"})
        block = {"scope": {}, "value": f"{number:04x}"}
        assertions.append({"label": "c2pa.soft-binding", "data": {"alg": MARK, "blocks": [block]}})
    program = {"name": GENERATOR, "version": version("fedtalk-ray")}
    statement = {"claim_generator_info": [program], "assertions": assertions}
    try:
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(signing.algorithm, signing.chain, signing.key, None))
        with c2pa.Builder(statement, _context(())) as builder:
            builder.sign_file(str(source), str(target), signer)
    except c2pa.C2paError as error:
        full = shutil.disk_usage(target.parent).free < source.stat().st_size
        if full or isinstance(error, c2pa.C2paError.Io) or re.search(r"\[Errno \d+\]", str(error)):
            why = "No space left on device" if full else _one_line(error)
            raise OutputError(f"cannot write {target}: {why}; nothing was left half written") from error
        raise CredentialsError(f"{signing.where}: no credentials can be signed with it ({_one_line(error)})") from error


def read(path: str | Path, trusted: tuple[bytes, ...] = ()) -> Credentials | None:
    """A file's credentials; None where it has none. trusted: certificates of authorities, PEM.

    Nothing is fetched from anywhere. Raises `CredentialsError` for a file that cannot be read.
    """
    try:
        with c2pa.Reader(str(path), context=_context(trusted)) as reader:
            said = json.loads(reader.json())
    except (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported):
        # The second: of a kind of file that holds none.
        return None
    except (c2pa.C2paError, OSError) as error:
        raise CredentialsError(f"{path}: its credentials cannot be read ({_one_line(error)})") from error
    # Anybody may have written this: nothing is where it should be until it was looked at.
    claim = _at(said, "manifests", str(_at(said, "active_manifest"))) or {}
    codes = [str(_at(status, "code")) for status in _list(_at(said, "validation_status"))]
    assertions = [each for each in _list(_at(claim, "assertions")) if isinstance(_at(each, "data"), dict)]
    kinds = [
        _at(action, "digitalSourceType")
        for each in assertions
        if str(_at(each, "label")).startswith("c2pa.actions")
        for action in _list(_at(each, "data", "actions"))
    ]
    numbers = [
        _at(each, "data", "blocks", 0, "value")
        for each in assertions
        if str(_at(each, "label")).startswith("c2pa.soft-binding") and _at(each, "data", "alg") == MARK
    ]
    named = re.fullmatch("[0-9a-f]{4}", str(numbers[0])) if numbers else None
    generator = _at(claim, "claim_generator_info", 0)
    wrong = [code for code in codes if code != "signingCredential.untrusted"]
    changed = [code for code in wrong if code.endswith(_CHANGED)]
    problem = next(iter((*changed, *wrong)), "")
    kind = next((str(kind) for kind in kinds if kind), "")
    return Credentials(
        fits=_at(said, "validation_state") in ("Valid", "Trusted"),
        problem=_printable(problem),
        changed=bool(changed),
        trusted=_at(said, "validation_state") == "Trusted",
        signer=_printable(_at(claim, "signature_info", "common_name") or ""),
        generator=_printable(f"{_at(generator, 'name') or ''} {_at(generator, 'version') or ''}"),
        kind=_printable(kind.removeprefix(_TYPES)),
        number=int(named[0], 16) if named else None,
    )


def _at(data: Any, *path: str | int) -> Any:
    """What lies there in JSON that anybody wrote, or None."""
    for step in path:
        if isinstance(data, dict) and isinstance(step, str):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


def _list(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def _context(trusted: tuple[bytes, ...]) -> c2pa.Context:
    trust = {"trust": {"trust_anchors": b"\n".join(trusted).decode()}} if trusted else {}
    return c2pa.Context.from_dict(_SETTINGS | trust)


def _printable(text: object) -> str:
    """What a file says of itself, without what would move a terminal's cursor."""
    return "".join(sign for sign in str(text) if sign.isprintable()).strip()[:200]


def _one_line(error: Exception) -> str:
    return _printable(" ".join(str(error).split()))
