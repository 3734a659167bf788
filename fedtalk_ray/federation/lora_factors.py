"""Which of LoRA's two factors clients train in a round, and what the server makes of the factors after it.

ab         both, whose averages apart are not the average of the product BA, and whose noises multiply.
ffa        B alone, on an A frozen from the run's seed (Sun et al. 2024); only B is in the vector.
alternate  B in one round and A in the next (LA-LoRA, arXiv 2602.19926): each sum is exact, and both are learned. A
           server with momentum goes on moving the one that rests.
svd        B alone; after every round the server makes A anew from the right singular vectors of BA, and B what is left
           of it (FedSVD, arXiv 2505.12805): the product stays, and B's noise is spread evenly.

With `alternate` and `svd` both factors are in the vector: what was not trained is sent and masked as zeros, and the
noise that fell on it is dropped. Whatever is done to a sum after it was opened costs no privacy.
"""

from collections.abc import Iterator

import numpy as np

Pair = tuple[int, int, int]
"""(outputs, rank, inputs) of a pair: A is [rank, inputs] in the vector, and then comes B, [outputs, rank]."""


def trains(factor: str, factors: str, index: int) -> bool:
    """Whether clients train a factor, "A" or "B", in a round of the phase `faces`, by its number there from 0."""
    if factors == "alternate":
        return factor == ("A" if index % 2 else "B")
    return factors == "ab" or factor == "B"


def without_untrained(update: np.ndarray, pairs: tuple[Pair, ...], factors: str, index: int) -> np.ndarray:
    """An opened sum, float32 [D], with zeros for the factors that nobody trained in that round: noise fell on them."""
    kept = update.copy()
    for a, b in places(len(update), pairs):
        if not trains("A", factors, index):
            kept[a] = 0
        if not trains("B", factors, index):
            kept[b] = 0
    return kept


def settled(parameters: np.ndarray, pairs: tuple[Pair, ...], factors: str) -> np.ndarray:
    """What a round ends with, float32 [D], of the parameters after the server's step."""
    if factors != "svd":
        return parameters
    new = np.empty_like(parameters)
    for (a, b), (outputs, rank, inputs) in zip(places(len(parameters), pairs), pairs, strict=True):
        made = orthogonal(parameters[a].reshape(rank, inputs), parameters[b].reshape(outputs, rank))
        new[a], new[b] = (factor.ravel() for factor in made)
    return new


def places(length: int, pairs: tuple[Pair, ...]) -> Iterator[tuple[slice, slice]]:
    """Where in a vector of that length A and B of each pair lie. Raises `ValueError` where they do not fill it."""
    expected = sum(rank * (outputs + inputs) for outputs, rank, inputs in pairs)
    if length != expected:
        raise ValueError(f"LoRA pairs of {expected} values do not fit a vector of {length}")
    begin = 0
    for outputs, rank, inputs in pairs:
        middle = begin + rank * inputs
        yield slice(begin, middle), slice(middle, middle + outputs * rank)
        begin = middle + outputs * rank


def orthogonal(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the same product whose A has orthonormal rows: A [rank, inputs], B [outputs, rank].

    A's rows are right singular vectors of the product, largest first; where that is zero, they span what A's rows did.
    Of a rank above the number of inputs the rest of A's rows and B's columns are zeros.
    """
    basis, corner = np.linalg.qr(a.astype(np.float64).T)
    outputs, count = len(b), basis.shape[1]
    inner = np.zeros((max(outputs, count), count))  # rows of zeros, where a layer has fewer outputs than ranks
    inner[:outputs] = b.astype(np.float64) @ corner.T
    left, sizes, right = np.linalg.svd(inner, full_matrices=False)
    new_a, new_b = np.zeros_like(a), np.zeros_like(b)
    new_a[:count], new_b[:, :count] = right @ basis.T, left[:outputs] * sizes
    return new_a, new_b
