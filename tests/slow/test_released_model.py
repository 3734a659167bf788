"""One run, one released model: whoever asks gets the same to the bit, after an interruption between two samples too.

B1, B3, B6, B9: `personalize` and `audit` took the last checkpoint, `generate` and `evaluate` what was exported, its
round was guessed from the names of pictures, and nobody but training found a virtual client's clips.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtalk_ray.actors.client import ClientSlot
from fedtalk_ray.audits.effort import FAST
from fedtalk_ray.audits.subject import Subject
from fedtalk_ray.config import save_config
from fedtalk_ray.errors import RunError
from fedtalk_ray.evaluation import evaluate, window_figures
from fedtalk_ray.federation.server import ParameterServer
from fedtalk_ray.generation import generate
from fedtalk_ray.messages import PlainUpdate
from fedtalk_ray.model import adapters
from fedtalk_ray.report import videos
from fedtalk_ray.runs.checkpoints import Checkpoint, config_fingerprint, save_checkpoint
from fedtalk_ray.runs.client_folder import ClientFolder
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.runs.history import History
from fedtalk_ray.shards.people import people_of
from fedtalk_ray.training import personalize
from fedtalk_ray.training.backbone import untrained_pipeline
from fedtalk_ray.training.local import LocalTrainer

AVERAGE, SAMPLED, DIED = 3, 5, 7
"""Rounds whose mean is released, the round of the last sample, and the one after which the run was cut short."""

PEOPLE, UNSEEN = ("ann", "bob", "cid", "dan"), ("x1", "x2", "x3", "x4")


class Cut:
    """A run that was killed two rounds after it sampled. expected: what it had released, float32 [D]."""

    def __init__(
        self, folder: Path, make_config: Callable, make_shards: Callable, wake: Callable, virtual: bool
    ) -> None:
        clips = dict.fromkeys(PEOPLE, [30] * 4) | dict.fromkeys(UNSEEN, [30] * 2)
        manifest = make_shards(folder / "shards", clips, unseen=UNSEEN)
        pipeline = untrained_pipeline(manifest, widths=(16, 32), window=4)
        wake(pipeline.denoiser)
        pipeline.save_pretrained(str(folder / "pretrained"))
        self.config = make_config(
            run=str(folder / "run"),
            shards=str(folder / "shards"),
            pretrained=str(folder / "pretrained"),
            aggregation="plain",
            rounds=20,
            server={"average": AVERAGE},
            population={"clients": 5} if virtual else {},
        )
        self.run = RunFolder(folder / "run")
        slot = ClientSlot(self.config)
        start = slot.start()
        save_checkpoint(self.run.checkpoints, Checkpoint(0, start, {}), config_fingerprint(self.config))
        save_config(self.config, self.run.config_file)
        server, history = ParameterServer(self.config.run, self.config), History(self.run.history_file, keep=0)
        self.clients = list(people_of(self.config).clients or ())
        rng = np.random.default_rng(0)
        after = []
        for number in range(1, DIED + 1):
            if number in (SAMPLED, DIED):
                slot.fit(self.clients, number, server.shared())
            update = rng.normal(0, 0.02, len(start)).astype(np.float32)
            server.apply(number, PlainUpdate(number, update, 1.0))
            after.append(server.shared().astype(np.float64))
            if number == SAMPLED:
                slot.export(server.released(), number)
            history.after_round({"round": number, "aggregation": "plain", "held_out_loss": 1.0, "seconds": 1.0})
        self.expected = np.mean(after[SAMPLED - AVERAGE : SAMPLED], axis=0).astype(np.float32)
        assert np.abs(self.expected - server.released()).max() > 1e-3, "what is released now is another one"


@pytest.fixture(scope="module", params=[False, True], ids=["identities", "virtual clients"])
def cut(request, tmp_path_factory, make_config: Callable, make_shards: Callable, wake_zeros: Callable) -> Cut:
    return Cut(tmp_path_factory.mktemp("cut"), make_config, make_shards, wake_zeros, request.param)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_figures, "WINDOWS_PER_CLIP", 1)
    monkeypatch.setattr(window_figures, "DRAWS", 1)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bytes]]:
    """module -> the shared parameters of every model that it was given."""
    found: dict[str, list[bytes]] = {}

    def watch(module: Any) -> None:
        load = module.load_released

        def loaded(*arguments: Any, **keywords: Any) -> Any:
            model = load(*arguments, **keywords)
            vector = adapters.to_vector(adapters.shared_parameters(model.denoiser, "adapter"))
            found.setdefault(module.__name__.rpartition(".")[2], []).append(vector.tobytes())
            return model

        monkeypatch.setattr(module, "load_released", loaded)

    for module in (generate, evaluate, window_figures, videos):
        watch(module)
    take_on = LocalTrainer.load

    def taken_on(self: LocalTrainer, shared: np.ndarray, *rest: Any) -> None:
        found.setdefault("personalize", []).append(shared.tobytes())
        take_on(self, shared, *rest)

    monkeypatch.setattr(LocalTrainer, "load", taken_on)
    return found


def test_all_six_commands_use_the_released_model_to_the_bit(cut: Cut, seen: dict[str, list[bytes]], tmp_path: Path):
    run, shards, client = cut.run.path, cut.config.shards, cut.clients[0]
    clip, people = "x1/clip0", people_of(cut.config)
    personalize.personalize(run, client, 1)
    if people.clients is not None and people.clients.partial:
        result = evaluate.evaluate_run(run, shards, "test", limit=1)
        assert result["after_round"] == SAMPLED
        assert result["identity_adapters"] == 1, "a virtual client's is found too"
        videos.make_videos(cut.run, people, "", client)
        assert seen.keys() == {"evaluate", "videos", "personalize"}
    else:
        generate.generate(run, clip, clip, tmp_path / "talk.mp4", client, shards)
        subject = Subject(cut.run, FAST)
        assert subject.released.tobytes() == cut.expected.tobytes() and subject.rounds == SAMPLED
        window_figures.window_figures(run, shards, personal=True)  # what `compare` measures
        assert seen.keys() == {"generate", "window_figures", "personalize"}
    for command, vectors in seen.items():
        assert set(vectors) == {cut.expected.tobytes()}, command
    assert cut.run.released_round() == SAMPLED


@pytest.mark.parametrize("cut", [True], indirect=True, ids=["virtual clients"])
def test_a_virtual_clients_adapter_speaks_for_whose_clips_it_holds(cut: Cut) -> None:
    """B6: looked up by identity there was none, and the shared model passed for the personal one."""
    run, shards = cut.run.path, cut.config.shards
    own, shared = (window_figures.window_figures(run, shards, personal=personal) for personal in (True, False))
    assert own["seen"]["loss"] != shared["seen"]["loss"] and own["unseen"] == shared["unseen"]


def test_any_client_can_be_personalised_on_its_own_pieces(cut: Cut) -> None:
    client = cut.clients[-1]
    before = [ClientFolder.written_after(place) for place in cut.run.client(client).adapters()]
    assert before == [DIED, SAMPLED]
    personalize.personalize(cut.run.path, client, 1)
    kept = cut.run.client(client).adapters()
    # Beside the released model; the run's own, which a resumed round needs, are still there.
    assert [ClientFolder.written_after(place) for place in kept] == [SAMPLED, DIED, SAMPLED]
    assert cut.run.identity_adapter(client) == kept[0] == cut.run.client(client).newest_adapter
    with pytest.raises(Exception, match="not in the shards"):
        personalize.personalize(cut.run.path, "nobody", 1)


def test_of_a_run_that_went_on_the_adapter_that_goes_with_the_released_model_is_taken(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.release(5, None, lambda place: place.mkdir())
    for number in (3, 5, 6):
        run.client("ann").keep_adapter(number, lambda place: None)
    for number in (7, 8, 9):
        run.client("bob").keep_adapter(number, lambda place: None)
    adapter = {name: run.identity_adapter(name) for name in ("ann", "bob", "cid")}
    assert adapter["ann"] is not None and ClientFolder.written_after(adapter["ann"]) == 5
    assert adapter["bob"] is not None and ClientFolder.written_after(adapter["bob"]) == 7, "the nearest that is kept"
    assert adapter["cid"] is None
    with pytest.raises(RunError, match=r"client 'cid' has no identity adapter in .*; there are: ann, bob"):
        run.own_adapter("cid")

    for name in ("", "..", "../other", "a/b", "\0"):
        with pytest.raises(RunError, match="cannot be the name of a folder"):
            run.client(name)
