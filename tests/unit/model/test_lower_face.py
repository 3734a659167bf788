"""The autoencoder of the lower face: what it leaves alone, what it keeps, and what it takes from the reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.corpora.synthetic import PUPPETS, render_clip
from fedtalk_ray.errors import ShardError
from fedtalk_ray.evaluation import metrics
from fedtalk_ray.evaluation.window_figures import measure_windows
from fedtalk_ray.media.compositing import mask_of
from fedtalk_ray.media.face_template import MOUTH_BOX, mouth_mask, region_edges
from fedtalk_ray.media.lips import LIP_MOTION, lip_motion
from fedtalk_ray.model.autoencoder import (
    decode_latents,
    encode_frames,
    encoder_fingerprint,
    frames_to_pixels,
    load_autoencoder,
    pixels_to_frames,
    region_of,
    sees_reference,
)
from fedtalk_ray.model.bending import Bends, bend, lower_flow
from fedtalk_ray.model.lower_face import LowerFaceAutoencoder
from fedtalk_ray.model.pipeline import TalkingHeadPipeline, load_pipeline, new_pipeline
from fedtalk_ray.model.told import Told, told_of
from fedtalk_ray.shards.windows import WindowBatch
from fedtalk_ray.training.backbone import check_fits, untrained_pipeline
from fedtalk_ray.training.reliability import generate_windows

SIDE = 48


def noise_frames(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def awake(seed: int = 0) -> LowerFaceAutoencoder:
    """One whose decoder does something."""
    torch.manual_seed(seed)
    autoencoder = LowerFaceAutoencoder(widths=(8, 16)).eval()
    torch.nn.init.normal_(autoencoder.decoder.conv_out.weight, std=0.1)
    return autoencoder


def test_latents_are_of_the_lower_face_alone() -> None:
    """Of 48 pixels those from 8 to 40 and from 16 down: other pixels change no latent, and each of these does."""
    autoencoder, frames = awake(), noise_frames(2)
    before = encode_frames(autoencoder, frames)
    assert before.shape == (2, 32, 4, 4)
    outside = frames.copy()
    outside[:, :16], outside[:, :, :8], outside[:, :, 40:] = 0, 0, 0
    assert (encode_frames(autoencoder, outside) == before).all()
    for row, column in ((16, 8), (47, 39)):
        changed = frames.copy()
        changed[:, row, column] ^= 255
        assert (encode_frames(autoencoder, changed) != before).any()


def test_latents_have_the_energy_of_what_they_keep() -> None:
    """The rows are orthonormal: smooth pictures keep all of it, and noise 32 of 192 parts."""
    autoencoder = LowerFaceAutoencoder()
    rows = autoencoder.encoder.weight.flatten(1).double()
    assert rows.shape == (32, 192) and torch.allclose(rows @ rows.T, torch.eye(32, dtype=torch.double), atol=1e-6)
    noise = torch.randn(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    kept = autoencoder.encode(noise).latents.square().sum() / autoencoder.window(noise).square().sum()
    assert float(kept) == pytest.approx(32 / 192, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), side=st.sampled_from([48, 96, 144]))
def test_outside_the_mask_the_reference_stays_to_the_bit(seed: int, side: int) -> None:
    frame = noise_frames(1, seed, side)[0]
    cells = side // 12
    latents = torch.randn(3, 32, cells, cells, generator=torch.Generator().manual_seed(seed)) * 5
    made = decode_latents(awake(seed % 7), latents, face=frame)
    outside = mask_of(side) == 0
    assert (made[:, outside] == frame[outside]).all()
    assert (made[:, ~outside] != frame[~outside]).mean() > 0.5


@pytest.mark.parametrize("side", [48, 96, 144, 240])
def test_the_mask_lies_within_the_lower_face(side: int) -> None:
    """So that no edge of it shows."""
    whole = torch.from_numpy(mask_of(side))[None, None].expand(1, 3, -1, -1)
    assert float(LowerFaceAutoencoder().window(whole).sum()) == pytest.approx(float(whole.sum()))


def test_untrained_a_face_at_rest_is_its_own_picture() -> None:
    """Its latents bring back what the encoder keeps, and the reference what it drops."""
    autoencoder, frames = load_autoencoder("lower-face"), noise_frames(1)
    made = decode_latents(autoencoder, torch.from_numpy(encode_frames(autoencoder, frames)), face=frames[0])
    assert np.abs(made.astype(int) - frames).max() <= 1


def test_a_reference_serves_one_frame_or_many() -> None:
    autoencoder, frames = awake(), noise_frames(3)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    latents = autoencoder.encode(pixels).latents
    with torch.no_grad():
        together = autoencoder.decode(latents, pixels[:1]).sample
        each = autoencoder.decode(latents, pixels[:1].expand(3, -1, -1, -1)).sample
        alone = autoencoder.decode(latents[2:], pixels[:1]).sample
    torch.testing.assert_close(together, each)
    torch.testing.assert_close(together[2:], alone)


def test_without_a_reference_the_lower_face_lies_on_grey() -> None:
    autoencoder = awake()
    made = autoencoder.decode(torch.ones(1, 32, 4, 4)).sample
    assert made.shape == (1, 3, SIDE, SIDE) and not made[:, :, :16].any() and made.any()


def test_gradients_reach_latents_and_decoder() -> None:
    autoencoder = awake()
    latents = torch.randn(1, 32, 4, 4, requires_grad=True)
    autoencoder.decode(latents, torch.rand(1, 3, SIDE, SIDE)).sample.sum().backward()
    assert latents.grad is not None and bool(latents.grad.any())
    assert all(parameter.grad is not None for parameter in autoencoder.decoder.parameters())


def test_it_is_saved_and_loaded_as_diffusers_does(tmp_path: Path) -> None:
    autoencoder, frames = awake(), noise_frames(2)
    autoencoder.save_pretrained(str(tmp_path))
    loaded = load_autoencoder(str(tmp_path))
    latents = torch.from_numpy(encode_frames(autoencoder, frames))
    made, again = (decode_latents(each, latents, face=frames[0]) for each in (autoencoder, loaded))
    assert (made == again).all()
    assert encoder_fingerprint(loaded) == encoder_fingerprint(autoencoder) == encoder_fingerprint(awake(1))


def test_what_it_is_to_others() -> None:
    """Two fresh ones are the same; shards of another serve it not; who asks for its region is told."""
    one, other = load_autoencoder("lower-face"), load_autoencoder("lower-face")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    patch = load_autoencoder("patch")
    assert encoder_fingerprint(one) != encoder_fingerprint(patch)
    assert (region_of(one), region_of(patch)) == ("lower face", "face")
    assert sees_reference(one) and not sees_reference(patch)


def test_the_mouth_lies_at_the_same_pixels_in_the_crop_and_in_its_lower_face() -> None:
    """Of 240 pixels: 62 to 178 and 130 to 221 in the crop, 40 to the left of which and 80 above which it begins."""
    crop, window = mouth_mask(240), mouth_mask(160, "lower face")
    assert [round(edge * 240) for edge in MOUTH_BOX] == [62, 130, 178, 221]
    np.testing.assert_array_equal(crop[80:, 40:200], window)


def speaking(wake_zeros) -> TalkingHeadPipeline:
    """A pipeline whose mouth moves with noise and sound, if not rightly."""
    torch.manual_seed(0)
    pipeline = new_pipeline("lower-face", 32, 4, widths=(16, 32), window=4)
    wake_zeros(pipeline.denoiser)
    pipeline.denoiser.eval()
    return pipeline


def test_a_pipeline_speaks_with_the_lower_face_alone(wake_zeros) -> None:
    pipeline, face = speaking(wake_zeros), noise_frames(1)[0]
    audio = np.random.default_rng(0).normal(0, 0.1, 640 * 9).astype(np.float32)
    made = pipeline(face, audio, generator=torch.Generator().manual_seed(0)).frames
    outside = mask_of(SIDE) == 0
    assert (made[:, outside] == face[outside]).all() and (made[0] != made[1]).any()
    blocks = list(pipeline.stream(face, audio, generator=torch.Generator().manual_seed(0), block=4))
    assert (np.concatenate(blocks) == made).all()
    assert np.abs(pipeline.at_rest(face).astype(int) - face).max() <= 1
    bare = np.concatenate(
        list(pipeline.stream(face, audio, generator=torch.Generator().manual_seed(0), soft_border=False))
    )
    # Of 48 pixels the lower face is those from 8 to 40 and from 16 down; inside the mask's full part nothing changes.
    assert (bare[:, 16:, 8:40] != face[16:, 8:40]).mean() > 0.9
    assert (bare[:, :16] == face[:16]).all() and (bare[:, :, :8] == face[:, :8]).all()
    assert (bare[:, mask_of(SIDE) == 1] == made[:, mask_of(SIDE) == 1]).all()
    assert pipeline.frame_size() == SIDE
    assert pipeline.denoiser.region == pipeline.denoiser.config.region == "lower face"


def test_the_embedded_models_autoencoder_is_found_by_its_name() -> None:
    """Shards that do not fit it are to be prepared again with --autoencoder fedtalk-tiny, says the refusal."""
    found = load_autoencoder("fedtalk-tiny")
    assert isinstance(found, LowerFaceAutoencoder)
    assert encoder_fingerprint(found) == encoder_fingerprint(load_autoencoder("lower-face"))


def test_a_saved_pipeline_knows_its_region(wake_zeros, tmp_path: Path) -> None:
    pipeline = speaking(wake_zeros)
    pipeline.save_pretrained(str(tmp_path))
    loaded = load_pipeline(str(tmp_path))
    assert loaded.denoiser.region == "lower face" and isinstance(loaded.autoencoder, LowerFaceAutoencoder)
    whole = new_pipeline("patch", 16, 8, widths=(16, 32), window=4)
    whole.save_pretrained(str(tmp_path / "whole"))
    assert load_pipeline(str(tmp_path / "whole")).denoiser.region == "face"


def test_windows_are_measured_where_latents_say_something(wake_zeros) -> None:
    """Pictures without a reference are grey above the lower face: that must not count as well predicted."""
    pipeline, generator = speaking(wake_zeros), torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 32, 4, 4, generator=generator)
    windows = WindowBatch(latents, torch.randn(2, 4, 44, 40, generator=generator), latents[:, 0])
    found = measure_windows(pipeline, windows, 5)
    made = generate_windows(pipeline.denoiser, pipeline.scheduler, windows, 5, 2)
    pictures, truth = (
        pixels_to_frames(pipeline.autoencoder.window(pipeline.autoencoder.decode(each.flatten(0, 1)).sample))
        for each in (made, latents)
    )
    assert pictures.shape == (8, 32, 32, 3)
    assert found["psnr"] == pytest.approx(metrics.psnr(pictures, truth), abs=0.02)


def test_lips_are_told_for_every_frame_or_not_at_all(wake_zeros) -> None:
    pipeline, face = speaking(wake_zeros), noise_frames(1)[0]
    with pytest.raises(ValueError, match="lips of 8 frames are told for a sound of 9"):
        pipeline(face, np.zeros(640 * 9, np.float32), lips=np.zeros((8, LIP_MOTION), np.float32))


def test_a_denoiser_for_another_region_is_refused(make_shards, tmp_path: Path) -> None:
    manifest = make_shards(tmp_path / "shards", {"s1": [16, 16]}, 48, encoder="lower-face")
    pipeline = untrained_pipeline(manifest, widths=(16, 32), window=4)
    check_fits(manifest, pipeline, "models/mine")
    pipeline.denoiser.region = "face"
    with pytest.raises(ShardError, match="models/mine is damaged: its denoiser is for the face, its latents are of"):
        check_fits(manifest, pipeline, "models/mine")


def test_faces_of_colours_that_the_decoder_knows_are_shown_to_it_as_they_are() -> None:
    """To the bit what a decoder without bounds gives; luma (by hand, BT.601) is the same beyond them too."""
    bounded = awake()
    bounded.register_to_config(known_chroma=((-0.5, -0.05), (0.07, 0.4)))
    seen = []
    bounded.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    flat = (
        torch.ones(3, 3, SIDE, SIDE)
        * torch.tensor([[0.4, 0.1, -0.1], [-0.7, 0.2, 0.9], [0.1, 0.1, 0.1]])[..., None, None]
    )
    latents = bounded.encode(flat).latents
    with torch.no_grad():
        known, _, _ = bounded.decode(latents, flat).sample
        assert torch.equal(known, awake().decode(latents, flat).sample[0])
    made = bounded.soft(latents).mean(dim=(2, 3))
    shown = seen[0].mean(dim=(2, 3))
    assert torch.equal(shown[0], made[0])
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(shown @ luma, made @ luma, atol=1e-5)
    blue, red = ((shown[1, 2] - shown[1] @ luma) / 1.772, (shown[1, 0] - shown[1] @ luma) / 1.402)
    assert blue == pytest.approx(-0.05, abs=1e-4) and red == pytest.approx(0.07, abs=1e-4)


@pytest.mark.parametrize("who", [0, 6])
def test_blue_puppets_have_no_stripes(who: int) -> None:
    """`fedtalk-tiny` saw no blue skin; without the bounds it painted stripes over their mouths."""
    frames = render_clip(who, 0, size=144, seconds=1.0, kind=PUPPETS).video.frames[::5]
    autoencoder = load_autoencoder("fedtalk-tiny")
    latents = torch.from_numpy(encode_frames(autoencoder, frames))

    def psnr() -> float:
        return metrics.psnr(frames, decode_latents(autoencoder, latents, face=frames[0]))

    bounded = psnr()
    autoencoder.register_to_config(known_chroma=None)
    assert bounded > psnr() + 3 and bounded > 27


def test_detail_is_taken_from_the_face_as_its_lips_are_in_each_frame() -> None:
    """Outside the mask every pixel stays the reference's; latents of the bent face give the bent face."""
    autoencoder, face = LowerFaceAutoencoder(widths=(8, 16)).eval(), noise_frames(1)
    bent = autoencoder.window(frames_to_pixels(noise_frames(3, seed=1)))
    made = decode_latents(autoencoder, autoencoder.encoder(bent), batch=2, face=face[0], bent=bent, soft_border=False)
    left, top, right, bottom = region_edges(SIDE, "lower face")
    np.testing.assert_array_equal(made[:, top:bottom, left:right], pixels_to_frames(bent))
    softly = decode_latents(autoencoder, autoencoder.encoder(bent), face=face[0], bent=bent)
    outside = mask_of(SIDE) == 0
    assert outside.mean() > 0.4 and (softly[:, outside] == face[:, outside]).all()
    assert (softly != decode_latents(autoencoder, autoencoder.encoder(bent), face=face[0])).any()


@pytest.fixture
def bending(face_points: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> TalkingHeadPipeline:
    """A pipeline whose network adds nothing to what it is told, of faces with these points."""
    torch.manual_seed(0)
    pipeline = new_pipeline("lower-face", 32, 4, widths=(16, 32), window=4, reference_lips=True)
    pipeline.denoiser.eval().bend_latents(8, 20, 6)
    torch.nn.init.normal_(pipeline.denoiser.lip_axes, std=0.2, generator=torch.Generator().manual_seed(1))
    pipeline.denoiser.lip_std.fill_(0.1)
    points = face_points.astype(np.float32)[None]
    monkeypatch.setattr("fedtalk_ray.model.pipeline.face_landmarks", lambda frames: points.repeat(len(frames), 0))
    return pipeline


def test_a_face_says_told_lips_by_being_bent_to_them(bending: TalkingHeadPipeline, face_points: np.ndarray) -> None:
    """From where its own are, with its own detail: an untrained network shows the picture of the bent face itself."""
    face = noise_frames(1)[0]
    lips = np.random.default_rng(0).normal(0, 0.02, (7, LIP_MOTION)).astype(np.float32)
    audio = np.random.default_rng(1).normal(0, 0.1, 7 * 640).astype(np.float32)
    with torch.no_grad():
        made = bending(face, audio, 1, lips=lips, reference_lips=lips[0]).frames
    base = bending.denoiser
    shapes = base.lip_shape(torch.from_numpy(lips))
    bends = Bends(lower_flow(face_points, base.mouth_moves(shapes - shapes[0]).double().numpy()))
    lower = bending.autoencoder.window(frames_to_pixels(face[None]))
    bent = bend(lower, bends)
    soft = base.latent_bend(bending.autoencoder.encode(frames_to_pixels(face[None])).latents, bends[None])[0]
    expected = decode_latents(bending.autoencoder, soft, face=face, bent=bent)
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert np.abs(made[0].astype(int) - face).max() <= 2 < np.abs(made[3].astype(int) - face).max()


def test_what_the_autoencoder_alone_gives_has_its_detail_where_lips_are(bending, face_points) -> None:
    """The latents of bent faces, with the detail of the face bent alike, are those faces."""
    face = noise_frames(1)[0]
    landmarks = np.repeat(face_points[None], 5, axis=0)
    landmarks[:, 48:] += np.random.default_rng(0).normal(0, 0.02, (5, 20, 2))
    base, lower = bending.denoiser, bending.autoencoder.window(frames_to_pixels(face[None]))
    shapes = base.lip_shape(torch.from_numpy(lip_motion(landmarks)))
    bends = Bends(lower_flow(face_points, base.mouth_moves(shapes - shapes[0]).double().numpy()))
    true = bend(lower, bends)
    latents = bending.autoencoder.encoder(true)
    stored = latents.numpy()
    made = bending.from_latents(face, stored, landmarks)
    expected = decode_latents(bending.autoencoder, latents, face=face, bent=true)
    assert made.shape == (5, SIDE, SIDE, 3) and np.abs(made.astype(int) - expected).max() <= 1
    unbent = decode_latents(bending.autoencoder, latents, face=face)
    assert np.array_equal(bending.from_latents(face, stored, landmarks[:0]), unbent) and (made != unbent).any()
    base.lip_axes.zero_()
    assert np.array_equal(bending.from_latents(face, stored, landmarks), unbent), "without axes lips are no shapes"


def test_a_streamed_face_is_bent_as_a_whole_clip_is(bending: TalkingHeadPipeline) -> None:
    """However long, and whatever is known of its lips; blocks end where windows do not."""
    wake_up = torch.Generator().manual_seed(2)
    torch.nn.init.normal_(bending.denoiser.conv_out.weight, std=0.05, generator=wake_up)
    face, audio = noise_frames(1)[0], np.random.default_rng(1).normal(0, 0.1, 23 * 640).astype(np.float32)
    known = np.random.default_rng(3).normal(0, 0.02, LIP_MOTION).astype(np.float32)
    made = []
    for lips in (None, known):
        seeded = [torch.Generator().manual_seed(4) for _ in range(2)]
        whole = bending(face, audio, generator=seeded[0], reference_lips=lips).frames
        streamed = list(bending.stream(face, audio, generator=seeded[1], block=5, reference_lips=lips))
        assert [len(block) for block in streamed] == [5, 5, 5, 5, 3]
        assert np.array_equal(np.concatenate(streamed), whole)
        made.append(whole)
    assert (made[0] != made[1]).any()


def test_a_bent_face_speaks_along_from_what_its_photo_shows(bending: TalkingHeadPipeline, monkeypatch) -> None:
    """Whatever its first frame hears: how loud that was is not known yet."""
    face, audio = noise_frames(1)[0], np.random.default_rng(1).normal(0, 0.1, 9 * 640).astype(np.float32)
    speech = bending._heard(audio)
    told = []

    def remembering(*given: Any) -> Told:
        told.append(told_of(*given))
        return told[-1]

    monkeypatch.setattr("fedtalk_ray.model.pipeline.told_of", remembering)
    made = np.concatenate(list(bending.speak_along(face, speech, torch.Generator().manual_seed(0))))
    assert made.shape == (9, SIDE, SIDE, 3) and np.abs(made.astype(int) - face).max() > 2
    own = told[0].reference_lips
    torch.testing.assert_close(own, own[0] * bending.denoiser.with_aperture())
    bending(face, audio, 1)
    assert (told[1].reference_lips - own).abs().max() > 1e-3


def test_with_guidance_0_nothing_is_heard_and_nothing_bent(bending: TalkingHeadPipeline) -> None:
    bending.denoiser.certainty.fill_(0.5)
    face = noise_frames(1)[0]

    def made(guidance: float, number: int) -> np.ndarray:
        sound = np.random.default_rng(number).normal(0, 0.1, 7 * 640).astype(np.float32)
        return bending(face, sound, 1, guidance).frames

    assert np.array_equal(made(0.0, 1), made(0.0, 2)) and (made(1.0, 1) != made(1.0, 2)).any()


def test_lips_are_not_told_to_who_knows_none(bending: TalkingHeadPipeline) -> None:
    bending.denoiser.lip_axes.zero_()
    with pytest.raises(ValueError, match="lips are told to a model that knows no lip shapes"):
        bending(noise_frames(1)[0], np.zeros(7 * 640, np.float32), 1, lips=np.zeros((7, LIP_MOTION), np.float32))
