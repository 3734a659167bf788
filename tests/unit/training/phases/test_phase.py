"""What all phases have in common: an end when somebody wants one, and what clients must agree about."""

import numpy as np
import pytest
import torch

from fedtalk_ray.training.phases.phase import Halted, state_digest, until_halted


def test_items_come_until_somebody_wants_an_end(make_task) -> None:
    """The third answer is yes, and it is asked for before the first item and after each."""
    answers, seen = iter([False, False, True]), []
    with pytest.raises(Halted):
        for item in until_halted(make_task([], np.zeros(0), halted=lambda: next(answers)), "abcd"):
            seen.append(item)
    assert seen == ["a", "b"]


def test_nothing_is_begun_where_an_end_is_wanted_already(make_task) -> None:
    def never():
        pytest.fail("an item was made")
        yield

    with pytest.raises(Halted):
        next(until_halted(make_task([], np.zeros(0), halted=lambda: True), never()))


def test_a_digest_is_of_names_shapes_types_and_values_and_not_of_what_moves() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    same = state_digest({"b": torch.ones(1), "a": torch.zeros(2, 3)})
    assert state_digest(state) == same and len(same) == 32
    changed = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3).double(), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(1) + 1e-6},
    ]
    assert len({same, *map(state_digest, changed)}) == 5
    assert state_digest(changed[3], ["b"]) == state_digest(state, ["b"]) != same
