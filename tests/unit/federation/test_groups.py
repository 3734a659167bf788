"""A cohort in groups, each with a secure sum of its own, and the median of their averages."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.aggregation import median
from fedtalk_ray.federation.cohorts import check_cohorts, dealt
from fedtalk_ray.federation.roster import RosterFile, extend_roster
from fedtalk_ray.federation.secure_aggregator import limits_of, make_codec
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.privacy.keys import Roster, SigningKey
from fedtalk_ray.privacy.noise import system_rng
from fedtalk_ray.privacy.protocol import STAGES, Code
from fedtalk_ray.privacy.secure_client import SecureClient, open_plan
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig

NAMES = [f"c{number:02}" for number in range(9)]
VALUES = 4


def config(groups: int = 3, size: int = 9, floor: int | None = 3, **settings: Any) -> TrainConfig:
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": size}, "strategy": {"groups": groups}}
    return parse_config(tree | {"privacy": {"insecure_min_survivors": floor}} | settings, "test")


class Run:
    """Groups of three clients, each with an update of its own and weight one half."""

    def __init__(self, folder: Path, groups: int = 3) -> None:
        self.config, self.run = config(groups, 3 * groups), RunFolder(folder)
        self.names = [f"c{number:02}" for number in range(3 * groups)]
        save_checkpoint(
            self.run.checkpoints, Checkpoint(0, np.zeros(VALUES, np.float32), {}), config_fingerprint(self.config)
        )
        keys = {name: SigningKey.generate() for name in self.names}
        server = SigningKey.kept_in(self.run.server_key)
        self.keys, self.roster = keys, Roster({name: key.public for name, key in keys.items()}, server.public)
        extend_roster(self.run.roster, server.public, self.roster.clients)
        self.server = ParameterServer(str(folder), self.config)

    def group(self, members: list[str], updates: dict[str, float], silent: int = 0) -> str | None:
        """One group's exchange; why it was given up. silent: so many send no masked input."""
        plan = open_plan(self.server.begin(1, members, bytes(32)), self.roster, RosterFile(self.run.roster).read()[1])
        assert plan.cohort == tuple(members)
        codec, limits = make_codec(self.config, VALUES), limits_of(self.config.privacy)
        clients = {name: SecureClient(name, self.keys[name], self.roster, plan, limits) for name in members}
        frames = dict.fromkeys(members, b"")
        for stage in STAGES:
            answers = []
            for name in list(frames)[: len(frames) - (silent if stage == "mask" else 0)]:
                update = np.full(VALUES, updates[name], np.float32)
                vector = codec.encode(update, 0.5, plan.clip_norm, len(members), system_rng())
                more = {"advertise": (), "mask": (frames[name], vector)}.get(stage, (frames[name],))
                answers.append(getattr(clients[name], stage)(*more))
            collected = self.server.collect(stage, answers)
            frames = collected.frames
            if collected.aborted:
                return collected.aborted
        return None


@pytest.mark.parametrize(("groups", "lost", "opened"), [(4, 1, True), (3, 1, False), (4, 2, False)])
def test_groups_that_are_lost_are_left_out_while_three_and_most_are_there(
    tmp_path: Path, groups: int, lost: int, opened: bool
) -> None:
    """The averages are -30, 1, 2 and 3, of which the last are lost; the median of two would be their mean."""
    run = Run(tmp_path, groups)
    parts = [run.names[3 * place : 3 * place + 3] for place in range(groups)]
    averages = (-30.0, 1.0, 2.0, 3.0)
    updates = {name: averages[place] for place, members in enumerate(parts) for name in members}
    for place, members in enumerate(parts):
        run.server.set_aside(1, run.group(members, updates, silent=place >= groups - lost), place == 0)
    figures = run.server.finish(1, groups=groups)
    assert run.server.round() == 1
    if opened:
        assert figures["survivors"] == 9 and figures["groups"] == 3
        assert figures["update_norm"] == pytest.approx(VALUES**0.5, rel=1e-3)
        assert run.server.shared() == pytest.approx(np.ones(VALUES), abs=1e-3)
    else:
        assert figures["aborted"] == Code.TOO_FEW and not run.server.shared().any()


@settings(max_examples=25)
@given(count=st.integers(1, 40), groups=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_everybody_is_dealt_to_one_group(count: int, groups: int, seed: int) -> None:
    cohort = [f"c{number:02}" for number in range(count)]
    parts = dealt(cohort, groups, np.random.default_rng(seed))
    assert sorted(itertools.chain(*parts)) == cohort
    assert len(parts) == groups and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == sorted(part) for part in parts)


@settings(max_examples=25)
@given(
    right=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    wrong=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2),
)
def test_a_minority_of_groups_stays_within_the_others(right: list[float], wrong: list[float]) -> None:
    found = median([np.array([value], np.float32) for value in (*right, *wrong)])
    assert np.float32(min(right)) <= found[0] <= np.float32(max(right))


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"groups": 2, "size": 24, "floor": None}, r"strategy.groups 2: three or more.*of 8.*set 3 to 3"),
        ({"groups": 4, "size": 24, "floor": None}, r"strategy.groups 4: .*of a cohort of 24; set 3 to 3"),
        ({"aggregation": "plain", "floor": None}, r"under aggregation: secure without noise; set 1"),
        ({"cohort": {"size": 9, "over_select": 0.5}}, r"fixed size"),
        (
            {"privacy": {"mechanism": "skellam", "epsilon": 8, "clip_norm": 1.0, "insecure_min_survivors": 3}},
            r"without noise; set 1",
        ),
    ],
)
def test_groups_that_cannot_be_are_one_line(chosen: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_cohorts(config(**chosen), 100)
    check_cohorts(config(groups=3, size=24, floor=None), 100)
