"""The whole evaluation on small shards and an untrained model: what it writes, prints and refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.config import save_config
from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.evaluate import (
    DUBBED,
    Instruments,
    evaluate_run,
    measure_clip,
    metrics_table,
    write_metrics,
)
from fedtalk_ray.evaluation.frechet import FeatureNetwork, frechet_distance
from fedtalk_ray.evaluation.held_out import choose_clips, read_clips
from fedtalk_ray.evaluation.perceptual import PerceptualDistance
from fedtalk_ray.media.face_template import MOUTH_BOX
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released
from fedtalk_ray.model.sampling import Sampling
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.shards.format import Manifest
from fedtalk_ray.shards.people import People
from fedtalk_ray.shards.reader import read_pieces

LENGTH = 11


class ColourJudge:
    def embed(self, frame: np.ndarray) -> np.ndarray:
        return frame.reshape(-1, 3).mean(axis=0).astype(np.float32)


INSTRUMENTS = Instruments(
    judge=ColourJudge(),  # type: ignore[arg-type]
    perceptual=PerceptualDistance("l1", lambda a, b: (a - b).abs().mean()),
    frechet=FeatureNetwork("colour_distance", lambda picture: picture.float().mean(dim=(2, 3))),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, make_shards: Callable[..., Manifest]) -> tuple[Path, Manifest]:
    """Three seen people and one unseen; three and two test clips."""
    folder = tmp_path_factory.mktemp("evaluate") / "shards"
    return folder, make_shards(folder, {who: [LENGTH] * 3 for who in "abc"} | {"u": [LENGTH] * 2}, unseen=("u",))


@pytest.fixture(scope="module")
def pretrained(exported: Path) -> Path:
    return exported / "pipeline"


@pytest.fixture(scope="module")
def result(shards: tuple[Path, Manifest], pretrained: Path) -> dict:
    return evaluate_run(pretrained, shards[0], "test", INSTRUMENTS)


def test_groups_are_means_of_the_clips_that_lie_beside_them(result: dict) -> None:
    assert result["clips"] == {"seen": 3, "unseen": 2}
    expected = [*(("seen", who, "clip2") for who in "abc"), ("unseen", "u", "clip0"), ("unseen", "u", "clip1")]
    assert [(clip["group"], clip["identity"], clip["clip"]) for clip in result["per_clip"]] == expected
    for group in ("seen", "unseen"):
        clips = [clip["rows"] for clip in result["per_clip"] if clip["group"] == group]
        assert clips[0].keys() == result["groups"][group].keys()
        for row, figures in clips[0].items():
            for name in figures:
                mean = np.mean([clip[row][name] for clip in clips])
                assert result["groups"][group][row][name] == pytest.approx(mean)
    widths = result["half_widths_95"]
    assert widths["seen"]["generated"]["psnr"] > 0
    assert widths["unseen"]["generated"]["psnr"] is None


def test_rows_hold_what_their_names_say(result: dict, shards: tuple[Path, Manifest]) -> None:
    folder, manifest = shards
    pieces = {who: next(read_pieces(folder, manifest, who, "test")) for who in "abc"}
    rows = result["groups"]["seen"]
    copies = [metrics.psnr(np.repeat(p.frames[:1], LENGTH, axis=0), p.frames) for p in pieces.values()]
    assert rows["copy"]["psnr"] == pytest.approx(np.mean(copies))
    assert rows["copy"]["jitter_ratio"] == 0
    assert rows["autoencoder"]["psnr"] > max(rows["copy"]["psnr"], rows["generated"]["psnr"])
    assert rows["generated"]["psnr"] != rows["other sound"]["psnr"]
    gap = rows["generated"]["lip_correlation_spoken"] - rows["other sound"]["lip_correlation_spoken"]
    assert rows["generated"]["lip_gap"] == pytest.approx(gap)
    assert rows["generated"]["frames_per_second"] > 0
    assert rows["real/real"].keys() == {"identity_other_clip", "colour_distance", "colour_distance_mouth"}


def test_frechet_compares_all_frames_of_the_group(result: dict, shards: tuple[Path, Manifest]) -> None:
    """Frames 0, 5 and 10 of each clip; real/real: 0 and 10 against 5, of which there are three."""
    folder, manifest = shards
    colours = [next(read_pieces(folder, manifest, who, "test")).frames[::5].mean(axis=(1, 2)) for who in "abc"]
    true, still = np.concatenate(colours), np.concatenate([np.repeat(colour[:1], 3, axis=0) for colour in colours])
    one, other = np.concatenate([c[::2] for c in colours]), np.concatenate([c[1::2] for c in colours])
    rows = result["groups"]["seen"]
    assert rows["copy"]["colour_distance"] == pytest.approx(frechet_distance(still, true), rel=1e-3)
    assert rows["real/real"]["colour_distance"] == pytest.approx(frechet_distance(one, other), rel=1e-3)


def test_samples_are_averaged_over_their_seeds(shards: tuple[Path, Manifest], pretrained: Path) -> None:
    folder, manifest = shards
    model = load_released(RunFolder(pretrained))
    clip = next(read_clips(People(folder, manifest), "test", choose_clips(manifest, "test")))
    truth, audio = clip.piece.frames, clip.piece.waveform.astype(np.float32) / 32767
    made = [model(truth[0], audio, generator=torch.Generator().manual_seed(seed)).frames for seed in (0, 1)]
    found = measure_clip(model, clip, Instruments(frechet=INSTRUMENTS.frechet), None, samples=2)
    assert found.rows["generated"]["psnr"] == pytest.approx(np.mean([metrics.psnr(one, truth) for one in made]))
    features = [each["colour_distance"] for each in found.features["generated"]]
    assert np.allclose(features, [one[::5].mean(axis=(1, 2)) for one in made], atol=1e-3)
    left, top, right, bottom = (round(edge * made[0].shape[1]) for edge in MOUTH_BOX)
    mouths = [each["colour_distance_mouth"] for each in found.features["generated"]]
    expected = [one[::5, top:bottom, left:right].mean(axis=(1, 2)) for one in made]
    assert np.allclose(mouths, expected, atol=1e-3)
    assert len(found.features["copy"]) == 1
    assert found.rows["real/real"] == {}
    assert set(found.rows[DUBBED]) == {"mouth_sharpness", "seam", "jitter_ratio", "lip_correlation_spoken"}
    alone = measure_clip(model, replace(clip, other_sound=None), Instruments(), None, samples=1).rows
    assert "other sound" not in alone and alone["generated"]["lip_gap"] is None


@pytest.mark.parametrize(("promised", "alone"), [({"aggregation": "plain"}, ["a", "u"]), ({}, ["u"])])
def test_no_client_to_whom_anything_is_promised_is_told_alone(
    shards: tuple[Path, Manifest], pretrained: Path, tmp_path: Path, make_config: Callable, promised: dict, alone: list
) -> None:
    """Whoever reads metrics.json of a run learns means of its clients; unseen people are nobody's secret."""
    (tmp_path / "pipeline").symlink_to(pretrained)
    save_config(make_config(**promised), tmp_path / "config.yaml")
    found = evaluate_run(tmp_path, shards[0], "test", limit=1, rows=())
    assert [clip["identity"] for clip in found["per_clip"]] == alone
    assert found["clips"] == {"seen": 1, "unseen": 1} and found["groups"]["seen"]["generated"]["psnr"] > 0


def test_all_rows_that_are_spoken_are_sampled_as_was_asked(
    shards: tuple[Path, Manifest], pretrained: Path, result: dict
) -> None:
    found = evaluate_run(pretrained, shards[0], "test", limit=1, sampling=Sampling(steps=1, guidance=3.0))
    assert found["sampling"] == {"steps": 1, "guidance": 3.0} and result["sampling"] == {"steps": 2, "guidance": 1.0}
    asked, usual = (each["per_clip"][0]["rows"] for each in (found, result))
    for row, figures in asked.items():
        same = figures.get("jitter_ratio") == usual[row].get("jitter_ratio")
        assert same == (row in ("copy", "autoencoder", "real/real")), row
    clip = next(read_clips(People(*shards), "test", choose_clips(shards[1], "test")))
    model, sound = load_released(RunFolder(pretrained)), clip.piece.waveform.astype(np.float32) / 32767
    true = model(clip.piece.frames[0], sound, 1, 3.0, torch.Generator().manual_seed(0)).frames
    assert found["per_clip"][0]["rows"]["generated"]["psnr"] == metrics.psnr(true, clip.piece.frames)


def test_table_fits_a_screen_and_json_is_strict(result: dict, tmp_path: Path) -> None:
    table = metrics_table(result)
    lines = table.splitlines()
    psnr = next(line for line in lines if line.split()[0] == "psnr").split()
    rows = result["groups"]["seen"]
    assert psnr[1] == f"{rows['generated']['psnr']:.2f}"
    assert psnr[2] == f"±{result['half_widths_95']['seen']['generated']['psnr']:.2f}"
    assert psnr[-1] == "-"
    write_metrics(result, tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == result


def test_what_is_not_there_or_does_not_fit_is_refused(
    shards: tuple[Path, Manifest], pretrained: Path, make_pipeline: Callable[..., TalkingHeadPipeline], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="does not exist"):
        evaluate_run(tmp_path / "none", shards[0], "test")
    with pytest.raises(RunError, match="holds no trained model"):
        evaluate_run(tmp_path, shards[0], "test")
    with pytest.raises(ShardError, match="'ghost' is to be left out, and is not in the shards"):
        evaluate_run(pretrained, shards[0], "test", excluded=["ghost"])
    make_pipeline(identity=False).save_pretrained(str(tmp_path))
    with pytest.raises(ShardError, match=f"{tmp_path} holds another one"):
        evaluate_run(tmp_path, shards[0], "test")


def test_only_the_instruments_that_a_figure_needs_are_kept() -> None:
    assert INSTRUMENTS.names() == ["l1", "colour_distance", "colour_distance_mouth"]
    assert INSTRUMENTS.needed({"colour_distance_mouth"}).names() == ["colour_distance", "colour_distance_mouth"]
    some = INSTRUMENTS.needed({"l1", "psnr"})
    assert some.names() == ["l1"] and some.judge is INSTRUMENTS.judge
    assert INSTRUMENTS.needed({"psnr"}).names() == [] == Instruments().needed({"l1"}).names()
