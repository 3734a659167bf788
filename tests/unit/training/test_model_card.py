"""The model card: data, recipe, seed, time and figures of what `fedtalk pretrain` was given and reached."""

from fedtalk_ray.recipe import LossConfig
from fedtalk_ray.shards.format import ClipEntry, Manifest
from fedtalk_ray.training.model_card import Recipe, model_card


def card(**changes: object) -> str:
    manifest = Manifest("synthetic", 64, 25, 16_000, "patch", "abc", {})
    manifest.identities = {"a": [ClipEntry("c", "train", 75, 1)], "b": [ClipEntry("c", "test", 75, 1)]}
    recipe = {"shards": "s", "size": "tiny", "start": None, "minutes": 20.0, "steps": None, "seed": 7, "threads": 1}
    recipe |= {"loss": LossConfig(tdc=0.5, motion=0)} | changes
    return model_card(manifest, Recipe(**recipe), 12, 1, 4321, 1500, {"diffusion loss": 0.123456})  # type: ignore[arg-type]


def test_it_says_what_made_the_weights_and_what_was_reached() -> None:
    text = card()
    assert "corpus `synthetic`: 12 clips of 1 people" in text
    assert "`fedtalk pretrain --shards s --preset tiny --minutes 20 --seed 7`" in text
    assert "4321 denoiser steps; 25 minutes in all, 1 CPU thread(s)" in text
    assert "| diffusion loss | 0.1235 |" in text and "tdc 0.5" in text and "motion" not in text
    assert text.startswith("---\nlibrary_name: diffusers\n")


def test_steps_that_were_asked_for_stand_in_place_of_minutes() -> None:
    assert "--preset tiny --steps 300 --seed 7`" in card(steps=300) and "--minutes" not in card(steps=300)
