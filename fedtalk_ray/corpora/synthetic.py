"""The embedded corpus: any number of talking people from a seed, with a voice to hear and the truth about their lips.

Nothing is downloaded and nothing is stored: identity 3, clip 5 of seed 0 is the same clip on every machine. Traits of
a person come from (seed, identity) alone, and what they say and how they move from (seed, identity, clip). The frames
are already aligned crops at the geometry of `face_template`. There are people, and puppets (`drawn.puppets`).
"""

from dataclasses import dataclass

import numpy as np

from fedtalk_ray.corpora.drawn.face import draw
from fedtalk_ray.corpora.drawn.movement import move
from fedtalk_ray.corpora.drawn.person import FaceTraits, face_traits
from fedtalk_ray.corpora.drawn.puppets import PUPPET_LAG, puppet_face, puppet_voice
from fedtalk_ray.corpora.drawn.voice import LIP_LEAD, VoiceTraits, speak, voice_traits
from fedtalk_ray.media.video import FPS, Video

PEOPLE, PUPPETS = "synthetic", "puppets"
KINDS = (PEOPLE, PUPPETS)
"""The corpora that are drawn."""


@dataclass(frozen=True)
class SyntheticClip:
    """One clip and what no landmark finder needs to guess.

    video: frames uint8 [T, size, size, 3] and audio float32 [T * 640]. aperture: float32 [T], inner-lip opening over
    eye distance, 0 when shut. width: float32 [T], outer mouth width over eye distance.
    """

    video: Video
    aperture: np.ndarray
    width: np.ndarray


def identity_name(identity: int) -> str:
    """Folder name of one person, as in id0003."""
    return f"id{identity:04d}"


def clip_name(clip: int) -> str:
    """File name of one clip without its ending, as in clip0005."""
    return f"clip{clip:04d}"


def render_clip(
    identity: int, clip: int, *, seed: int = 0, size: int = 64, seconds: float = 3.0, kind: str = PEOPLE
) -> SyntheticClip:
    """Let one person speak for T = round(seconds * 25) frames, in a square crop of `size` pixels.

    The same arguments give the same clip in every process. kind: of `KINDS`. Raises ValueError for a negative identity,
    clip or seed, for a size below 16, and for a length that rounds to no frame.
    """
    for name, value in (("identity", identity), ("clip", clip), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} {value} is negative; synthetic clips are numbered from 0")
    if size < 16:
        raise ValueError(f"size {size} is too small for a face; use 16 pixels or more")
    frames = round(seconds * FPS)
    if frames < 1:
        raise ValueError(f"seconds {seconds} is less than one frame; use 1/{FPS} or more")
    person = np.random.default_rng([seed, identity])
    voice, face, lead = _traits(person, kind)
    moment = np.random.default_rng([seed, identity, clip, 1])
    speech = speak(voice, frames, moment, lead)
    motion = move(speech, face.mouth_width, frames, moment)
    video = Video(draw(face, motion, size), speech.audio)
    return SyntheticClip(video, motion.aperture, motion.width)


def _traits(person: np.random.Generator, kind: str) -> tuple[VoiceTraits, FaceTraits, float]:
    """Voice, face, and by how many seconds the lips lead the sound."""
    if kind == PUPPETS:
        return puppet_voice(person), puppet_face(person), -PUPPET_LAG
    voice = voice_traits(person)
    return voice, face_traits(person, high_voice=voice.height), LIP_LEAD
