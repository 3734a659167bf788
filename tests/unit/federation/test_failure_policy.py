"""The decisions about lost and late clients, one by one."""

import pytest

from fedtalk_ray.federation.failure_policy import FailurePolicy, QuorumLost
from fedtalk_ray.slot_settings import FailureConfig


def test_a_lost_chunk_is_tried_again_so_many_times() -> None:
    policy = FailurePolicy(FailureConfig(retries=2))
    assert [policy.tries_again(attempts) for attempts in (1, 2, 3)] == [True, True, False]
    assert not FailurePolicy(FailureConfig(retries=0)).tries_again(1)


@pytest.mark.parametrize(("quorum", "asked", "fewest"), [(0.5, 8, 4), (0.5, 7, 4), (0, 8, 1), (1, 8, 8), (0.34, 3, 2)])
def test_a_quorum_is_a_share_of_who_was_asked(quorum: float, asked: int, fewest: int) -> None:
    policy = FailurePolicy(FailureConfig(quorum=quorum))
    assert policy.fewest(asked) == fewest
    policy.check_quorum(3, fewest, asked, {})
    if fewest > 1:
        with pytest.raises(QuorumLost, match=f"round 3: {fewest - 1} of {asked} clients answered .2 late, 4 slot died"):
            policy.check_quorum(3, fewest - 1, asked, {"slot died": 4, "late": 2})
