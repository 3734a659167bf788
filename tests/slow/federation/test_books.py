"""What a run's ledger says was spent, against Google's accountant of privacy loss distributions and the noise that
clients really add: never less, and at most 0.02 more."""

from collections import Counter
from functools import cache, partial
from itertools import product
from pathlib import Path

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

from fedtalk_ray.config import parse_config
from fedtalk_ray.federation.cohorts import Sampler
from fedtalk_ray.federation.privacy_plan import plan_of, sampling_rate, with_noise
from fedtalk_ray.federation.secure_aggregator import SecureAggregator
from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig

DELTA = 1e-5
# clients, cohort, rounds of which so many found too few, noise multiplier, colluders, who adds the noise
CASES = [
    (64, 16, 48, 9, 1.31, 7, "skellam"),
    (9, 9, 12, 3, 2.08, 7, "skellam"),
    (1000, 128, 60, 1, 0.8, 7, "skellam"),
    (24, 8, 30, 12, 2.0, 1, "gaussian"),
]


def config(cohort: int, rounds: int, multiplier: float, colluders: int, mechanism: str) -> TrainConfig:
    privacy = {"mechanism": mechanism, "noise_multiplier": multiplier, "clip_norm": 1.0, "colluders": colluders}
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": cohort}, "rounds": rounds}
    # One honest client of eight makes so much noise that its steps must be a little coarser.
    return parse_config(tree | {"privacy": privacy | {"delta": DELTA, "scale_bits": 16}}, "test")


one_round = cache(partial(from_gaussian_mechanism, use_connect_dots=True))


def pld(multiplier: float, rate: float, count: int) -> float:
    """Sampled rounds with Gaussian noise."""
    return float(one_round(multiplier, sampling_prob=rate).self_compose(count).get_epsilon_for_delta(DELTA))


@pytest.mark.parametrize(("clients", "cohort", "rounds", "skipped", "multiplier", "colluders", "mechanism"), CASES)
def test_the_books_are_never_low(
    tmp_path: Path,
    clients: int,
    cohort: int,
    rounds: int,
    skipped: int,
    multiplier: float,
    colluders: int,
    mechanism: str,
) -> None:
    """Release view: who is not told how many survived. Server view: of the client that was drawn most often."""
    settings = config(cohort, rounds, multiplier, colluders, mechanism)
    rate = sampling_rate(settings, clients)
    assert rate == cohort / clients
    aggregator = SecureAggregator(RunFolder(tmp_path), settings, 1000, rate)
    sampler, names = Sampler(settings, [f"{number:06d}" for number in range(clients)]), Counter[str]()
    for number in range(1, rounds + 1):
        came = [] if number <= skipped else sampler.cohort(number, [], {})
        names.update(came)
        aggregator.charge_plain(number, came)
    spent = aggregator.ledger.spent(DELTA)
    release, server = pld(multiplier, rate, rounds), pld(multiplier, 1.0, max(names.values()))
    assert release - 1e-4 <= spent.release < release + 0.02
    assert server - 1e-4 <= spent.server < server + 0.02


@pytest.mark.parametrize(("clients", "cohort", "rounds", "cap"), [(64, 32, 6, 2), (12, 12, 5, 5)])
@pytest.mark.nightly
def test_a_capped_run_goes_as_far_as_its_plan_and_its_books_are_never_low(
    tmp_path: Path, clients: int, cohort: int, rounds: int, cap: int
) -> None:
    """Towards the end everybody may have reached the cap: such rounds find nobody."""
    privacy = {"mechanism": "skellam", "epsilon": 8, "clip_norm": 1.0, "participation_cap": cap}
    tree = {"run": "r", "shards": "s", "pretrained": "p", "cohort": {"size": cohort}, "rounds": rounds}
    settings = with_noise(parse_config(tree | {"phases": ["faces"], "privacy": privacy}, "test"), clients)
    plan, multiplier, rate = plan_of(settings, clients), settings.privacy.noise_multiplier, cohort / clients
    assert plan is not None and multiplier is not None
    aggregator = SecureAggregator(RunFolder(tmp_path), settings, 1000, rate)
    sampler, taken = Sampler(settings, [f"{number:03d}" for number in range(clients)]), Counter[str]()
    for number in range(1, rounds + 1):
        came = sampler.cohort(number, [], aggregator.ledger.participations())
        taken.update(came)
        aggregator.note_draw()
        aggregator.charge_plain(number, came)
        if number in (1, cap + 1, rounds):
            told = aggregator.figures()["epsilon"]
            least = min(pld(multiplier, rate, number), pld(multiplier, 1.0, min(number, cap)))
            assert least - 1e-4 <= told < least + 0.02 and told <= 8
    assert max(taken.values()) <= cap
    assert told == pytest.approx(plan.spent(multiplier)["release"], abs=0.01)


def test_who_takes_part_seldom_pays_for_the_worst_of_the_noise(tmp_path: Path) -> None:
    """Three rounds of coarse steps and three of little noise: whichever three of them a client was in."""
    coarse, little = Noise("skellam", 1.4, 2.0, 10_000), Noise("skellam", 1.0, 2.0**18, 5_000_000)
    ledger = Ledger(tmp_path / "ledger.json")
    for exchange in range(1, 7):
        noise, clients = little if exchange % 2 else coarse, ("a",) if exchange < 3 else ()
        ledger.charge(Charge(exchange, exchange, noise, 0.9, clients))
    worst = max(
        epsilon([Rounds(coarse, 1.0, some), Rounds(little, 1.0, others)], DELTA)
        for some, others in product(range(4), repeat=2)
        if some + others <= 3
    )
    capped, all_of_them = ledger.spent(DELTA, 3), ledger.spent(DELTA)
    assert worst <= capped.release < all_of_them.release and capped.release <= capped.release_bound
    assert (capped.server, capped.rounds) == (all_of_them.server, all_of_them.rounds)


def test_a_cap_that_somebody_went_beyond_counts_for_nothing_less(tmp_path: Path) -> None:
    noise = Noise("gaussian", 2.0)
    ledger = Ledger(tmp_path / "ledger.json")
    for exchange in range(1, 9):
        ledger.charge(Charge(exchange, exchange, noise, 0.9, ("a", "b") if exchange < 4 else ("c",)))
    spent = ledger.spent(DELTA, 2)
    assert spent.participations == 5
    assert spent.release == pytest.approx(epsilon([Rounds(noise, 1.0, 5)], DELTA)) == spent.server
