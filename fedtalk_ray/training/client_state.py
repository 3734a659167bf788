"""What a client keeps for itself between rounds: its identity adapter, on the client's side of the disk.

    RUN/clients/<id>/identity/            a PEFT folder, the newest
    RUN/clients/<id>/identity.previous/   the one before

`state.json` in each says after which round it was written, the client's last, and in how many it took part. A run that
died in the middle of a round has newer adapters than its checkpoint; asking for the state *before* a round finds the
right one, and resuming repeats the round exactly.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import peft

from fedtalk_ray.model import adapters
from fedtalk_ray.outputs import new_folder

CURRENT, PREVIOUS, OLDEST = "identity", "identity.previous", "identity.oldest"


def client_folder(run: str | Path, client: str) -> Path:
    return Path(run) / "clients" / client


def save_identity(model: peft.PeftModel, run: str | Path, client: str, round_number: int) -> None:
    """Writes the loaded identity adapter as the state after `round_number`."""
    folder = client_folder(run, client)
    with new_folder(folder / f"{CURRENT}.new", overwrite=True) as place:
        adapters.save_adapter(model, adapters.IDENTITY, place / CURRENT)
        for file in (place / CURRENT).iterdir():
            file.rename(place / file.name)
        (place / CURRENT).rmdir()
        before = identity_before(run, client, round_number)
        state = {"round": round_number, "participations": 1 + (participations(before) if before else 0)}
        (place / "state.json").write_text(json.dumps(state))
    if written_after(folder / CURRENT) not in (None, round_number):
        shutil.rmtree(folder / OLDEST, ignore_errors=True)
        if (folder / PREVIOUS).exists():
            (folder / PREVIOUS).rename(folder / OLDEST)
        (folder / CURRENT).rename(folder / PREVIOUS)
    else:
        shutil.rmtree(folder / CURRENT, ignore_errors=True)
    (folder / f"{CURRENT}.new").rename(folder / CURRENT)


def identity_before(run: str | Path, client: str, round_number: int) -> Path | None:
    """The client's newest adapter folder written before `round_number`; None for a client that is new by then."""
    for name in (CURRENT, PREVIOUS, OLDEST):
        folder = client_folder(run, client) / name
        written = written_after(folder)
        if written is not None and written < round_number:
            return folder
    return None


def load_identity(model: peft.PeftModel, run: str | Path, client: str, round_number: int) -> np.ndarray | None:
    """The values of the client's adapter as it was before `round_number`, float32 [E]; None for a new client."""
    folder = identity_before(run, client, round_number)
    if folder is None:
        return None
    adapters.load_adapter(model, adapters.IDENTITY, folder)
    return adapters.to_vector(adapters.identity_parameters(model))


def participations(folder: Path) -> int:
    """The rounds that the client has taken part in by an adapter folder's time; 0 where that is not known."""
    return int(json.loads((folder / "state.json").read_text()).get("participations", 0))


def written_after(folder: Path) -> int | None:
    """The round after which an adapter folder was written, None where there is none."""
    try:
        return int(json.loads((folder / "state.json").read_text())["round"])
    except FileNotFoundError:
        return None
