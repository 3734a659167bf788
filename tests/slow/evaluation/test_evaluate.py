"""The whole evaluation on small shards and an untrained model: what it writes, prints and refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtalk_ray.config import save_config
from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.evaluate import (
    DUBBED,
    TOLD,
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
from fedtalk_ray.media.lips import lip_motion
from fedtalk_ray.media.speech import MEL_BINS, WINDOW_HOPS
from fedtalk_ray.model.autoencoder import load_autoencoder
from fedtalk_ray.model.denoiser import TalkingHeadDenoiser
from fedtalk_ray.model.pipeline import TalkingHeadPipeline
from fedtalk_ray.model.released import load_released
from fedtalk_ray.model.sampling import Sampling
from fedtalk_ray.model.schedule import make_scheduler
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
def pretrained(tmp_path_factory: pytest.TempPathFactory, wake_zeros: Callable[..., None]) -> Path:
    """A pipeline's own folder, as `fedtalk pretrain` writes it, for faces of 32 x 32 pixels."""
    torch.manual_seed(0)
    sound = {"speech_hops": WINDOW_HOPS, "mel_bins": MEL_BINS}
    denoiser = TalkingHeadDenoiser(latent_channels=16, latent_size=8, widths=(16, 32), window=4, **sound)
    wake_zeros(denoiser)
    scheduler = make_scheduler(denoiser.config.prediction_type)
    folder = tmp_path_factory.mktemp("evaluate") / "pretrained"
    TalkingHeadPipeline(load_autoencoder("patch"), denoiser.eval(), scheduler).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def result(shards: tuple[Path, Manifest], pretrained: Path) -> dict:
    return evaluate_run(pretrained, shards[0], "test", INSTRUMENTS)


def test_groups_are_means_of_the_clips_that_lie_beside_them(result: dict) -> None:
    assert result["clips"] == {"seen": 3, "unseen": 2}
    assert [(clip["group"], clip["identity"], clip["clip"]) for clip in result["per_clip"]] == [
        ("seen", "a", "clip2"),
        ("seen", "b", "clip2"),
        ("seen", "c", "clip2"),
        ("unseen", "u", "clip0"),
        ("unseen", "u", "clip1"),
    ]
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
    assert all("frames_per_second" not in rows[row] for row in ("other sound", "copy", "autoencoder", "real/real"))
    assert rows["real/real"].keys() == {"identity_other_clip", "colour_distance", "colour_distance_mouth"}


def test_a_model_hears_the_clips_of_shards_that_were_prepared_for_other_ears(
    result: dict, pretrained: Path, make_shards: Callable[..., Manifest], tmp_path: Path
) -> None:
    """What it says comes from the sound itself: its figures are those on shards of its own features."""
    lengths = {who: [LENGTH] * 3 for who in "abc"} | {"u": [LENGTH] * 2}
    make_shards(tmp_path / "shards", lengths, unseen=("u",))
    file = tmp_path / "shards" / "manifest.json"
    tree = json.loads(file.read_text())
    tree["speech"], tree["shapes"]["speech"] = "models/whisper", [22, 80]
    file.write_text(json.dumps(tree))
    heard = evaluate_run(pretrained, tmp_path / "shards", "test", INSTRUMENTS, rows=())
    for group, clips in heard["groups"].items():
        for name, value in clips["generated"].items():
            if name not in ("frames_per_second", "colour_distance", "colour_distance_mouth"):
                assert value == pytest.approx(result["groups"][group]["generated"][name]), name


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
    assert (made[0] != made[1]).any()
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


def test_lips_are_told_in_place_of_those_that_are_heard(shards: tuple[Path, Manifest], pretrained: Path) -> None:
    """Those of each frame, and only to a network that knows lip axes: then another mouth comes of the same sound.

    The first frame is the reference too, so its lips are known to be those.
    """
    folder, manifest = shards
    model = load_released(RunFolder(pretrained))
    clip = next(read_clips(People(folder, manifest), "test", choose_clips(manifest, "test")))
    assert TOLD not in measure_clip(model, clip, Instruments(), None, samples=1).rows
    torch.nn.init.normal_(model.denoiser.lip_axes, std=30, generator=torch.Generator().manual_seed(0))
    model.denoiser.see_reference_lips()
    torch.nn.init.normal_(model.denoiser.reference_embedding.weight, generator=torch.Generator().manual_seed(1))
    truth, lips = clip.piece.frames, lip_motion(clip.piece.landmarks)
    audio = clip.piece.waveform.astype(np.float32) / 32767

    def made(**more: np.ndarray) -> np.ndarray:
        return model(truth[0], audio, generator=torch.Generator().manual_seed(0), **more).frames

    told = made(lips=lips, reference_lips=lips[0])
    assert (told != made()).any() and (told != made(lips=lips[::-1].copy(), reference_lips=lips[0])).any()
    assert (told != made(lips=lips)).any()
    found = measure_clip(model, clip, Instruments(), None, samples=1).rows[TOLD]
    assert found["psnr"] == pytest.approx(metrics.psnr(told, truth))


def test_the_autoencoder_alone_is_asked_for_as_the_model_would_show_it(
    shards: tuple[Path, Manifest], pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first frame, with where everybody's points are: who bends her reference bends its detail by them."""
    folder, manifest = shards
    model = load_released(RunFolder(pretrained))
    clip = next(read_clips(People(folder, manifest), "test", choose_clips(manifest, "test")))
    piece, black = clip.piece, np.zeros_like(clip.piece.frames)

    def shown(_: object, face: np.ndarray, latents: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        assert np.array_equal(face, piece.frames[0]) and np.array_equal(latents, piece.latents)
        assert len(landmarks) and np.array_equal(landmarks, piece.landmarks)
        return black

    monkeypatch.setattr(TalkingHeadPipeline, "from_latents", shown)
    found = measure_clip(model, clip, Instruments(), None, samples=1).rows["autoencoder"]
    assert found["psnr"] == pytest.approx(metrics.psnr(black, piece.frames))


def test_a_dubbed_clip_is_held_against_the_sentence_that_it_says(
    shards: tuple[Path, Manifest], pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lips against those of the clip whose sound it is; sharpness and jitter against its own frames."""
    folder, manifest = shards
    model = load_released(RunFolder(pretrained))
    clip = next(read_clips(People(folder, manifest), "test", choose_clips(manifest, "test")))
    assert set(measure_clip(model, clip, Instruments(), None, samples=1).rows[DUBBED]) == {
        "mouth_sharpness", "seam", "jitter_ratio", "lip_correlation_spoken"
    }  # fmt: skip
    sound, lips = clip.dubbed_with
    asked = []

    def own_frames(scene, model, audio, count, *_):
        asked.append((audio, count))
        yield from (shown.picture[None] for shown in scene.frames(count))

    monkeypatch.setattr("fedtalk_ray.evaluation.evaluate.speak_in", own_frames)
    monkeypatch.setattr("fedtalk_ray.evaluation.evaluate.lip_aperture", lambda frames: 3 * lips[: len(frames)] + 1)
    found = measure_clip(model, clip, Instruments(), None, samples=1).rows[DUBBED]
    assert found == {"mouth_sharpness": 1, "seam": 1, "jitter_ratio": 1, "lip_correlation_spoken": pytest.approx(1)}
    assert (asked[0][0] == sound.astype(np.float32) / 32767).all()
    assert asked[0][1] == min(len(lips), len(clip.piece.frames))


def test_a_run_and_its_bare_pipeline_measure_alike(
    shards: tuple[Path, Manifest], pretrained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "pipeline").symlink_to(pretrained)
    found = [evaluate_run(place, shards[0], "test", limit=1)["groups"] for place in (run, pretrained)]
    for groups in found:
        for rows in groups.values():
            del rows["generated"]["frames_per_second"]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("promised", "alone"),
    [
        ({"aggregation": "plain"}, ["a", "u"]),
        ({}, ["u"]),
        ({"aggregation": "plain", "privacy": {"mechanism": "gaussian", "noise_multiplier": 1, "clip_norm": 1}}, ["u"]),
    ],
)
def test_no_client_to_whom_anything_is_promised_is_told_alone(
    shards: tuple[Path, Manifest], pretrained: Path, tmp_path: Path, make_config: Callable, promised: dict, alone: list
) -> None:
    """Whoever reads metrics.json of a run learns means of its clients; unseen people are nobody's secret."""
    (tmp_path / "pipeline").symlink_to(pretrained)
    save_config(make_config(**promised), tmp_path / "config.yaml")
    found = evaluate_run(tmp_path, shards[0], "test", limit=1, rows=())
    assert [clip["identity"] for clip in found["per_clip"]] == alone
    assert found["clips"] == {"seen": 1, "unseen": 1} and found["groups"]["seen"]["generated"]["psnr"] > 0


def test_generated_alone_is_what_it_is_among_the_others(
    shards: tuple[Path, Manifest], pretrained: Path, result: dict
) -> None:
    found = evaluate_run(pretrained, shards[0], "test", INSTRUMENTS, rows=())
    for group, rows in found["groups"].items():
        assert list(rows) == ["generated"]
        for name, value in rows["generated"].items():
            if name != "frames_per_second":
                assert value == result["groups"][group]["generated"][name], name
    assert {"lip_gap", "colour_distance"}.isdisjoint(found["groups"]["seen"]["generated"])


def test_all_rows_that_are_spoken_are_sampled_as_was_asked(
    shards: tuple[Path, Manifest], pretrained: Path, result: dict
) -> None:
    found = evaluate_run(pretrained, shards[0], "test", sampling=Sampling(steps=1, guidance=3.0))
    assert found["sampling"] == {"steps": 1, "guidance": 3.0} and result["sampling"] == {"steps": 2, "guidance": 1.0}
    assert "identities, 3 clips, steps 1, guidance 3; ±" in metrics_table(found)
    assert "identities, 3 clips; ±" in metrics_table(result)
    for group, rows in found["groups"].items():
        for row, figures in rows.items():
            same = figures.get("jitter_ratio") == result["groups"][group][row].get("jitter_ratio")
            assert same == (row in ("copy", "autoencoder", "real/real")), row
    clip = next(read_clips(People(*shards), "test", choose_clips(shards[1], "test")))
    model, sound = load_released(RunFolder(pretrained)), clip.piece.waveform.astype(np.float32) / 32767
    true = model(clip.piece.frames[0], sound, 1, 3.0, torch.Generator().manual_seed(0)).frames
    assert found["per_clip"][0]["rows"]["generated"]["psnr"] == metrics.psnr(true, clip.piece.frames)


def test_table_fits_a_screen_and_json_is_strict(result: dict, tmp_path: Path) -> None:
    table = metrics_table(result)
    lines = table.splitlines()
    assert max(len(line) for line in lines) <= 120
    psnr = next(line for line in lines if line.split()[0] == "psnr").split()
    rows = result["groups"]["seen"]
    assert psnr[1] == f"{rows['generated']['psnr']:.2f}"
    assert psnr[2] == f"±{result['half_widths_95']['seen']['generated']['psnr']:.2f}"
    assert psnr[-1] == "-"
    write_metrics(result, tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    bare = metrics_table(result | {"groups": {"seen": rows | {"real/real": {}}}})
    assert "real/real" in table and "real/real" not in bare


def test_what_is_not_there_is_refused(shards: tuple[Path, Manifest], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        evaluate_run(tmp_path / "none", shards[0], "test")
    with pytest.raises(RunError, match="holds no trained model"):
        evaluate_run(tmp_path, shards[0], "test")


def test_whoever_is_left_out_must_be_there(shards: tuple[Path, Manifest], pretrained: Path) -> None:
    with pytest.raises(ShardError, match="'ghost' is to be left out, and is not in the shards"):
        evaluate_run(pretrained, shards[0], "test", excluded=["ghost"])


def test_shards_of_another_encoder_are_refused(
    shards: tuple[Path, Manifest], make_pipeline: Callable[..., TalkingHeadPipeline], tmp_path: Path
) -> None:
    make_pipeline(identity=False).save_pretrained(str(tmp_path))
    with pytest.raises(ShardError, match=f"{tmp_path} holds another one"):
        evaluate_run(tmp_path, shards[0], "test")


def test_only_the_instruments_that_a_figure_needs_are_kept() -> None:
    assert INSTRUMENTS.names() == ["l1", "colour_distance", "colour_distance_mouth"]
    assert INSTRUMENTS.needed({"colour_distance_mouth"}).names() == ["colour_distance", "colour_distance_mouth"]
    some = INSTRUMENTS.needed({"l1", "psnr"})
    assert some.names() == ["l1"] and some.judge is INSTRUMENTS.judge
    assert INSTRUMENTS.needed({"psnr"}).names() == [] == Instruments().needed({"l1"}).names()
