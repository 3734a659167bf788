"""The benchmark of rounds beside other frameworks trains what plain numpy trains, and counts all CPU time."""

import subprocess
import sys

import numpy as np
import torch

from jobs.benchmarks.rounds import measure, work


def by_hand(vector: np.ndarray, client: int, round_number: int) -> np.ndarray:
    """Softmax regression through one tanh layer by the chain rule, in float64."""
    sizes = [work.HIDDEN * work.INPUTS, work.HIDDEN, work.CLASSES * work.HIDDEN]
    parts = np.split(vector.astype(np.float64), np.cumsum(sizes))
    w1, b1 = parts[0].reshape(work.HIDDEN, work.INPUTS), parts[1]
    w2, b2 = parts[2].reshape(work.CLASSES, work.HIDDEN), parts[3]
    images, labels = (tensor.numpy() for tensor in work.client_data(client, round_number))
    for start in range(0, len(images), work.BATCH):
        rows = slice(start, start + work.BATCH)
        x, y = images[rows].astype(np.float64), np.eye(work.CLASSES)[labels[rows]]
        active = np.tanh(x @ w1.T + b1)
        scores = np.exp(active @ w2.T + b2)
        of_scores = (scores / scores.sum(1, keepdims=True) - y) / work.BATCH
        of_hidden = (of_scores @ w2) * (1 - active**2)
        w1, b1 = w1 - work.LEARNING_RATE * of_hidden.T @ x, b1 - work.LEARNING_RATE * of_hidden.sum(0)
        w2, b2 = w2 - work.LEARNING_RATE * of_scores.T @ active, b2 - work.LEARNING_RATE * of_scores.sum(0)
    return np.concatenate([part.ravel() for part in (w1, b1, w2, b2)]) - vector


def test_an_update_is_sgd_by_hand_and_leaves_the_model_as_it_was() -> None:
    vector = work.initial_vector()
    assert vector.shape == (work.PARAMETERS,) == (101_770,)
    before = vector.copy()
    vector.setflags(write=False)
    expected = by_hand(vector, 3, 2)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(work.local_update(vector, 3, 2), expected, rtol=0, atol=1e-6)
    assert np.array_equal(vector, before)


def test_data_depend_on_client_and_round_alone() -> None:
    pairs = [(client, round_number) for client in range(3) for round_number in range(2)]
    data = {pair: work.client_data(*pair) for pair in pairs}
    torch.manual_seed(1)
    for pair in reversed(pairs):
        images, labels = work.client_data(*pair)
        assert torch.equal(images, data[pair][0]) and torch.equal(labels, data[pair][1])
    assert len({images.numpy().tobytes() for images, _ in data.values()}) == len(pairs)


def test_a_round_is_the_mean_of_its_updates() -> None:
    vector = work.initial_vector()
    updates = [work.local_update(vector, client, 0).astype(np.float64) for client in (4, 7)]
    np.testing.assert_allclose(work.one_round(vector, [4, 7], 0), vector + sum(updates) / 2, rtol=0, atol=1e-7)


def test_a_lap_counts_the_cpu_time_of_children() -> None:
    meter = measure.Meter()
    busy = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline()
        meter.lap()
        meter.lap()
        child.communicate(b"\n")
    assert meter.cpu[0] >= 0.2 > meter.cpu[1] >= 0
    assert meter.memories[1] > 1 and meter.first_round > meter.wall[0] > meter.wall[1]
