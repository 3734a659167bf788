"""What a coordinator offers is held against the policy before anything of it is fetched, prepared or loaded."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedtalk_ray.coordinator.offer import conditions_of, run_name
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.errors import ConfigError, RunError
from fedtalk_ray.messages import Offer, Order, Part
from fedtalk_ray.privacy.protocol import Code
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import Manifest
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.sites.offered import read_offer
from fedtalk_ray.sites.policy import Policy
from fedtalk_ray.sites.site import Site

PARTS = (Part("model_index.json", b"1" * 32, 100), Part("denoiser/config.json", b"2" * 32, 200))


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    authority = Authority.create(tmp_path / "authority", ["localhost"])
    certificate = authority.coordinator.authority.read_bytes()
    return SiteFolder.create(tmp_path / "site", authority.invite("s1"), "https://localhost:1", certificate)


@pytest.fixture
def offer(make_config: Callable[..., TrainConfig]) -> Callable[..., Offer]:
    """An offer with these settings, conditions and parts."""

    def make(config: dict[str, Any] | None = None, start: tuple[Part, ...] = PARTS, **conditions: Any) -> Offer:
        usual = conditions_of(Manifest("folder", 144, 25, 16000, "lower-face", "abc", {}))
        settings = make_config(aggregation="secure", cohort={"size": 8}, **config or {})
        return Offer(bytes(16), settings.model_dump_json(), start, json.dumps(usual | conditions))

    return make


def test_a_usual_offer_is_taken(site: SiteFolder, offer: Callable[..., Offer]) -> None:
    found = read_offer(offer(), site, Policy())
    assert found.refused == "" and found.name == run_name(offer())
    assert found.config.shards == str(site.shards) and found.config.run.endswith(found.name)
    assert found.config.pretrained == str(site.models / found.model)
    assert found.config.agreement.ledgers == str(site.ledgers)
    again = read_offer(offer(start=(), config={"pretrained": "fedtalk-tiny"}), site, Policy())
    assert (again.refused, again.model) == ("", "fedtalk-tiny")


def test_sites_with_different_offers_are_in_different_runs(offer: Callable[..., Offer]) -> None:
    """Every signature covers the run's name, so their masks do not cancel. The settings have a hash of their own."""
    other = (Part("model_index.json", b"3" * 32, 100), PARTS[1])
    renamed = (Part("other.json", b"1" * 32, 100), PARTS[1])
    offers = [offer(), offer(start=other), offer(start=renamed), offer(start=PARTS[:1]), offer(frame_size=192)]
    offers += [offer(autoencoder="patch"), replace(offer(), nonce=b"x" * 16)]
    assert len({run_name(each) for each in offers}) == len(offers)
    assert run_name(offer(config={"seed": 9})) == run_name(offer())


@pytest.mark.parametrize(
    ("made", "policy", "said"),
    [
        ({"autoencoder": "someone/model"}, {}, "by the autoencoder 'someone/model', and sites know lower-face, patch"),
        ({"identity": "facenet:/etc/passwd"}, {}, "by the identity 'facenet:/etc/passwd'"),
        ({"speech": "/srv/whisper"}, {}, "the owner may say where it is (--speech)"),
        ({"start": (), "config": {"pretrained": "someone/model"}}, {}, "a model is named and not given"),
        (
            {"start": (Part("a.json", b"1" * 32, 1 << 40),)},
            {},
            "the model is 1048576 MiB in 1 files",
        ),
        ({"start": PARTS * 501}, {}, "in 1002 files"),
        ({}, {"models": ["fedtalk-tiny"]}, "is none that this site agreed to"),
    ],
)
def test_what_it_may_not_ask_is_refused(
    site: SiteFolder, offer: Callable[..., Offer], made: dict[str, Any], policy: dict[str, Any], said: str
) -> None:
    assert said in read_offer(offer(**made), site, Policy(**policy)).refused


def test_where_the_owner_has_the_network_that_hears_it_is_taken(site: SiteFolder, offer: Callable[..., Offer]) -> None:
    site.remember(speech="/own/whisper")
    assert read_offer(offer(speech="/srv/whisper"), site, Policy()).refused == ""


def test_a_second_run_over_the_same_clips_is_the_owner_s_to_allow(
    site: SiteFolder, offer: Callable[..., Offer]
) -> None:
    ledger = {"rounds": {"of another run": 3}, "noise": [], "bare": 3, "last": {"of another run": 3}}
    site.ledgers.mkdir()
    (site.ledgers / "s1.json").write_text(json.dumps(ledger))
    (site.ledgers / "s1.rounds").write_text("3")
    assert read_offer(offer(), site, Policy()).refused == "it is another run, and this site agreed to 1"
    assert (
        read_offer(offer(), site, Policy(runs=2)).refused == read_offer(offer(), site, Policy(runs=None)).refused == ""
    )


def test_an_offer_that_is_none_is_one_line(site: SiteFolder, offer: Callable[..., Offer]) -> None:
    good = offer()
    for text in ("[]", "{}", "nonsense", "3", '{"frame_size": "wide"}', "[" * 5000):
        for bad in (Offer(good.nonce, text, (), good.conditions), Offer(good.nonce, good.config, (), text)):
            with pytest.raises(ConfigError):
                read_offer(bad, site, Policy())
    with pytest.raises(RunError, match="no place in a model's folder"):
        read_offer(offer(start=(Part("../x.json", b"1" * 32, 1),)), site, Policy())
    site.ledgers.mkdir()
    site.ledger.write_text("{")
    with pytest.raises(RunError, match=r"s1\.json"):
        read_offer(offer(), site, Policy())


class Dead:
    """A line on which every call ends in an error that nobody thought of."""

    def get(self, path: str, known: bytes | None = None) -> bytes:
        raise KeyError(path)


def test_whatever_an_order_does_the_site_stays(site: SiteFolder, offer: Callable[..., Offer]) -> None:
    heard: list[str] = []
    site.members.write_bytes(b"as it was")
    here = Site(site, Dead(), Policy(), heard.append)  # type: ignore[arg-type]
    config = read_offer(offer(), site, Policy()).config
    assert here._answer(Order(1, "train", b"garbage"), config).refused == Code.CANNOT_GO_ON
    assert "KeyError" in heard[0]
    assert here._answer(Order(1, "share", b"garbage"), config).refused == Code.WRONG_STAGE
    assert here._answer(Order(1, "explode", b""), config).refused == Code.WRONG_STAGE
    # No order fills the disk: it is refused before a byte is asked for.
    for parts in ((Part("shared", bytes(32), 5 << 30),), (Part("shared", bytes(32), 4),) * 20):
        with pytest.raises(EnrolmentError, match="more vectors than the run has phases"):
            here._vectors(parts, config)


def test_a_model_half_put_in_place_is_put_there_again(site: SiteFolder, tmp_path: Path) -> None:
    """Killed between the adapter and the pipeline."""
    run = site.run("ab12")
    (run.path / "adapters" / "shared").mkdir(parents=True)
    (run.path / "adapters" / "shared" / "old.json").touch()

    class Line:
        def fetch(self, part: Part, place: Path) -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(part.name)

    heard: list[str] = []
    here = Site(site, Line(), Policy(), heard.append)  # type: ignore[arg-type]
    names = ("pipeline/model_index.json", "adapters/shared/adapter_config.json")
    order = Order(0, "over", b"", tuple(Part(name, bytes(32), 1) for name in names))
    here._fetch_released("ab12", order)
    assert all((run.path / name).read_text() == name for name in names)
    assert not (run.path / "adapters" / "shared" / "old.json").exists() and not (run.path / "released").exists()
    here._fetch_released("ab12", order)
    assert len(heard) == 1
