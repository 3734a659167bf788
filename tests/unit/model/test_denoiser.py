"""The denoiser: shapes, what starts at zero, what may depend on what, units, and its own format on disk."""

import numpy as np
import pytest
import torch

from fedtalk_ray.model.denoiser import PREDICTION_TYPES, FrameBlock, TalkingHeadDenoiser, bare_denoiser

STEP = torch.tensor([300, 700])


def run(denoiser: TalkingHeadDenoiser, batch, heard: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(batch.latents, STEP[: len(batch)], batch.speech, batch.reference, heard)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("frames", [1, 4, 7])
def test_the_output_has_the_shape_of_the_input(make_denoiser, make_windows, kind: str, frames: int) -> None:
    batch = make_windows(frames=frames)
    output = run(make_denoiser(prediction_type=kind), batch)
    assert output.shape == batch.latents.shape and torch.isfinite(output).all()


def test_an_unknown_prediction_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="prediction_type is 'score'; known: sample, v_prediction, epsilon"):
        TalkingHeadDenoiser(prediction_type="score")


def test_untrained_it_predicts_what_the_sound_suggests_or_nothing(make_denoiser, make_windows) -> None:
    batch = make_windows()
    untrained = make_denoiser(awake=False)
    assert torch.equal(run(untrained, batch), untrained.speech_motion(batch.speech))
    for kind in ("v_prediction", "epsilon"):
        assert not run(make_denoiser(awake=False, prediction_type=kind), batch).any()


@pytest.mark.parametrize("changed", ["sound", "picture"])
def test_frames_are_independent_until_the_convolutions_over_time_have_learned(
    make_denoiser, make_windows, wake_zeros, changed: str
) -> None:
    denoiser = make_denoiser(awake=False)
    denoiser.conv_out.weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    before, after = make_windows(), make_windows()
    (after.speech if changed == "sound" else after.latents)[:, 2] += 1
    moved = (run(denoiser, after) - run(denoiser, before)).abs().amax((0, 2, 3, 4))
    assert moved[2] > 1e-3 and moved[[0, 1, 3]].max() < 1e-6
    wake_zeros(denoiser)
    moved = (run(denoiser, after) - run(denoiser, before)).abs().amax((0, 2, 3, 4))
    assert moved.min() > 1e-4


def test_windows_of_a_batch_do_not_see_each_other(make_denoiser, make_windows) -> None:
    denoiser, batch = make_denoiser(), make_windows(2)
    together = run(denoiser, batch)
    with torch.no_grad():
        alone = denoiser(batch.latents[1:], STEP[1:], batch.speech[1:], batch.reference[1:])
    assert torch.allclose(together[1:], alone, atol=1e-5)


@pytest.mark.parametrize("what", ["timestep", "speech", "reference", "latents"])
def test_everything_it_is_given_matters(make_denoiser, make_windows, what: str) -> None:
    denoiser, batch = make_denoiser(), make_windows()
    inputs = {"sample": batch.latents, "timestep": STEP, "speech": batch.speech, "reference": batch.reference}
    name = "sample" if what == "latents" else what
    with torch.no_grad():
        change = denoiser(**inputs | {name: inputs[name] + 1}) - denoiser(**inputs)
    assert change.abs().max() > 1e-3


def test_without_hearing_the_sound_does_not_matter(make_denoiser, make_windows) -> None:
    denoiser, batch, other = make_denoiser(), make_windows(), make_windows()
    other.speech.add_(1)
    deaf, hearing = torch.tensor([False, False]), torch.tensor([True, True])
    assert torch.equal(run(denoiser, batch, deaf), run(denoiser, other, deaf))
    assert torch.equal(run(denoiser, batch, hearing), run(denoiser, batch))
    mixed = run(denoiser, batch, torch.tensor([True, False]))
    assert torch.allclose(mixed[0], run(denoiser, batch)[0], atol=1e-6)
    assert torch.allclose(mixed[1], run(denoiser, batch, deaf)[1], atol=1e-6)
    assert (run(denoiser, batch) - run(denoiser, batch, deaf)).abs().max() > 1e-3


def test_told_lips_take_the_place_of_heard_ones_where_they_are_numbers(make_denoiser, make_windows) -> None:
    """Told what it hears anyway, or told nothing (NaN), a window is as before; told otherwise, it changes alone."""
    denoiser, batch = make_denoiser(), make_windows()
    with torch.no_grad():
        heard = denoiser.speech_encoder(batch.speech)[..., :6]
        told = heard.clone()
        told[1] += 1

        def run_told(lips: torch.Tensor) -> torch.Tensor:
            return denoiser(batch.latents, STEP, batch.speech, batch.reference, lips=lips)

        plain = run(denoiser, batch)
        assert torch.equal(run_told(heard), plain) and torch.equal(run_told(heard * torch.nan), plain)
        assert torch.allclose(run_told(told)[0], plain[0], atol=1e-6)
        assert (run_told(told)[1] - plain[1]).abs().max() > 1e-3


def test_of_the_references_lips_what_is_known_matters_and_what_is_not_does_not(make_denoiser, make_windows) -> None:
    """Nothing told and nothing known (NaN) are the same; each number that is known has an effect, zero too."""
    denoiser, batch = make_denoiser(reference_lips=True), make_windows()
    unknown = torch.full((2, 6), torch.nan)

    def run_told(reference_lips: torch.Tensor) -> torch.Tensor:
        given = batch.latents, STEP, batch.speech, batch.reference
        with torch.no_grad():
            return denoiser(*given, **denoiser.told(reference_lips))

    plain = run(denoiser, batch)
    assert torch.equal(run_told(unknown), plain) and torch.equal(run_told(unknown[:, :0]), plain)
    for place in range(6):
        for value in (0.0, 1.0):
            told = unknown.clone()
            told[1, place] = value
            found = run_told(told)
            assert torch.allclose(found[0], plain[0], atol=1e-6)
            assert (found[1] - plain[1]).abs().max() > 1e-3
    told[1, 5] = 1.001
    assert (run_told(told) - found).abs().max() > 1e-7, "values count, not only which are known"


def test_a_network_learns_to_see_the_references_lips_from_where_it_is(make_denoiser, make_windows, tmp_path) -> None:
    """What it knows is kept, and what it does not know yet changes nothing; saved and loaded it can be told them."""
    denoiser, batch = make_denoiser(), make_windows()
    lips, before = torch.ones(2, 6), run(denoiser, batch)
    assert denoiser.told(lips) == {} and not denoiser.takes_reference_lips()
    denoiser.see_reference_lips()
    denoiser.save_pretrained(str(tmp_path))
    loaded = TalkingHeadDenoiser.from_pretrained(str(tmp_path)).eval()
    given = batch.latents, STEP, batch.speech, batch.reference
    with torch.no_grad():
        assert torch.equal(loaded(*given, **loaded.told(lips)), before)
        loaded.reference_embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
        moved = loaded(*given, **loaded.told(lips))
        loaded.see_reference_lips()
        assert (moved - before).abs().max() > 1e-3 and torch.equal(loaded(*given, **loaded.told(lips)), moved)


def test_no_sound_is_learned(make_denoiser, make_windows) -> None:
    denoiser, batch = make_denoiser(), make_windows()
    denoiser(batch.latents, STEP, batch.speech, batch.reference, torch.tensor([False, False])).sum().backward()
    assert denoiser.silence.grad.abs().sum() > 0
    assert not denoiser.speech_encoder.linear1.weight.grad.any()


def test_a_block_convolves_over_time_as_a_loop_would() -> None:
    torch.manual_seed(0)
    block = FrameBlock(8, 8, 6, dropout=0.1).eval()
    torch.nn.init.normal_(block.temporal.weight)
    torch.nn.init.normal_(block.temporal.bias)
    windows, frames = 2, 5
    hidden, embedding = torch.randn(windows * frames, 8, 3, 2), torch.randn(windows * frames, 6)
    with torch.no_grad():
        spatial = block.spatial(hidden, embedding).unflatten(0, (windows, frames)).numpy()
        output = block(hidden, embedding, frames).unflatten(0, (windows, frames)).numpy()
    kernel, bias = block.temporal.weight.detach().numpy()[..., 0], block.temporal.bias.detach().numpy()
    active = spatial / (1 + np.exp(-spatial))
    expected = spatial + bias[None, None, :, None, None]
    for t in range(frames):
        for tap in range(3):
            if 0 <= t + tap - 1 < frames:
                expected[:, t] += np.einsum("oi,bihw->bohw", kernel[..., tap], active[:, t + tap - 1])
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_residuals_by_hand_and_back(make_denoiser) -> None:
    denoiser = make_denoiser()
    denoiser.residual_std.copy_(torch.tensor([1.0, 2.0, 4.0, 0.5]))
    latents, reference = torch.full((1, 2, 4, 8, 8), 5.0), torch.full((1, 4, 8, 8), 3.0)
    residual = denoiser.to_residual(latents, reference)
    assert residual[0, 1, :, 0, 0].tolist() == [2.0, 1.0, 0.5, 4.0]
    assert torch.equal(denoiser.from_residual(residual, reference), latents)


def test_a_lip_shape_by_hand(make_denoiser) -> None:
    """The aperture, then displacements along the axes, each in its own units."""
    denoiser = make_denoiser(lip_numbers=3)
    assert not denoiser.knows_lips()
    denoiser.lip_axes[0, 0], denoiser.lip_axes[1, 39] = 1, -1
    denoiser.lip_mean.copy_(torch.tensor([0.1, 0, 0]))
    denoiser.lip_std.copy_(torch.tensor([0.05, 0.01, 0.02]))
    motion = torch.zeros(2, 41)
    motion[:, 0] = 0.2
    motion[1, 1], motion[1, 40] = 0.03, 0.04
    assert torch.allclose(denoiser.lip_shape(motion), torch.tensor([[2.0, 0, 0], [2, 3, -2]]), atol=1e-5)
    assert denoiser.knows_lips()


def test_gradient_checkpointing_changes_memory_and_nothing_else(make_denoiser, make_windows) -> None:
    batch, kept = make_windows(), []
    for checkpointing in (False, True):
        denoiser = make_denoiser().train()
        denoiser.gradient_checkpointing = checkpointing
        torch.manual_seed(0)  # dropout
        loss = denoiser(batch.latents, STEP, batch.speech, batch.reference).square().mean()
        loss.backward()
        kept.append((loss.detach(), [parameter.grad for parameter in denoiser.parameters()]))
    (loss, gradients), (again, recomputed) = kept
    assert torch.equal(loss, again)
    for gradient, other in zip(gradients, recomputed, strict=True):
        assert (gradient is None and other is None) or torch.allclose(gradient, other, atol=1e-7)


def test_a_denoiser_saved_and_loaded_predicts_as_before(make_denoiser, make_windows, tmp_path) -> None:
    denoiser = make_denoiser(prediction_type="v_prediction")
    denoiser.save_pretrained(str(tmp_path))
    loaded = TalkingHeadDenoiser.from_pretrained(str(tmp_path))
    assert loaded.config.prediction_type == "v_prediction" and loaded.config.window == 4
    assert torch.equal(loaded.residual_std, denoiser.residual_std)
    assert torch.equal(run(loaded.eval(), make_windows()), run(denoiser, make_windows()))


def test_the_bare_denoiser_is_found_in_a_peft_model(make_denoiser) -> None:
    from fedtalk_ray.model.adapters import with_adapters

    denoiser = make_denoiser()
    assert bare_denoiser(denoiser) is denoiser
    assert bare_denoiser(with_adapters(denoiser, 2, 4.0, 2)) is denoiser
