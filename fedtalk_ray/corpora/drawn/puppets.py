"""Drawn people of another kind: coloured puppets with thick lips, high voices, and a hand that is late to move them.

`fedtalk-tiny` was taught by drawn people as in `person` and `voice` alone, whose lips are a little ahead of the sound.
It knows none of these skins, lips and voices, and moves its lips too early for them: whoever starts there has something
to learn.
"""

from dataclasses import replace

import numpy as np

from fedtalk_ray.corpora.drawn.person import FaceTraits, face_traits
from fedtalk_ray.corpora.drawn.voice import VoiceTraits, voice_traits

SKINS = np.array([(96, 168, 92), (84, 132, 196), (150, 108, 184), (92, 176, 172), (124, 144, 168), (150, 180, 96)])

LIPS = np.array([(150, 30, 40), (120, 24, 56), (170, 50, 40)])

PUPPET_LAG = 0.14
"""Seconds by which a puppet's lips come after the sound."""


def puppet_voice(rng: np.random.Generator) -> VoiceTraits:
    """Formants half as high again as a man's, and a pitch between 260 and 420 Hz."""
    return replace(
        voice_traits(rng), height=1.0, pitch=float(rng.uniform(260, 420)), tract=float(rng.uniform(1.38, 1.58))
    )


def puppet_face(rng: np.random.Generator) -> FaceTraits:
    """Green, blue, violet or grey skin; a mouth as wide as the eyes are apart, with thick red lips."""
    face = face_traits(rng, high_voice=0.5)
    skin = SKINS[rng.integers(len(SKINS))] / 255 + rng.normal(0, 0.03, 3)
    return replace(
        face,
        skin=np.clip(skin, 0.03, 0.98).astype(np.float32),
        lips=np.clip(LIPS[rng.integers(len(LIPS))] / 255 + rng.normal(0, 0.03, 3), 0.03, 0.98).astype(np.float32),
        mouth_width=float(rng.uniform(0.92, 1.04)),
        upper_lip=float(rng.uniform(0.0425, 0.047)),
        lower_lip=float(rng.uniform(0.052, 0.060)),
        crooked=0.0,
        beard=0.0,
        freckles=0.0,
        glasses=0,
    )
