"""A face that speaks while somebody does: frames as soon as what they hear has been heard."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import BinaryIO

import numpy as np
import torch

from fedtalk_ray.generation.generate import InputError, enlarge, find_face, find_scene
from fedtalk_ray.generation.scene import Still, Stopped
from fedtalk_ray.generation.whole_picture import put_back
from fedtalk_ray.marking.marked_video import show_marked
from fedtalk_ray.media.live_sound import LiveSound, LiveSpeech
from fedtalk_ray.media.speech import LOG_MEL, load_speech_features
from fedtalk_ray.media.video import FPS
from fedtalk_ray.model.denoiser import bare_denoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, frame_count


def speak_live(
    model: TalkingHeadPipeline,
    reference: str,
    sound: LiveSound,
    growing: BinaryIO,
    most_seconds: float,
    *,
    crop: bool = False,
    face: int | None = None,
    hold_still: bool = False,
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Writes a picture that speaks `sound` into `growing`, as fragmented MP4 with the invisible mark; how many frames.

    It ends with the sound, or after `most_seconds`. One denoising step. stopped: asked before every block of frames;
    where it says so `Stopped` is raised. Raises `InputError` for a reference that is no picture of a face, and for a
    model that cannot (`check_live`).
    """
    check_live(model)
    size, most = model.frame_size(), int(most_seconds * FPS)
    scene = None if crop else find_scene(reference, size, 0, face, not hold_still, framing=model.framing)
    if scene is not None and not isinstance(scene, Still):
        raise InputError(f"reference {reference}: is a video; live takes a picture")
    speech = LiveSpeech(sound, load_speech_features(model.hears), most)
    generator = torch.Generator().manual_seed(seed)
    if scene is None:
        aligned, _ = find_face(reference, size, None, face, model.framing)
        frames: Iterator[np.ndarray] = map(enlarge, model.speak_along(aligned, speech, generator))
    else:
        shown = scene.reference.crop(size)
        made = model.speak_along(shown, speech, generator, soft_border=False)
        frames = put_back(scene, made, model.at_rest(shown), most, model.framing)
    return show_marked(_while_heard(frames, sound, most, stopped), sound, growing, Fraction(FPS))


def check_live(model: TalkingHeadPipeline) -> None:
    """Raises `InputError` for a model that cannot speak while it hears: its speech encoder wants half a minute at
    once."""
    if model.hears != LOG_MEL or bare_denoiser(model.denoiser).each_frame_alone:
        raise InputError(f"this model hears through {model.hears}: live takes models that hear {LOG_MEL} alone")


def _while_heard(
    blocks: Iterator[np.ndarray], sound: LiveSound, most: int, stopped: Callable[[], bool]
) -> Iterator[np.ndarray]:
    """Blocks of frames up to the end of the sound, the last one cut."""
    shown = 0
    for block in blocks:
        if stopped():
            raise Stopped
        total = min(most, frame_count(len(sound))) if sound.ended else most
        if len(block := block[: max(0, total - shown)]):
            yield block
        shown += len(block)
        if shown >= total:
            return
