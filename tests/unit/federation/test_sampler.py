"""Cohort samplers: whom each prefers, what it looks at, and traces of when clients are on."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fedtalk_ray.client_settings import PopulationConfig
from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.cohorts import (
    Sampler,
    Trace,
    check_cohorts,
    read_trace,
    too_small,
    weighted_cohort,
)
from fedtalk_ray.federation.secure_aggregator import make_codec
from fedtalk_ray.rounds import Federation
from fedtalk_ray.shards.format import ClipEntry, Manifest
from fedtalk_ray.shards.population import Population


def people(**frames: int) -> Population:
    """Clients with so many training frames each."""
    clips = {name: [ClipEntry("c", "train", count, 1), ClipEntry("v", "val", 75, 1)] for name, count in frames.items()}
    return Population(Manifest("grid", 64, 25, 16_000, "patch", "f", {}, clips), PopulationConfig())


EIGHT = people(**{f"s{k}": 100 * (k + 1) for k in range(8)})


def sampler(population: Population = EIGHT, aggregation: str = "plain", gamma: float = 8.0, **cohort: Any) -> Sampler:
    tree = {"run": "r", "shards": "s", "pretrained": "p", "aggregation": aggregation, "strategy": {"gamma": gamma}}
    return Sampler(parse_config(tree | {"cohort": {"size": 3} | cohort}, "test"), population)


@pytest.mark.parametrize("way", ["uniform", "size", "balanced", "reliable"])
def test_a_round_and_a_seed_decide_the_cohort(way: str) -> None:
    first = [sampler(sampling=way).cohort(number, []) for number in range(1, 20)]
    assert first == [sampler(sampling=way).cohort(number, []) for number in range(1, 20)]
    assert len({tuple(cohort) for cohort in first}) > 5
    assert all(cohort == sorted(set(cohort)) and len(cohort) == 3 for cohort in first)


def test_size_draws_in_proportion_to_training_frames() -> None:
    drawn = Counter(sampler(sampling="size", size=1).cohort(number)[0] for number in range(1, 6001))
    for k in range(8):
        assert drawn[f"s{k}"] / 6000 == pytest.approx((k + 1) / 36, abs=0.015)


def test_balanced_asks_everybody_before_anybody_twice() -> None:
    chosen, history = sampler(sampling="balanced", size=2), []
    for number in range(1, 13):
        history.append({"round": number, "cohort": chosen.cohort(number, history)})
    for begin in range(0, 12, 4):
        asked = [client for record in history[begin : begin + 4] for client in record["cohort"]]
        assert sorted(asked) == list(EIGHT)


def test_reliable_prefers_who_scored_well_and_tries_who_is_unknown() -> None:
    scores = {"s0": 0.1, "s1": 0.2, "s2": 0.9, "s3": 0.95}
    history = [{"round": 1, "clients": [{"client": name, "score": score} for name, score in scores.items()]}]
    chosen = sampler(sampling="reliable", size=1, gamma=2.0)
    drawn = Counter(chosen.cohort(number, history)[0] for number in range(1, 6001))
    weights = np.exp(2.0 * np.array([0.1, 0.2, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95]))
    for name, chance in zip(EIGHT, weights / weights.sum(), strict=True):
        assert drawn[name] / 6000 == pytest.approx(chance, abs=0.02)


@pytest.mark.parametrize("way", ["size", "reliable"])
def test_what_secure_aggregation_hides_is_no_sampler_s_to_see(way: str) -> None:
    with pytest.raises(
        ConfigError, match=f"cohort.sampling {way} looks at clients' .* which aggregation: secure hides"
    ):
        sampler(aggregation="secure", sampling=way, size=8)
    sampler(aggregation="secure", sampling="balanced", size=8)


def test_more_are_asked_than_are_needed() -> None:
    assert len(sampler(over_select=0.5, size=4).cohort(1)) == 6
    assert len(sampler(over_select=1.0, size=7).cohort(1)) == 8, "nobody is asked twice"


def test_rounds_of_statistics_may_ask_more_and_their_sums_have_room_for_them() -> None:
    """Nine rounds: units, four of faces, three of calibration, one of sharpness."""
    phases = ["units", "faces", "calibration", "sharpness"]
    tree = {"run": "r", "shards": "s", "pretrained": "p", "aggregation": "plain", "phases": phases, "rounds": 4}
    tree |= {"sharpness": {"rounds": 1}}
    usual, more = (parse_config(tree | {"cohort": {"size": 3} | each}, "t") for each in ({}, {"statistics": 6}))
    drawn = [Sampler(more, EIGHT).cohort(number) for number in range(1, 10)]
    assert [len(cohort) for cohort in drawn] == [6, 3, 3, 3, 3, 6, 6, 6, 3]
    assert drawn[1:5] == [Sampler(usual, EIGHT).cohort(number) for number in range(2, 6)]
    # Steps of a sum over so many: 2^31 over the next power of two above them.
    assert [make_codec(more, 100, phase).scale for phase in phases] == [2.0**28, 2.0**29, 2.0**28, 2.0**29]


def test_the_pool_is_asked_to_wait_for_as_many_as_the_round_wants(tmp_path: Path) -> None:
    """Sites that only rounds of statistics want are not waited for in others."""
    tree = {"run": str(tmp_path), "shards": "s", "pretrained": "p", "aggregation": "plain", "rounds": 2}
    config = parse_config(
        tree | {"phases": ["units", "faces", "calibration"], "cohort": {"size": 3, "statistics": 6}}, "t"
    )
    asked: list[int] = []

    class Pool:
        def away(self, cohort: int) -> list[str]:
            asked.append(cohort)
            return ["s0"]

    pool: Any = Pool()
    federation, drawn = Federation(config, pool, None), Sampler(config, EIGHT)
    cohorts = [federation.draw(drawn, number) for number in range(1, 7)]
    assert asked == [len(cohort) for cohort in cohorts] == [6, 3, 3, 6, 6, 6]
    assert not any("s0" in cohort for cohort in cohorts)


def trace(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["client,on,off", *lines]) + "\n")
    return str(path)


def test_only_clients_that_are_on_are_asked(tmp_path: Path) -> None:
    path = trace(tmp_path, "s0,0,60", "s1,0,120", "s2,60,180", "s1,150,400", "s3,1000,2000")
    chosen = sampler(trace=path, trace_round_s=60, size=3)
    cohorts = [chosen.cohort(number) for number in (1, 2, 3, 4, 18)]
    assert cohorts == [["s0", "s1"], ["s1", "s2"], ["s2"], ["s1"], ["s3"]]
    assert chosen.cohort(9) == []


@settings(max_examples=100, deadline=None)
@given(
    spans=st.dictionaries(
        st.sampled_from("abc"), st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=4), max_size=3
    ),
    second=st.integers(0, 30),
)
def test_a_trace_says_who_is_on(spans: dict[str, list[tuple[int, int]]], second: int) -> None:
    times = {name: [(float(on), float(on + length)) for on, length in parts] for name, parts in spans.items()}
    naive = sorted(name for name, parts in times.items() if any(on <= second < off for on, off in parts))
    assert Trace(times).present(second) == naive


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["s0,0"], "line 2: on and off must be seconds"),
        (["s0,0,60", "s0,x,60"], "line 3: on and off must be seconds"),
        (["s0,60,60"], "line 2: on 60 must be before off 60"),
        (["s0,-5,60"], "line 2: on -5"),
        (["zoe,0,60"], "line 2: client 'zoe' is not in the population"),
        ([], "names no client"),
    ],
)
def test_a_wrong_trace_is_named_with_its_line(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_trace(trace(tmp_path, *lines), EIGHT)
    assert "\n" not in str(caught.value)


def test_a_trace_that_is_no_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(str(tmp_path / "none.csv"), EIGHT)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="must begin with the line client,on,off"):
        read_trace(str(tmp_path / "other.csv"), EIGHT)


def test_noise_allows_no_sampler_that_its_account_does_not_know(config: Callable[..., Any]) -> None:
    for cohort, failures in (({"over_select": 0.5}, {}), ({"trace": "t.csv"}, {}), ({}, {"deadline_s": 5})):
        with pytest.raises(ConfigError, match="more often than the account of epsilon knows"):
            config(cohort=cohort, failures=failures)


@pytest.fixture
def config() -> Callable[..., Any]:
    def make(cohort: dict, failures: dict) -> Any:
        tree = {"run": "r", "shards": "s", "pretrained": "p", "failures": failures, "cohort": {"size": 16} | cohort}
        return parse_config(tree | {"privacy": {"mechanism": "skellam", "epsilon": 8, "clip_norm": 1}}, "test")

    return make


def test_weights_decide_without_replacement() -> None:
    """Two of three with weights 1, 2, 3: a pair's chance is the sum over both orders of drawing one after the other."""
    drawn: Counter[tuple[str, ...]] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        drawn[tuple(sorted(weighted_cohort(["a", "b", "c"], 2, np.log([1.0, 2.0, 3.0]), rng)))] += 1
    expected = {
        "ab": 1 / 6 * 2 / 5 + 2 / 6 * 1 / 4,
        "ac": 1 / 6 * 3 / 5 + 3 / 6 * 1 / 3,
        "bc": 2 / 6 * 3 / 4 + 3 / 6 * 2 / 3,
    }
    for pair, chance in expected.items():
        assert drawn[tuple(pair)] / 20_000 == pytest.approx(chance, abs=0.012)


def test_asking_more_clients_than_can_be_done_without_is_refused() -> None:
    """The floor follows from who was asked: of 18 twelve are no two thirds and one, of 17 they are. Of more than a
    hundred, each with few holders, four fifths are needed: of 125 a hundred, of 120 ninety-six."""

    def check(over: float, clients: int = 64, size: int = 12) -> None:
        tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": size, "over_select": over}}
        check_cohorts(parse_config(tree, "test"), clients)

    with pytest.raises(ConfigError, match=r"asks 18 clients and waits for 12, .* fewer than 13 .* take 0.41 or less"):
        check(0.5)
    check(0.41)
    check(0.5, clients=17)
    with pytest.raises(ConfigError, match=r"asks 125 clients and waits for 96, .* fewer than 100 .* take 0.25 or less"):
        check(0.3, clients=500, size=96)
    check(0.25, clients=500, size=96)


def test_fewer_clients_than_a_sum_is_opened_of_are_refused_before_the_first_round() -> None:
    """Each round would be given up, and with them the run."""
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": 8}}
    few = r"fewer than 8 clients, and the shards s hold 7; .*population.pieces_per_client, or set aggregation: plain"
    with pytest.raises(ConfigError, match=few):
        check_cohorts(parse_config(tree, "test"), 7)
    check_cohorts(parse_config(tree, "test"), 8)
    check_cohorts(parse_config(tree | {"aggregation": "plain"}, "test"), 7)
    check_cohorts(parse_config(tree | {"privacy": {"insecure_min_survivors": 3}}, "test"), 3)


def test_a_cap_that_leaves_nobody_to_draw_is_refused() -> None:
    """The last rounds found nobody: 64 clients take part 128 times, in four rounds of 32."""

    def check(rounds: int, cap: int, clients: int = 64, **more: Any) -> None:
        tree = {"run": "r", "shards": "s", "pretrained": "p", "phases": ["faces"], "cohort": {"size": 32}}
        capped = {"privacy": {"participation_cap": cap}, "rounds": rounds, "aggregation": "plain"}
        check_cohorts(parse_config(tree | capped | more, "test"), clients)

    told = (
        r"cap 2: 64 clients may take part 128 times .* 5 rounds of 32 want 160; set it to 3 or more, or have 4 rounds"
    )
    with pytest.raises(ConfigError, match=told):
        check(5, 2)
    check(4, 2)
    check(5, 3)
    with pytest.raises(ConfigError, match="and 5 rounds of 20 want 100"):
        check(5, 4, clients=20)
    check(5, 5, clients=20)
    # Rounds of statistics count too.
    with pytest.raises(ConfigError, match="and 6 rounds of 32"):
        check(5, 2, phases=["units", "faces"])


def test_a_poisson_cohort_that_would_often_be_too_small_is_refused() -> None:
    """B11: of 64 clients at the floor of 8, 44% of the rounds are given up. The share is scipy's own binomial."""

    def check(size: int, clients: int = 64) -> None:
        tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": size}}
        noise = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
        check_cohorts(parse_config(tree | {"privacy": noise}, "test"), clients)

    with pytest.raises(ConfigError, match=r"64 clients, 44% of rounds .* fewer than 8 .* cohort.size to 12 or more"):
        check(8)
    check(12)
    with pytest.raises(ConfigError, match=r"of 6 clients, 100% of rounds .* it takes 8 clients or more"):
        check(16, clients=6)
    for size in (8, 11, 12, 20):
        assert too_small(64, size, 8) == pytest.approx(binom.cdf(7, 64, size / 64))
    assert too_small(8, 8, 8) == 0.0 and too_small(4, 4, 8) == 1.0


def test_suspects_make_poisson_cohorts_smaller_by_an_eighth_at_most() -> None:
    """Drawn from all, they shrink with each who sits out: 48 suspects of 64 left cohorts of 4, too few for a sum."""
    crowd = people(**{f"s{k}": 100 for k in range(64)})
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": 16}}
    noise = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}
    assert Sampler(parse_config(tree | {"privacy": noise}, "test"), crowd).spare == 8
    assert Sampler(parse_config(tree, "test"), crowd).spare == 48
