"""The sync network judges windows of lips and sound, says who is late, and teaches a generator without learning."""

from math import exp, log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedtalk_ray.media.speech import LogMel
from fedtalk_ray.model.sync import MAX_OFFSET, SPAN, SyncNetwork, find_offset, sync_loss


@pytest.fixture
def network() -> SyncNetwork:
    torch.manual_seed(0)
    return SyncNetwork(latent_channels=4, latent_size=8, width=8, dimensions=8).eval()


class Told(torch.nn.Module):
    """Takes the cosines that it is given for its own: a sync network whose loss can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = (torch.nn.Parameter(torch.tensor(value)) for value in (2.0, -1.0))

    def forward(self, latents: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return latents


def spelled_out() -> Any:
    """A sync network for which latents and speech are the embeddings already."""
    return SimpleNamespace(embed_mouth=lambda latents, reference: latents, embed_speech=lambda speech: speech)


def directions(count: int, seed: int = 0) -> torch.Tensor:
    """Unit vectors [count, 64]; two of them have a cosine of about 0.1."""
    vectors = torch.randn(count, 64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_windows_are_judged_by_a_cosine(network: SyncNetwork, make_windows) -> None:
    batch = make_windows(3, frames=SPAN + 2)
    with torch.no_grad():
        cosines = network(batch.latents, batch.speech, batch.reference)
        mouth = network.embed_mouth(batch.latents, batch.reference).double().numpy()
        sound = network.embed_speech(batch.speech).double().numpy()
    assert mouth.shape == sound.shape == (3, 3, 8) and cosines.shape == (3, 3)
    lengths = np.linalg.norm(mouth, axis=2), np.linalg.norm(sound, axis=2)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    np.testing.assert_allclose(cosines, np.einsum("bwd,bwd->bw", mouth, sound), atol=1e-6)
    assert cosines.std() > 1e-4


def test_a_window_sees_and_hears_its_own_frames_only(network: SyncNetwork, make_windows) -> None:
    """Of 7 frames the last is in the last of 3 windows alone; the fifth (index 4) is in all of them."""
    batch = make_windows(1, frames=7)

    def changed(frame: int) -> list[list[bool]]:
        latents, speech = batch.latents.clone(), batch.speech.clone()
        latents[:, frame] += 1
        speech[:, frame] += 1
        with torch.no_grad():
            pairs = (
                (network.embed_mouth(latents, batch.reference), network.embed_mouth(batch.latents, batch.reference)),
                (network.embed_speech(speech), network.embed_speech(batch.speech)),
            )
        return [((one - other).abs().amax(2)[0] > 1e-5).tolist() for one, other in pairs]

    assert changed(6) == [[False, False, True]] * 2
    assert changed(4) == [[True, True, True]] * 2


def test_what_does_not_fit_is_refused_in_one_line(network: SyncNetwork, make_windows) -> None:
    batch = make_windows(2, frames=SPAN + 1)
    latents, speech, reference = batch.latents, batch.speech, batch.reference
    for given, says in (
        ((latents[:, :4], speech[:, :4], reference), "latents of 4 frames; one window is 5"),
        ((latents, speech[:, :5], reference), r"\[2, 6\] and speech of \[2, 5\]"),
        ((latents[:, :, :2], speech, reference), r"takes \[clips, frames, 4, 8, 8\]"),
        ((latents, speech[..., :20, :], reference), r"takes \[clips, frames, 44, 40\]"),
        ((latents, speech, reference[:1]), r"the reference is \[1, 4, 8, 8\]; .* \[2, 4, 8, 8\]"),
    ):
        with pytest.raises(ValueError, match=says):
            network(*given)


def test_the_loss_is_worked_out_by_hand() -> None:
    """Log-odds 2 * cosine - 1: of cosines 0.5, 0 and -1 they are 0, -1 and -3."""
    told: Any = Told()
    cosines = torch.tensor([[0.5, 0.0, -1.0]])
    expected = (log(2) + log(1 + exp(1)) + log(1 + exp(3))) / 3
    assert float(sync_loss(told, cosines, cosines, cosines)) == pytest.approx(expected, abs=1e-6)


def test_the_loss_pulls_latents_and_leaves_the_network(network: SyncNetwork, make_windows) -> None:
    """Even where the network's parameters ask for gradients; a step down the gradient raises the cosine."""
    batch = make_windows(2, frames=SPAN + 1)
    latents = batch.latents.clone().requires_grad_(True)
    before = sync_loss(network, latents, batch.speech, batch.reference)
    before.backward()
    assert latents.grad is not None and (latents.grad[..., 4:7, 2:6] != 0).all()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        better = latents - latents.grad / latents.grad.norm()
        assert sync_loss(network, better, batch.speech, batch.reference) < before
        gain = network(better, batch.speech, batch.reference) - network(latents, batch.speech, batch.reference)
    assert gain.mean() > 0


def test_no_offset_of_a_still_of_a_contrary_or_of_a_short_clip(network: SyncNetwork) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = SPAN + 2 * MAX_OFFSET
    latents = torch.randn(frames, 4, 8, 8, generator=generator)
    speech = torch.randn(frames, *LogMel.shape, generator=generator)
    assert find_offset(network, latents[:1].expand_as(latents), speech, latents[0])[0] is None
    still, sound = directions(1).expand(20, -1), directions(20)
    offset, cosines = find_offset(spelled_out(), still, sound, still)
    assert offset is None and cosines.max() > 0
    same = torch.ones(20, 1)
    assert find_offset(spelled_out(), torch.cat([-same, same[:1]]), torch.cat([same, -same[:1]]), same)[0] is None
    offset, cosines = find_offset(network, latents[:-1], speech[:-1], latents[0])
    assert offset is None and len(cosines) == 2 * MAX_OFFSET + 1 and np.isnan(cosines).all()
    assert np.isfinite(find_offset(network, latents, speech, latents[0])[1]).all()
    with pytest.raises(ValueError, match=r"at least 5 are needed"):
        find_offset(network, latents[:4], speech[:4], latents[0])


@pytest.mark.parametrize("late", [-5, -3, 0, 1, 4])
def test_the_offset_is_the_delay_that_was_put_in(late: int) -> None:
    """Every moment has a direction of its own: sound[i] is moment 10 + i, the lips run `late`."""
    moments = directions(60)
    offset, cosines = find_offset(spelled_out(), moments[10 - late : 50 - late], moments[10:50], torch.zeros(()))
    assert offset == late
    assert cosines.shape == (2 * MAX_OFFSET + 1,) and cosines[late + MAX_OFFSET] == pytest.approx(1, abs=1e-5)


def test_the_cosine_at_an_offset_is_the_mean_over_the_same_mouths() -> None:
    """Six windows, offsets of one frame: mouths 1 to 4, with the sounds one later, the same, and one earlier."""
    mouth, sound = directions(6, seed=1), directions(6, seed=2)
    _, cosines = find_offset(spelled_out(), mouth, sound, torch.zeros(()), max_offset=1)
    table = mouth.double().numpy() @ sound.double().numpy().T
    expected = [np.mean([table[mouth, mouth - offset] for mouth in range(1, 5)]) for offset in (-1, 0, 1)]
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
