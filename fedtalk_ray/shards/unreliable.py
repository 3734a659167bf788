"""Unreliable clients: a copy of shards in which some clients' clips to train on and to score with are corrupted.

Who was corrupted and how is written to SHARDS/unreliable.json, for reports only: training never reads it. Test clips,
all other clients and what the manifest says of clips stay as they were, byte for byte.

The kinds: "shuffled frames" (pictures permuted in time, sound untouched), "wrong sound" (the sound of another client's
clips), "mixed identities" (every clip is one of another client, so that the client holds several people).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedtalk_ray.errors import ShardError
from fedtalk_ray.outputs import new_folder
from fedtalk_ray.shards.format import (
    ARRAYS,
    EVERY_COLUMN,
    FOOTAGE,
    IDENTITY,
    LANDMARKS,
    MANIFEST,
    PLACES,
    Manifest,
    Piece,
    list_shard_files,
    load_manifest,
)
from fedtalk_ray.shards.reader import decode_row, read_pieces, shard_files

UNRELIABLE = "unreliable.json"
SHUFFLED, WRONG_SOUND, MIXED = "shuffled frames", "wrong sound", "mixed identities"
KINDS = (SHUFFLED, WRONG_SOUND, MIXED)
CORRUPTED_SPLITS = ("train", "val")


@dataclass
class Donor:
    """One whole clip of another client, standing in for `clip`; arrays as in `shards.format.Piece`, for all frames."""

    clip: str
    arrays: dict[str, np.ndarray]
    identity: np.ndarray


def corrupt_shards(
    shards: str | Path,
    out: str | Path,
    *,
    share: float = 1 / 3,
    who: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, str]:
    """Writes a copy of `shards` to `out` with round(share * clients) clients corrupted; returns {client: kind}.

    who: these clients, and not a share of them. The kinds are dealt in turn, in an order that the seed says. The same
    seed corrupts the same clients in the same way. Raises `ShardError` for a share that names nobody, somebody unknown,
    an unknown kind, shards of a single client, or shards that are corrupted already.
    """
    shards, manifest = Path(shards), load_manifest(shards)
    clients = manifest.clients()
    count = round(share * len(clients)) if who is None else len(who)
    if strangers := sorted(set(who or ()) - set(clients)):
        raise ShardError(f"{strangers[0]!r} is no client of shards {shards}; clients: {', '.join(clients)}")
    if who is not None and not who:
        raise ShardError("--who names nobody; give clients, comma-separated")
    if not 0 < share <= 1 or not count:
        raise ShardError(f"--share {share:g} of {len(clients)} clients corrupts nobody; give a share in (0, 1]")
    for kind in kinds:
        if kind not in KINDS:
            raise ShardError(f"kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    if not kinds:
        raise ShardError(f"no kind of corruption is named; known: {', '.join(KINDS)}")
    if len(clients) < 2:
        raise ShardError(f"shards {shards} hold one client; wrong sounds and faces come from another one")
    if (shards / UNRELIABLE).exists() or shards.resolve() == Path(out).resolve():
        raise ShardError(f"shards {shards} are corrupted already, or are the output; take the clean ones as the source")
    rng = np.random.default_rng(seed)
    able = clients if who is None else list(dict.fromkeys(who))
    chosen = [able[index] for index in rng.permutation(len(able))[:count]]
    victims = {client: kinds[index % len(kinds)] for index, client in enumerate(chosen)}
    with new_folder(out, overwrite) as folder:
        corrupted = {
            file: client
            for client in victims
            for split in CORRUPTED_SPLITS
            for file in shard_files(shards, client, split)
        }
        for file in sorted(path for path in shards.rglob("*") if path.is_file()):
            place = folder / file.relative_to(shards)
            place.parent.mkdir(parents=True, exist_ok=True)
            client = corrupted.get(str(file))
            if client is None:
                shutil.copyfile(file, place)
            else:
                _rewrite(file, place, shards, manifest, client, victims[client], seed)
        tree = json.loads((folder / MANIFEST).read_text())
        tree["files"] = {name: asdict(entry) for name, entry in list_shard_files(folder).items()}
        (folder / MANIFEST).write_text(json.dumps(tree, indent=1))
        record = {
            "shards": str(shards),
            "share": len(victims) / len(clients),
            "seed": seed,
            "clients": dict(sorted(victims.items())),
        }
        (folder / UNRELIABLE).write_text(json.dumps(record, indent=1))
    return victims


def unreliable_clients(shards: str | Path) -> dict[str, str]:
    """{client: kind} of a corrupted copy; empty for shards that nobody corrupted."""
    path = Path(shards) / UNRELIABLE
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text())["clients"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} is damaged ({error}); corrupt the shards again") from error


def _rewrite(file: Path, place: Path, shards: Path, manifest: Manifest, client: str, kind: str, seed: int) -> None:
    """One Parquet file with the same schema, rows and row groups, and other bytes in its arrays."""
    split = file.name.split("-")[0]
    donors = _donors_of(manifest, client, split, kind, seed)
    donor: Donor | None = None
    with pq.ParquetFile(file) as source:
        schema = source.schema_arrow
        options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        with pq.ParquetWriter(place, schema, **options) as writer:
            for group in range(source.num_row_groups):
                rows = source.read_row_group(group).to_pylist()
                for row in rows:
                    piece = decode_row(row, manifest.shapes)
                    # Its own pictures would hide what is done to its crops.
                    row |= {name: type(row[name])() for name in (PLACES, FOOTAGE) if name in row}
                    if kind == SHUFFLED:
                        order = _disorder(len(piece.frames), _rng(seed, client, piece.clip, piece.begin))
                        row |= {name: getattr(piece, name)[order].tobytes() for name in ("frames", "latents")}
                        if len(piece.landmarks):
                            row[LANDMARKS] = piece.landmarks[order].tobytes()
                        continue
                    if donor is None or donor.clip != piece.clip:
                        donor = _draw(shards, manifest, donors[piece.clip], split, piece.clip, seed)
                    columns = tuple(ARRAYS) if kind == MIXED else ("speech", "waveform")
                    row |= {name: _fit(donor, name, piece, manifest).tobytes() for name in columns}
                    if kind == MIXED and IDENTITY in row:
                        row[IDENTITY] = donor.identity.tobytes()
                    if kind == MIXED and len(piece.landmarks):
                        row[LANDMARKS] = _fit(donor, LANDMARKS, piece, manifest).tobytes()
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _donors_of(manifest: Manifest, client: str, split: str, kind: str, seed: int) -> dict[str, str]:
    """Whose clip stands in for each clip: one other client for sound, as many different ones as there are for faces."""
    others = [name for name in manifest.clients() if name != client]
    order = _rng(seed, client, "donors").permutation(len(others))
    clips = [clip for clip in manifest.identities[client] if clip.split == split]
    return {clip.name: others[order[index % len(others) if kind == MIXED else 0]] for index, clip in enumerate(clips)}


def _draw(shards: Path, manifest: Manifest, giver: str, split: str, clip: str, seed: int) -> Donor:
    """A random whole clip of the giver's same split: clips held out stay held out."""
    names = [entry.name for entry in manifest.identities[giver] if entry.split == split]
    name = names[_rng(seed, giver, clip).integers(len(names))]
    pieces = [piece for piece in read_pieces(shards, manifest, giver, split) if piece.clip == name]
    arrays = {array: np.concatenate([getattr(piece, array) for piece in pieces]) for array in EVERY_COLUMN}
    return Donor(clip, arrays, pieces[0].identity)


def _fit(donor: Donor, name: str, piece: Piece, manifest: Manifest) -> np.ndarray:
    """The donor's array where the piece lies in its clip, as long as the piece; a donor that ends begins again."""
    per_frame = manifest.sample_rate // manifest.fps if name == "waveform" else 1
    length = len(piece.waveform) if name == "waveform" else len(piece.frames)
    index = np.arange(piece.begin * per_frame, piece.begin * per_frame + length)
    # Sound and pictures wrap at the same frame, so that they stay together.
    return donor.arrays[name][index % (len(donor.arrays["frames"]) * per_frame)]


def _disorder(count: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation that is not the identity (for two frames or more)."""
    order = rng.permutation(count)
    return np.roll(order, 1) if (order == np.arange(count)).all() else order


def _rng(seed: int, *names: str | int) -> np.random.Generator:
    """Every draw has its own name: the order of files and rows does not matter."""
    return np.random.default_rng([seed, *"/".join(map(str, names)).encode()])
