"""Cohort samplers: whom each prefers, what it looks at, and traces of when clients are on."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from fedtalk_ray.client_settings import PopulationConfig
from fedtalk_ray.config import parse_config
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.federation.cohorts import Sampler, check_cohorts, read_trace, too_small, weighted_cohort
from fedtalk_ray.federation.secure_aggregator import make_codec
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
    drawn = Counter(chosen.cohort(number, history)[0] for number in range(1, 1501))
    weights = np.exp(2.0 * np.array([0.1, 0.2, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95]))
    for name, chance in zip(EIGHT, weights / weights.sum(), strict=True):
        assert drawn[name] / 1500 == pytest.approx(chance, abs=0.04)


@pytest.mark.parametrize("way", ["size", "reliable"])
def test_what_secure_aggregation_hides_is_no_sampler_s_to_see(way: str) -> None:
    with pytest.raises(
        ConfigError, match=f"cohort.sampling {way} looks at clients' .* which aggregation: secure hides"
    ):
        sampler(aggregation="secure", sampling=way, size=8)
    sampler(aggregation="secure", sampling="balanced", size=8)


def test_rounds_of_statistics_may_ask_more_and_their_sums_have_room_for_them() -> None:
    """Nine rounds: units, four of faces, three of calibration, one of sharpness."""
    phases = ["units", "faces", "calibration", "sharpness"]
    tree = {"run": "r", "shards": "s", "pretrained": "p", "aggregation": "plain", "phases": phases, "rounds": 4}
    tree |= {"sharpness": {"rounds": 1}}
    usual, more = (parse_config(tree | {"cohort": {"size": 3} | each}, "t") for each in ({}, {"statistics": 6}))
    drawn = [Sampler(more, EIGHT).cohort(number) for number in range(1, 10)]
    assert [len(cohort) for cohort in drawn] == [6, 3, 3, 3, 3, 6, 6, 6, 3]
    assert drawn[1:5] == [Sampler(usual, EIGHT).cohort(number) for number in range(2, 6)]
    assert [make_codec(more, 100, phase).scale for phase in phases] == [2.0**28, 2.0**29, 2.0**28, 2.0**29]


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
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(str(tmp_path / "none.csv"), EIGHT)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="must begin with the line client,on,off"):
        read_trace(str(tmp_path / "other.csv"), EIGHT)


def test_weights_decide_without_replacement() -> None:
    """Two of three with weights 1, 2, 3: a pair's chance is the sum over both orders of drawing one after the other."""
    drawn: Counter[tuple[str, ...]] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(4_000):
        drawn[tuple(sorted(weighted_cohort(["a", "b", "c"], 2, np.log([1.0, 2.0, 3.0]), rng)))] += 1
    expected = {
        "ab": 1 / 6 * 2 / 5 + 2 / 6 * 1 / 4,
        "ac": 1 / 6 * 3 / 5 + 3 / 6 * 1 / 3,
        "bc": 2 / 6 * 3 / 4 + 3 / 6 * 2 / 3,
    }
    for pair, chance in expected.items():
        assert drawn[tuple(pair)] / 4_000 == pytest.approx(chance, abs=0.03)


CAPPED = {"phases": ["faces"], "cohort": {"size": 32}, "aggregation": "plain"}
NOISE = {"mechanism": "skellam", "noise_multiplier": 1.0, "clip_norm": 1.0}


def asked(size: int, over: float) -> dict[str, Any]:
    return {"cohort": {"size": size, "over_select": over}}


def capped(rounds: int, cap: int, **more: Any) -> dict[str, Any]:
    return CAPPED | {"rounds": rounds, "privacy": {"participation_cap": cap}} | more


def noisy(size: int) -> dict[str, Any]:
    return {"cohort": {"size": size}, "privacy": NOISE}


@pytest.mark.parametrize(
    ("chosen", "clients", "says"),
    [
        # Of 18 twelve are no two thirds and one, of 17 they are; of more than a hundred four fifths are needed.
        (asked(12, 0.5), 64, r"asks 18 clients and waits for 12, .* fewer than 13 .* take 0.41 or less"),
        (asked(12, 0.41), 64, None),
        (asked(96, 0.3), 500, r"asks 125 clients and waits for 96, .* fewer than 100 .* take 0.25 or less"),
        ({"cohort": {"size": 8}}, 7, r"fewer than 8 clients, and the shards s hold 7; .*or set aggregation: plain"),
        ({"cohort": {"size": 8}}, 8, None),
        ({"cohort": {"size": 8}, "aggregation": "plain"}, 7, None),
        # 64 clients take part 128 times, in four rounds of 32.
        (capped(5, 2), 64, r"cap 2: 64 clients may take part 128 times .* want 160; set it to 3 .*, or have 4 rounds"),
        (capped(4, 2), 64, None),
        (capped(5, 3), 64, None),
        (noisy(8), 64, r"64 clients, 44% of rounds .* fewer than 8 .* cohort.size to 12 or more"),
        (noisy(12), 64, None),
        (noisy(16), 6, r"of 6 clients, 100% of rounds .* it takes 8 clients or more"),
    ],
)
def test_cohorts_that_could_not_be_are_refused_before_the_first_round(
    chosen: dict[str, Any], clients: int, says: str | None
) -> None:
    config = parse_config({"run": "r", "shards": "s", "pretrained": "p"} | chosen, "test")
    if says is None:
        check_cohorts(config, clients)
    else:
        with pytest.raises(ConfigError, match=says):
            check_cohorts(config, clients)


def test_how_often_a_poisson_cohort_is_too_small_is_scipys_own_binomial() -> None:
    for size in (8, 12):
        assert too_small(64, size, 8) == pytest.approx(binom.cdf(7, 64, size / 64))
    assert too_small(8, 8, 8) == 0.0 and too_small(4, 4, 8) == 1.0


def test_suspects_make_poisson_cohorts_smaller_by_an_eighth_at_most() -> None:
    crowd = people(**{f"s{k}": 100 for k in range(64)})
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": 16}}
    assert Sampler(parse_config(tree | {"privacy": NOISE}, "test"), crowd).spare == 8
    assert Sampler(parse_config(tree, "test"), crowd).spare == 48
