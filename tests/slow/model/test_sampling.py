"""Clips of any length: equal to the whole clip computed at once, in constant memory, without a seam."""

import weakref

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d, uniform_filter1d
from torch.utils._python_dispatch import TorchDispatchMode

from fedtalk_ray.media.lips import LIP_MOTION
from fedtalk_ray.model.bending import Bends
from fedtalk_ray.model.pipeline import frame_count
from fedtalk_ray.model.sampling import _steadied, sample_clip, sample_parts, sample_stream
from fedtalk_ray.model.schedule import make_scheduler
from fedtalk_ray.model.told import Told, told_of


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clip(denoiser, frames: int, smooth: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A reference and as many frames of speech, which changes the more slowly the larger `smooth` is."""
    speech = np.random.default_rng(0).normal(size=(frames, denoiser.config.speech_hops, denoiser.config.mel_bins))
    if smooth:
        speech = gaussian_filter1d(speech, smooth, axis=0) * 2 * smooth**0.5
    return torch.randn(4, 8, 8, generator=seeded(5)), torch.from_numpy(speech).float()


@torch.no_grad()
def whole_clip(denoiser, kind, reference, speech, steps, guidance, generator) -> torch.Tensor:
    """The same by the definition: every step predicts all windows of the clip and blends them, then the next begins."""
    scheduler, window, total = make_scheduler(kind), denoiser.config.window, len(speech)
    speech = torch.cat([speech, speech[-1:].expand(max(0, window - total), -1, -1)])
    length = len(speech)
    noise = torch.randn((length, *reference.shape), generator=generator)
    noisy = noise if kind == "epsilon" else torch.zeros_like(noise)
    begins = sorted({*range(0, length - window + 1, window // 2), length - window})
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        sums, weights = torch.zeros_like(noisy), torch.zeros(length, 1, 1, 1)
        for begin in begins:
            arguments = (
                noisy[None, begin : begin + window],
                timestep[None],
                speech[None, begin : begin + window],
                reference[None],
            )
            predicted = denoiser(*arguments)[0]
            if guidance != 1:
                silent = denoiser(*arguments, torch.tensor([False]))[0]
                predicted = silent + guidance * (predicted - silent)
            for place in range(window):
                weight = min(place + 1, window - place)
                sums[begin + place] += weight * predicted[place]
                weights[begin + place] += weight
        step = scheduler.step(sums / weights, timestep, noisy)
        if timestep == scheduler.timesteps[0]:
            mean = step.pred_original_sample
        noisy = step.prev_sample
        if kind != "epsilon" and timestep == scheduler.timesteps[0] and steps > 1:
            # The zeros were no noise that could be found again in the clip; it is added now.
            level = scheduler.alphas_cumprod[scheduler.timesteps[1]]
            noisy = level.sqrt() * mean + (1 - level).sqrt() * noise
    # Of 8 cells the mouth covers rows 4 to 6 and columns 2 to 5; each edge is softened over its neighbours.
    inside = np.zeros((10, 10))
    inside[5:8, 3:7] = 1
    share = np.mean([inside[row : row + 8, column : column + 8] for row in range(3) for column in range(3)], axis=0)
    share = torch.from_numpy(share).float()
    mean, sample = mean[:total], noisy[:total]
    slow = torch.from_numpy(uniform_filter1d((sample - mean).numpy(), 7, axis=0, mode="nearest"))
    shown = sample if kind == "epsilon" else share * mean + (1 - share) * (sample - slow)
    return denoiser.from_residual(shown[None], reference[None])[0]


@pytest.mark.parametrize(
    ("kind", "frames"),
    [("sample", frames) for frames in (1, 3, 4, 5, 12, 17, 30)] + [("v_prediction", 15), ("epsilon", 15)],
)
def test_what_flows_past_equals_the_whole_clip_at_once(make_denoiser, kind: str, frames: int) -> None:
    denoiser = make_denoiser(prediction_type=kind)
    reference, speech = clip(denoiser, frames)
    for steps, guidance, batch in ((3, 1.0, 2), (2, 1.5, 3)):
        expected = whole_clip(denoiser, kind, reference, speech, steps, guidance, seeded())
        pieces = list(
            sample_stream(denoiser, make_scheduler(kind), reference, speech, steps, guidance, seeded(), batch)
        )
        made = torch.cat(pieces)
        assert made.shape == expected.shape and made.dtype == torch.float32
        scale = float(expected.abs().max())
        assert torch.allclose(made, expected, atol=1e-5 * max(1.0, scale))
        longest = batch * 2 + 4 + 3
        assert max(len(piece) for piece in pieces) <= longest, "whole groups of windows, never the whole clip"


def test_a_window_of_odd_length_and_one_frame_are_no_special_cases(make_denoiser) -> None:
    for window in (3, 5):
        denoiser = make_denoiser(window=window)
        reference, speech = clip(denoiser, 14)
        expected = whole_clip(denoiser, "sample", reference, speech, 2, 1.0, seeded())
        made = sample_clip(denoiser, make_scheduler("sample"), reference, speech, 2, 1.0, seeded(), batch=2)
        assert torch.allclose(made, expected, atol=1e-5 * float(expected.abs().max()))


def test_two_clips_made_in_turn_do_not_disturb_each_other(make_denoiser) -> None:
    denoiser, scheduler = make_denoiser(), make_scheduler("sample")
    reference, speech = clip(denoiser, 40)
    alone = [sample_clip(denoiser, scheduler, reference, speech, steps, 1.0, seeded(), 2) for steps in (2, 3)]
    streams = [sample_stream(denoiser, scheduler, reference, speech, steps, 1.0, seeded(), 2) for steps in (2, 3)]
    made: list[list[torch.Tensor]] = [[], []]
    for pair in zip(*streams, strict=True):
        for kept, piece in zip(made, pair, strict=True):
            kept.append(piece)
    for kept, expected in zip(made, alone, strict=True):
        assert torch.equal(torch.cat(kept), expected)


class Alive(TorchDispatchMode):
    """Counts the numbers in tensors that operations made and that still live; `peak` is the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.now += tensor.numel()
                weakref.finalize(tensor, self._gone, tensor.numel())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, count: int) -> None:
        self.now -= count


def test_memory_does_not_grow_with_the_clip(make_denoiser) -> None:
    denoiser, scheduler = make_denoiser(), make_scheduler("sample")
    held, at_once = [], []
    for frames in (60, 120):
        reference, speech = clip(denoiser, frames)
        with Alive() as alive:
            made = sum(map(len, sample_stream(denoiser, scheduler, reference, speech, 2, 1.0, seeded(), 2)))
        assert made == frames
        held.append(alive.peak)
        with Alive() as alive:
            whole_clip(denoiser, "sample", reference, speech, 1, 1.0, seeded())
        at_once.append(alive.peak)
    assert held[1] <= held[0]
    assert at_once[1] - at_once[0] > 60 * reference.numel(), "the count would see it"


def test_the_first_frames_are_there_after_the_first_windows(make_denoiser) -> None:
    denoiser = make_denoiser()
    reference, speech = clip(denoiser, 200)
    calls = []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    stream = sample_stream(denoiser, make_scheduler("sample"), reference, speech, 2, 1.0, seeded(), 4)
    next(stream)
    # A group of each step, and one more of the first: the second step looks ahead over the border.
    assert len(calls) <= 3
    for _ in stream:
        pass
    assert len(calls) == 2 * -(-99 // 4), "every window is predicted once a step"


def seam_ratio(frames: np.ndarray | torch.Tensor, borders: range) -> float:
    """Energy of the change of picture into the frames `borders`, over that of all other changes; 1 is no seam."""
    motion = np.square(np.diff(np.asarray(frames, np.float64), axis=0)).reshape(len(frames) - 1, -1).mean(1)
    at_border = np.zeros(len(motion), bool)
    at_border[[border - 1 for border in borders]] = True
    return float(motion[at_border].mean() / motion[~at_border].mean())


def test_the_seam_measure_on_a_known_jump() -> None:
    """Steps of 1, and of 3 into every tenth frame: energies 1 and 9."""
    steps = np.where(np.arange(1, 41) % 10 == 0, 3, 1)
    frames = np.concatenate([[0], np.cumsum(steps)])[:, None, None, None]
    assert seam_ratio(frames, range(10, 41, 10)) == pytest.approx(9)
    assert seam_ratio(frames, range(5, 41, 10)) < 1


def test_no_seam_where_pieces_or_windows_end(make_denoiser) -> None:
    """Pieces computed each by itself do show one, so the measure would see it."""
    denoiser, scheduler = make_denoiser(), make_scheduler("sample")
    reference, speech = clip(denoiser, 240, smooth=6)
    pieces = list(sample_stream(denoiser, scheduler, reference, speech, 2, 1.0, seeded(), 10))
    assert len(pieces[1]) == 20 and len(pieces[0]) == 17, "the first is short of what its end still needs"
    made = torch.cat(pieces)
    apart = torch.cat(
        [sample_clip(denoiser, scheduler, reference, speech[b : b + 20], 2, 1.0, seeded(b)) for b in range(0, 240, 20)]
    )
    assert seam_ratio(apart, range(20, 240, 20)) > 1.15
    assert 0.9 < seam_ratio(made, range(17, 240, 20)) < 1.1, "pieces"
    assert 0.9 < seam_ratio(made, range(20, 240, 20)) < 1.1, "groups of windows"
    assert 0.9 < seam_ratio(made, range(2, 240, 2)) < 1.1, "windows"


@pytest.mark.parametrize("block", [1, 7, 25, 32, 1000])
def test_the_pipelines_blocks_are_its_clip_cut_anew(make_pipeline, block: int) -> None:
    pipeline = make_pipeline()
    rng = np.random.default_rng(0)
    face, audio = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), rng.normal(0, 0.1, 49_500).astype(np.float32)
    whole = pipeline(face, audio, generator=seeded()).frames
    blocks = list(pipeline.stream(face, audio, generator=seeded(), block=block))
    assert len(whole) == 78 == frame_count(len(audio)), "77.3 frames of sound; no multiple of the window"
    assert (np.concatenate(blocks) == whole).all()
    assert [len(part) for part in blocks] == [block] * (78 // block) + [78 % block] * bool(78 % block)


def test_a_block_of_no_frames_is_refused_at_once(make_pipeline) -> None:
    with pytest.raises(ValueError, match="block is 0; it must be at least 1 frame"):
        make_pipeline().stream(np.zeros((32, 32, 3), np.uint8), np.zeros(640, np.float32), block=0)


class Echo(torch.nn.Module):
    """Takes what it is shown for the face, and remembers it."""

    def __init__(self, denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.shown: dict[int, list[torch.Tensor]] = {}

    def get_base_model(self):
        return self.denoiser

    def forward(self, sample, timestep, *_):
        self.shown.setdefault(int(timestep[0]), []).append(sample)
        return sample


def test_the_mean_comes_of_nothing_and_knows_no_seed(make_denoiser) -> None:
    """So it is the same for every seed; only what a sample adds to it differs."""
    denoiser = make_denoiser()
    reference, speech = clip(denoiser, 30)

    def parts(model, seed: int, steps: int = 2) -> list[torch.Tensor]:
        made = sample_parts(model, make_scheduler("sample"), reference, speech, steps, 1.0, seeded(seed), 2)
        return [torch.cat(part) for part in zip(*made, strict=True)]

    one, other = parts(denoiser, 0), parts(denoiser, 1)
    assert torch.equal(one[0], other[0])
    assert not torch.allclose(one[1], other[1], atol=1e-3)
    alone = parts(denoiser, 0, steps=1)
    assert torch.equal(alone[0], one[0]) and torch.allclose(alone[1], one[0], atol=1e-6), "one step: the mean itself"
    echo = Echo(denoiser)
    mean, sample = parts(echo, 0)
    assert mean.abs().max() == 0
    assert all(each.abs().max() == 0 for each in echo.shown[999])
    level = make_scheduler("sample").alphas_cumprod[499]
    assert torch.cat(echo.shown[499]).std() == pytest.approx(float((1 - level).sqrt()), rel=0.05)
    assert sample.std() > 0.1


def test_a_steadied_sample_strays_from_the_mean_only_quickly() -> None:
    """By hand: a constant and a ramp are taken away (but at its ends), a swing of period two is not."""
    frames = torch.arange(20.0)[:, None, None, None]
    mean = torch.full((20, 1, 1, 1), 5.0)

    def steadied(added: torch.Tensor, cut: int) -> torch.Tensor:
        pairs = zip(mean.split(cut), (mean + added).split(cut), strict=True)
        means, samples = (torch.cat(part) for part in zip(*_steadied(iter(pairs)), strict=True))
        assert torch.equal(means, mean)
        return samples - means

    for cut in (1, 3, 7, 20):
        assert steadied(torch.full((20, 1, 1, 1), 2.0), cut).abs().max() < 1e-6
        assert steadied(0.5 * frames, cut)[3:-3].abs().max() < 1e-5
        assert steadied(0.5 * frames, cut)[0] == pytest.approx(-0.5 * 6 / 7), (
            "frames 1 to 3 stand against repeated ends"
        )
        swing = 1 - 2 * (frames % 2)
        # Of seven frames of a swing four are the middle one's opposite and three are like it.
        assert torch.allclose(steadied(swing, cut)[3:-3], swing[3:-3] * (1 + 1 / 7), atol=1e-5)


def test_every_window_is_told_the_lips_of_its_own_frames(make_denoiser) -> None:
    """In one step, by the definition: windows of the clip, each with its lips, blended."""
    denoiser = make_denoiser().eval()
    window, frames = denoiser.config.window, 11
    reference, speech = clip(denoiser, frames)
    lips = torch.randn(frames, denoiser.config.lip_numbers, generator=seeded(6))
    scheduler = make_scheduler("sample")
    scheduler.set_timesteps(1)
    sums, weights = torch.zeros(frames, *reference.shape), torch.zeros(frames, 1, 1, 1)
    for begin in sorted({*range(0, frames - window + 1, window // 2), frames - window}):
        part = slice(begin, begin + window)
        nothing = torch.zeros(1, window, *reference.shape)
        with torch.no_grad():
            told = denoiser(nothing, scheduler.timesteps, speech[None, part], reference[None], lips=lips[None, part])[0]
        blend = torch.tensor([min(place + 1, window - place) for place in range(window)])[:, None, None, None]
        sums[part] += blend * told
        weights[part] += blend
    made = sample_clip(denoiser, make_scheduler("sample"), reference, speech, steps=1, told=Told(lips=lips))
    torch.testing.assert_close(made, denoiser.from_residual((sums / weights)[None], reference[None])[0])
    heard = sample_clip(denoiser, make_scheduler("sample"), reference, speech, steps=1)
    assert (made - heard).abs().max() > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_every_window_is_told_the_lips_of_the_reference(make_denoiser, guidance: float) -> None:
    """Of a clip that is one window, in one step, by the definition; with guidance also where nothing is heard."""
    denoiser = make_denoiser(reference_lips=True).eval()
    reference, speech = clip(denoiser, denoiser.config.window)
    lips = torch.tensor([0.5, torch.nan, -1.0, 2.0, torch.nan, 0.0])
    scheduler = make_scheduler("sample")
    scheduler.set_timesteps(1)
    given = torch.zeros(1, len(speech), *reference.shape), scheduler.timesteps, speech[None], reference[None]
    with torch.no_grad():
        told = denoiser(*given, reference_lips=lips[None])
        deaf = denoiser(*given, torch.tensor([False]), reference_lips=lips[None])
    expected = denoiser.from_residual(deaf + guidance * (told - deaf), reference[None])[0]
    made = sample_clip(
        denoiser, make_scheduler("sample"), reference, speech, 1, guidance, told=Told(reference_lips=lips)
    )
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    untold = sample_clip(denoiser, make_scheduler("sample"), reference, speech, 1, guidance)
    assert (made - untold).abs().max() > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_every_frame_is_made_from_the_reference_with_its_lips(make_denoiser, face_points, guidance: float) -> None:
    """Of a clip of three windows, in one step, by the definition; where nothing is heard nothing is bent."""
    denoiser = make_denoiser(reference_lips=True, bends=(4, 2, 1), region="lower face").eval()
    torch.nn.init.normal_(denoiser.lip_axes, std=0.1, generator=seeded(1))
    denoiser.lip_std.fill_(0.05)
    denoiser.certainty.fill_(0.4)
    window = denoiser.config.window
    reference, speech = clip(denoiser, 2 * window)
    motion = np.random.default_rng(2).normal(0, 0.03, LIP_MOTION).astype(np.float32)
    told = told_of(denoiser, reference, face_points, speech, motion)
    own, shapes = denoiser.lip_shape(torch.from_numpy(motion)), denoiser.heard_shapes(speech)
    flows = denoiser.flows(face_points, shapes - own)
    bent = denoiser.latent_bend(reference[None], Bends(flows[None]))
    scheduler = make_scheduler("sample")
    scheduler.set_timesteps(1)
    sums, weights = torch.zeros(2 * window, *reference.shape), torch.zeros(2 * window, 1, 1, 1)
    blend = torch.tensor([min(place + 1, window - place) for place in range(window)])[:, None, None, None]
    for begin in (0, window // 2, window):
        part = slice(begin, begin + window)
        given = torch.zeros(1, window, *reference.shape), scheduler.timesteps, speech[None, part], reference[None]
        with torch.no_grad():
            hears = denoiser(*given, reference_lips=own[None], bent=bent[:, part])[0]
            deaf = denoiser(*given, torch.tensor([False]), reference_lips=own[None])[0]
        sums[part] += blend * (deaf + guidance * (hears - deaf))
        weights[part] += blend
    motion = denoiser.to_residual(bent, reference[None])[0]
    shown = motion + 0.4 * (sums / weights - motion)  # what the network adds to the bent face is shown in part
    made = sample_clip(denoiser, make_scheduler("sample"), reference, speech, 1, guidance, told=told)
    torch.testing.assert_close(made, denoiser.from_residual(shown[None], reference[None])[0], atol=1e-4, rtol=1e-4)
    assert (made - sample_clip(denoiser, make_scheduler("sample"), reference, speech, 1, guidance)).abs().max() > 1e-2
