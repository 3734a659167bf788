"""A face and a sound into a video file."""

from pathlib import Path

import numpy as np
import torch

from fedtalk_ray.data.faces import NoFaceError, crop_faces
from fedtalk_ray.data.shards import Piece, load_manifest, read_pieces
from fedtalk_ray.data.video import VideoError, read_audio, read_pictures, write_video
from fedtalk_ray.errors import RunError, UserError
from fedtalk_ray.evaluation.samples import enlarge
from fedtalk_ray.training.client_state import CURRENT, client_folder
from fedtalk_ray.training.export import load_model


class InputError(UserError):
    """A reference face or a sound cannot be used."""


def generate(
    run: str | Path, reference: str, audio: str, out: str | Path, client: str | None = None, shards: str | None = None
) -> int:
    """Lets the reference face speak the sound, with the client's own adapter if one is named. Returns the frame count.

    reference, audio: a file (picture or clip; sound or clip), or CLIENT/CLIP of `shards`. Raises `UserError`s.
    """
    run = Path(run)
    if Path(out).suffix.lower() != ".mp4":
        raise InputError(f"--out {out} must end in .mp4")
    if not (run / "pipeline").is_dir():
        raise RunError(f"{run} holds no trained model (no pipeline/); train first, or give the run's own folder")
    identity = None
    if client is not None:
        identity = client_folder(run, client) / CURRENT
        if not identity.is_dir():
            known = sorted(path.parent.name for path in (run / "clients").glob(f"*/{CURRENT}"))
            raise RunError(
                f"client {client!r} has no identity adapter in {run}; there are: {', '.join(known) or 'none'}"
            )
    model = load_model(run, identity)
    face = find_face(reference, model.frame_size(), shards)
    sound = find_sound(audio, shards)
    frames = model(face, sound, generator=torch.Generator().manual_seed(0)).frames
    write_video(out, enlarge(frames), sound)
    return len(frames)


def find_face(reference: str, size: int, shards: str | None) -> np.ndarray:
    """An aligned crop uint8 [size, size, 3] from a picture, a clip's first frame, or CLIENT/CLIP of the shards.

    A picture of exactly size x size pixels is taken as aligned already.
    """
    if not Path(reference).is_file():
        return _held_out(reference, shards, "reference").frames[0]
    try:
        pictures = read_pictures(reference)
        if pictures.shape[1:3] == (size, size):
            return pictures[0]
        return crop_faces(pictures, size)[0]
    except (VideoError, NoFaceError) as error:
        raise InputError(f"reference {reference}: {str(error).removeprefix(f'{reference}: ')}") from error


def find_sound(audio: str, shards: str | None) -> np.ndarray:
    """Sound float32 [N] from a file, or from CLIENT/CLIP of the shards."""
    if not Path(audio).is_file():
        return _held_out(audio, shards, "audio").waveform.astype(np.float32) / 32767
    try:
        return read_audio(audio)
    except VideoError as error:
        raise InputError(f"audio {error}") from error


def _held_out(name: str, shards: str | None, role: str) -> Piece:
    client, _, clip = name.partition("/")
    if shards is None or not clip or Path(name).suffix:
        raise InputError(f"{role} {name} does not exist; give a file, or CLIENT/CLIP together with --shards")
    manifest = load_manifest(shards)
    for entry in manifest.identities.get(client, []):
        if entry.name == clip:
            return next(piece for piece in read_pieces(shards, manifest, client, entry.split) if piece.clip == clip)
    raise InputError(f"{role} {name}: shards {shards} hold no such clip")
