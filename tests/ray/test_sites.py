"""A federation of sites over HTTPS: processes of their own, each with its own clips, against the bare sum."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.actors.site_pool import Coordinator
from fedtalk_ray.actors.slot import Slot
from fedtalk_ray.enrolment.authority import Authority
from fedtalk_ray.errors import ConfigError, RunError
from fedtalk_ray.federation.secure_aggregator import make_codec
from fedtalk_ray.messages import TO_SERVER, MaskedInput, Reply
from fedtalk_ray.privacy.protocol import STAGES, Frame
from fedtalk_ray.privacy.wire import decode
from fedtalk_ray.runs.checkpoints import load_checkpoint
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import read_history
from fedtalk_ray.serving import serve
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.shards.format import MANIFEST, load_manifest
from fedtalk_ray.shards.people import site_people
from fedtalk_ray.sites.folder import SiteFolder
from fedtalk_ray.training.personalize import personalize
from tests.ray.own_wire import Wire, records_of
from tests.ray.private_bytes import private_bytes

Make = Callable[..., TrainConfig]

PRIVACY = {"insecure_min_survivors": 2, "samples_cap": 400, "clip_norm": 1.0}


def part_of(shards: Path, out: Path, names: list[str]) -> Path:
    """Shards of these people alone, as a machine of their own would have them."""
    out.mkdir(parents=True)
    tree = json.loads((shards / MANIFEST).read_text())
    tree["identities"] = {name: tree["identities"][name] for name in names}
    tree["files"] = {file: entry for file, entry in tree["files"].items() if file.split("/")[0][7:] in names}
    (out / MANIFEST).write_text(json.dumps(tree))
    for name in names:
        shutil.copytree(shards / f"client={name}", out / f"client={name}")
    return out


class Federation:
    """An authority, a coordinator in a thread of this process, a recorder before it, and sites."""

    def __init__(self, folder: Path, crowd: Path) -> None:
        self.folder, self._crowd = folder, crowd
        self.authority = Authority.create(folder / "authority", ["localhost"])
        self.names = load_manifest(crowd).clients()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.wire = Wire(self._port)
        self.said: list[str] = []
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"https://localhost:{self.wire.port}"

    def sites(self, count: int, policies: dict[int, str] | None = None) -> list[SiteFolder]:
        """So many sites, members all, each with its own person's clips."""
        made = [self._site(name, (policies or {}).get(place, "")) for place, name in enumerate(self.names[:count])]
        assert not any(decision.refused for decision in self.authority.sign([site.request for site in made]))
        return made

    def _site(self, name: str, policy: str) -> SiteFolder:
        place = self.folder / f"site-{name}"
        invite = self.authority.invite(name)
        made = SiteFolder.create(place, invite, self.address, self.authority.coordinator.authority.read_bytes())
        part_of(self._crowd, made.shards, [name])
        (place / "policy.yaml").write_text(policy or "fewest_survivors: 2\n")
        return made

    def config(self, make_config: Make, **changes: Any) -> TrainConfig:
        watched = self.folder / "watched"
        if not watched.exists():
            part_of(self._crowd, watched, load_manifest(self._crowd).unseen())
        tree = {"aggregation": "secure", "shards": str(watched), "privacy": PRIVACY, "cohort": {"size": 3}}
        return make_config(self.folder / "run", **tree | {"server": {}, "rounds": 2, "slots": {"count": 1}} | changes)

    def serve(self, config: TrainConfig, late_after: float = 120.0, **how: Any) -> RunFolder:
        coordinator = Coordinator(self.authority.coordinator, "127.0.0.1", self._port, late_after)
        return RunFolder(serve(config, coordinator, tell=self.said.append, stay=lambda _: self.over.wait(60), **how))


@pytest.fixture
def federation(tmp_path: Path, crowd: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, crowd)
    yield made
    made.wire.close()


class AtWork:
    """Sites as processes."""

    def __init__(self, federation: Federation, sites: list[SiteFolder]) -> None:
        command = [sys.executable, "-m", "tests.ray.sites_at_work", *(str(site.path) for site in sites)]
        self.process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)
        self._done = threading.Thread(target=lambda: (self.process.wait(), federation.over.set()))
        self._done.start()

    def all_left_well(self) -> bool:
        """Whether all were there until the end."""
        self._done.join(60)
        return self.process.returncode == 0

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self._done.join()


@pytest.fixture
def at_work(federation: Federation) -> Iterator[Callable[[list[SiteFolder]], AtWork]]:
    started: list[AtWork] = []

    def start(sites: list[SiteFolder]) -> AtWork:
        started.append(AtWork(federation, sites))
        return started[-1]

    yield start
    for each in started:
        each.close()


Start = Callable[[list[SiteFolder]], AtWork]


def in_one_process(config: TrainConfig, folder: Path, shards: Path, names: list[str]) -> tuple[Any, np.ndarray, float]:
    """Two rounds of these clients by a bare loop: the slot, the parameters before and after, the weights' sum."""
    tree = config.model_dump(mode="json") | {"run": str(folder), "shards": str(shards)}
    slot = ClientSlot(TrainConfig.model_validate(tree | {"aggregation": "plain", "privacy": {}}))
    start = shared = slot.start()
    for number in (1, 2):
        _, update = slot.fit(names, number, shared)
        assert update is not None
        shared = shared + update.weighted_sum / update.total_weight
    return slot, np.stack([start, shared]), update.total_weight / PRIVACY["samples_cap"]


def test_sites_teach_what_the_same_clients_teach_and_tell_no_more(
    make_config: Make, federation: Federation, crowd: Path, at_work: Start
) -> None:
    """Two rounds over HTTPS, against plain weighted means worked out in one process; and every byte that was sent."""
    sites = federation.sites(3)
    names = [site.name for site in sites]
    config = federation.config(make_config)
    working = at_work(sites)
    run = federation.serve(config)
    assert working.all_left_well()
    history = read_history(run.history_file)
    assert [record["survivors"] for record in history] == [3, 3]
    assert history[-1]["held_out_loss"] > 0

    slot, (start, shared), weights = in_one_process(config, federation.folder / "bare", crowd, names)
    checkpoint = load_checkpoint(run.checkpoints)
    assert checkpoint is not None
    bound = make_codec(config, len(start)).error_bound(3, weights, PRIVACY["clip_norm"])
    moved = float(np.linalg.norm(shared - start))
    assert 2 * bound < 0.05 * moved, "a bound this loose would say nothing"
    # The second round starts from the first one's sum, so its error is in there once more, a little grown.
    assert np.linalg.norm(checkpoint.parameters - shared) <= 3 * bound + 1e-5 * moved

    for site in sites:
        (own,) = site.runs()
        assert own.has_model() and own.has_shared_adapter() and own.released_round() == 2
        for file in ("pipeline/model_index.json", "adapters/shared/adapter_model.safetensors"):
            assert (own.path / file).read_bytes() == (run.path / file).read_bytes()
        # What is the site's own stays at the site: the coordinator has no folder of it.
        assert own.clients() == [site.name] and not run.clients()
        spent = json.loads((site.ledgers / f"{site.name}.json").read_text())
        assert json.dumps(spent).count('"bare": 2') == 1

    # And at its own place it can learn its own face.
    learned = personalize(sites[0].runs()[0].path, names[0], 1, people=site_people(sites[0].shards, names[0]))
    assert learned.folder == sites[0].runs()[0].client(names[0]).newest_adapter
    assert learned.folder.is_relative_to(sites[0].path) and (learned.folder / "adapter_model.safetensors").exists()

    # On the wire: TLS and nothing else. Inside it: the messages of the protocol, of their sizes, and nothing private.
    assert sum(len(kinds) for sent in federation.wire.sent if (kinds := records_of(bytes(sent)))) > 50
    tree = config.model_dump(mode="json") | {"run": str(federation.folder / "bare"), "shards": str(crowd)}
    secrets = list(private_bytes(slot, TrainConfig.model_validate(tree), names))
    stages = Counter[str]()
    for site in sites:
        for line in (site.path / "sent").read_text().splitlines():
            path, _, body = line.partition(" ")
            content = bytes.fromhex(body)
            assert not [what for what, secret in secrets if secret in content]
            if not path.startswith("replies/"):
                assert not content
                continue
            stage, reply = path.split("/")[2], decode(Reply, content)
            stages[stage] += 1
            assert not reply.refused
            if stage == "train":
                assert not reply.frame
                continue
            frame = decode(Frame, reply.frame)
            assert frame.kind == TO_SERVER[stage].__name__
            message = decode(TO_SERVER[stage], frame.body)
            assert message.client == site.name
            if isinstance(message, MaskedInput):
                assert chisquare(np.bincount(message.vector >> 24, minlength=256)).pvalue > 1e-4
    assert stages == dict.fromkeys(("train", *STAGES), 6)
    leak = secrets[-1][1]
    assert [what for what, secret in secrets if secret in b"x" + leak]


def test_sites_that_die_or_refuse_drop_out_and_the_round_goes_on(
    make_config: Make, federation: Federation, at_work: Start
) -> None:
    """Of seven one agrees to sums of eight alone, and one is killed when it has masked its update. It comes back."""
    sites = federation.sites(7, {5: "fewest_survivors: 8\n"})
    (sites[6].path / "dies").write_text("confirm 1")
    config = federation.config(make_config, cohort={"size": 7})
    working = at_work(sites)
    run = federation.serve(config)
    assert working.all_left_well()
    first, second = read_history(run.history_file)
    assert first["counts"]["mask"] == 6 and first["counts"]["confirm"] == 5
    assert first["survivors"] == 6, "who is killed after it sent its vector stays in the sum"
    assert second["survivors"] == 6 and second["counts"]["unmask"] == 6
    assert first["refused"]["not agreed to"] == second["refused"]["not agreed to"] == 1
    said = (sites[5].path / "said").read_text()
    assert said.count("not taken part in: fewest survivors is 2, this site asks for 8") == 1
    assert not (sites[5].ledgers / f"{sites[5].name}.json").exists()
    line = f"{sites[5].name} refuses train of exchange 1: not agreed to: fewest survivors is 2, this site asks for 8"
    assert run.coordinator_log.read_text().count(line) == 1
    # Nothing was answered twice with other bytes: of each stage of an exchange one reply, however often it was sent.
    for site in sites:
        replies: dict[str, set[str]] = {}
        for line in (site.path / "sent").read_text().splitlines():
            path, _, body = line.partition(" ")
            if path.startswith("replies/"):
                replies.setdefault(path, set()).add(body)
        assert all(len(bodies) == 1 for bodies in replies.values())
    # What the killed one spent it knows: two rounds, as the others.
    counted = [
        json.loads((site.ledgers / f"{site.name}.json").read_text())["bare"] for site in sites if site != sites[5]
    ]
    assert counted == [2] * 6


def test_a_coordinator_that_dies_goes_on_with_the_same_sites(
    make_config: Make, federation: Federation, at_work: Start
) -> None:
    """Its gate is killed while the second round's sites train; started again it goes on, and nobody joins anew."""
    sites = federation.sites(3)
    config = federation.config(make_config)
    working = at_work(sites)
    gates: list[Slot] = []
    opened = Coordinator.open

    def noted(self: Coordinator, of: TrainConfig) -> tuple[Slot, int]:
        found = opened(self, of)
        gates.append(found[0])
        return found

    def kill() -> None:
        run = RunFolder(federation.folder / "run")
        while not (run.history_file.exists() and run.recorded() == 1):
            time.sleep(0.05)
        gates[0].kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coordinator, "open", noted)
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(RunError, match=r"the gate to the sites was lost.*--resume"):
            federation.serve(config)
        killer.join()
        run = federation.serve(config, resume=True)
    assert working.all_left_well()
    assert [record["round"] for record in read_history(run.history_file)] == [1, 2]
    assert [record["survivors"] for record in read_history(run.history_file)] == [3, 3]
    assert all(len(site.runs()) == 1 for site in sites)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aggregation": "plain", "privacy": {}}, "sites take part in secure sums alone"),
        (
            {"privacy": PRIVACY | {"mechanism": "skellam", "noise_multiplier": 1.0}},
            "privacy.view release needs cohorts that nobody is told of",
        ),
    ],
)
def test_what_sites_cannot_hold_is_refused_before_anybody_is_asked(
    make_config: Make, federation: Federation, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        federation.serve(federation.config(make_config, **changes))
    assert not federation.said and not (federation.folder / "run").exists()
