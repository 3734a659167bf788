"""The work that every contestant does: one multilayer perceptron, ten steps of SGD per client and round, FedAvg.

Only torch and numpy, so that each peer's environment can import it. The model travels as one flat float32 vector of
101,770 values (784-128-10, in the order of torch's own `parameters()`). The data of a client in a round come from a
seed and nothing else, so that contestants agree whatever process trains whichever client, and in any order. Pixels
are random bytes, made afresh: about an eighth of an update's CPU time, and the same in every contestant.
The activation is tanh: contestants differ in the order of their sums, by 1e-8, and at the kink of a ReLU that is enough
to move a hidden unit by 2e-5 of the largest parameter (seen with 32 clients), which would hide real differences.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per process: set before torch starts its pool

from collections.abc import Iterable

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

torch.set_num_threads(1)

INPUTS, HIDDEN, CLASSES = 784, 128, 10
PARAMETERS = INPUTS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
STEPS, BATCH = 10, 32
EXAMPLES = STEPS * BATCH
LEARNING_RATE = 0.05
SEED = 20240521


def network() -> torch.nn.Sequential:
    """The perceptron. Its weights are torch's own random ones until `initial_vector` or another replaces them."""
    return torch.nn.Sequential(torch.nn.Linear(INPUTS, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, CLASSES))


def initial_vector() -> np.ndarray:
    """Where every contestant starts: uniform weights within one over the root of the inputs, as torch draws them."""
    rng = np.random.default_rng(SEED)
    parts = [(INPUTS, HIDDEN * INPUTS), (INPUTS, HIDDEN), (HIDDEN, CLASSES * HIDDEN), (HIDDEN, CLASSES)]
    return np.concatenate([rng.uniform(-1, 1, size) / np.sqrt(inputs) for inputs, size in parts]).astype(np.float32)


def client_data(client: int, round_number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """320 examples: images of shape (320, 784) in [-1, 1], labels in 0..9. Rounds count from 0."""
    rng = np.random.default_rng((SEED, client, round_number))
    raw = np.frombuffer(rng.bytes(EXAMPLES * (INPUTS + 1)), np.uint8)
    pixels, labels = raw[: EXAMPLES * INPUTS], raw[EXAMPLES * INPUTS :]
    images = torch.from_numpy(pixels.astype(np.float32)).sub_(127.5).div_(127.5).view(EXAMPLES, INPUTS)
    return images, torch.from_numpy((labels % CLASSES).astype(np.int64))


_resident = network()  # one model per process: clients rebind its weights


def local_update(vector: np.ndarray, client: int, round_number: int) -> np.ndarray:
    """What training by this client adds to the flat model. `vector` is left as it was, and may be read-only."""
    flat = torch.from_numpy(np.array(vector, np.float32))
    vector_to_parameters(flat, _resident.parameters())  # views: training changes `flat`
    optimizer = torch.optim.SGD(_resident.parameters(), lr=LEARNING_RATE)
    images, labels = client_data(client, round_number)
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(_resident(x), y).backward()
        optimizer.step()
    return flat.numpy() - vector


def one_round(vector: np.ndarray, cohort: Iterable[int], round_number: int) -> np.ndarray:
    """The next model: the mean of the clients' updates, weighted equally and summed in the order given, is added."""
    updates = [local_update(vector, client, round_number) for client in cohort]
    return vector + sum(updates[1:], start=updates[0].copy()) / np.float32(len(updates))


def flat(model: torch.nn.Module) -> np.ndarray:
    return parameters_to_vector(model.parameters()).detach().numpy().copy()
