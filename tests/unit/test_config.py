"""Settings: read, overridden, refused with one clear line, written and read again without change."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtalk_ray.config import load_config, parse_config, save_config
from fedtalk_ray.errors import ConfigError
from fedtalk_ray.settings import TrainConfig

MINIMAL = {"run": "runs/a", "shards": "shards/a", "pretrained": "models/a"}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "train.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def minimal_file(folder: Path, **more: object) -> Path:
    return written(folder, yaml.safe_dump(MINIMAL | more))


def refusal(call) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_said_keeps_its_default(tmp_path: Path) -> None:
    config = load_config(minimal_file(tmp_path, local={"steps": 7}))
    assert (config.run, config.shards, config.pretrained) == ("runs/a", "shards/a", "models/a")
    assert config.local.steps == 7
    assert config.model_copy(update={"local": TrainConfig(**MINIMAL).local}) == TrainConfig(**MINIMAL)


@pytest.mark.parametrize(
    ("tree", "key", "nearest"),
    [
        ({"round": 3}, "round", "rounds"),
        ({"local": {"step": 3}}, "local.step", "steps"),
        ({"local": {"loss": {"tdcc": 1}}}, "local.loss.tdcc", "tdc"),
        ({"slots": {"gpus": 1}}, "slots.gpus", "num_gpus"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(tree: dict, key: str, nearest: str) -> None:
    message = refusal(lambda: parse_config(MINIMAL | tree, "train.yaml"))
    assert message == f"train.yaml: unknown key {key!r}; the nearest valid key is {nearest!r}"


def test_every_mistake_is_named_at_once() -> None:
    message = refusal(lambda: parse_config(MINIMAL | {"round": 3, "seed": -1}, "train.yaml"))
    assert "'round'" in message and "seed is -1" in message


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("local.loss.tdc=0.5", lambda config: config.local.loss.tdc == 0.5),
        ("local.learning_rate=1.0e-4", lambda config: config.local.learning_rate == 1e-4),
        ("cohort.clients=[s1, s20]", lambda config: config.cohort.clients == ["s1", "s20"]),
        ("run=runs/a=b", lambda config: config.run == "runs/a=b"),
        ("local.gradient_checkpointing=true", lambda config: config.local.gradient_checkpointing is True),
    ],
)
def test_an_override_reaches_its_key_and_no_other(override: str, read, tmp_path: Path) -> None:
    path = minimal_file(tmp_path)
    plain, changed = load_config(path), load_config(path, [override])
    assert read(changed)
    section = override.split("=")[0].split(".")[0]
    assert plain.model_dump(exclude={section}) == changed.model_dump(exclude={section})


def test_an_override_keeps_what_the_file_says_beside_it(tmp_path: Path) -> None:
    config = load_config(minimal_file(tmp_path, local={"steps": 7, "batch_size": 2}), ["local.batch_size=3"])
    assert (config.local.steps, config.local.batch_size) == (7, 3)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rounds", "'rounds' is not of the form key=value, for example rounds=5"),
        ("=5", "'=5' is not of the form key=value"),
        ("run.name=x", "run is a value, not a section"),
        ("rounds=[1", r"'\[1' is not a YAML value"),
        ("local.stepps=3", "unknown key 'local.stepps'; the nearest valid key is 'steps'"),
        ("rounds=many", "rounds is 'many': .*valid integer"),
    ],
)
def test_a_bad_override_is_one_clear_line(override: str, says: str, tmp_path: Path) -> None:
    path = minimal_file(tmp_path)
    with pytest.raises(ConfigError, match=says):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"rounds": 0}, "rounds is 0: Input should be greater than or equal to 1"),
        ({"rounds": "many"}, "rounds is 'many': Input should be a valid integer"),
        ({"local": {"learning_rate": -0.1}}, "local.learning_rate is -0.1: Input should be greater than 0"),
        ({"local": {"learning_rate": float("nan")}}, "local.learning_rate is nan: "),
        ({"local": 5}, "local is 5: "),
        ({"strategy": {"alpha": 1.5}}, "strategy.alpha is 1.5: Input should be less than or equal to 1"),
        ({"server": {"optimizer": "lamb"}}, "server.optimizer is 'lamb': Input should be 'sgd' or 'adam'"),
        ({"cohort": {"clients": ["s1", 5]}}, "cohort.clients.1 is 5: Input should be a valid string"),
        ({"run": None}, "run is None: Input should be a valid string"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(tree: dict, says: str) -> None:
    message = refusal(lambda: parse_config(MINIMAL | tree, "train.yaml"))
    assert message.startswith(f"train.yaml: {says}")


@pytest.mark.parametrize("key", ["run", "shards"])
def test_a_missing_key_is_named(key: str) -> None:
    tree = {name: value for name, value in MINIMAL.items() if name != key}
    assert refusal(lambda: parse_config(tree, "train.yaml")) == f"train.yaml: key {key!r} is missing"


def test_a_shared_adapter_needs_a_pretrained_backbone_and_a_shared_backbone_does_not() -> None:
    tree = MINIMAL | {"pretrained": None}
    message = refusal(lambda: parse_config(tree, "train.yaml"))
    assert message == "train.yaml: shared: adapter needs `pretrained`: fedtalk-tiny, a pipeline's folder, or a hub id"
    alone = tree | {"shared": "backbone", "aggregation": "plain"}
    assert parse_config(alone, "train.yaml").pretrained is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- 1\n- 2\n", "must hold `key: value` lines, not list"),
        ("run: [a\nb: c\n", "is not YAML: "),
        (b"\xff\xfe\x00r\x00u\x00n", "train.yaml (is not|cannot be)"),
        (b"run: a\x00\n", "is not YAML: "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(content: str | bytes, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(lambda: load_config(tmp_path / "none.yaml")) == (
        f"configuration {tmp_path / 'none.yaml'} cannot be read: No such file or directory"
    )
    assert "cannot be read: Is a directory" in refusal(lambda: load_config(tmp_path))


positive = st.floats(1e-300, 1e300)


@settings(max_examples=40, deadline=None)
@given(
    name=st.text(max_size=12),
    clients=st.none() | st.lists(st.text(max_size=8), max_size=3),
    rate=positive,
    epsilon=positive,
    share=st.floats(0, 1),
    seed=st.integers(0, 2**70),
)
def test_what_is_saved_loads_as_it_was(tmp_path_factory, name, clients, rate, epsilon, share, seed) -> None:
    tree = MINIMAL | {
        "run": name,
        "seed": seed,
        "cohort": {"clients": clients},
        "server": {"learning_rate": rate, "epsilon": epsilon},
        "strategy": {"alpha": share},
    }
    config = parse_config(tree, "tree")
    path = tmp_path_factory.getbasetemp() / "saved.yaml"
    save_config(config, path)
    assert load_config(path) == config


def test_every_shipped_configuration_loads(repository: Path) -> None:
    files = sorted((repository / "jobs" / "configs").glob("*.yaml"))
    # Those of the other commands hold options, which commands/test_command_file.py reads.
    files = [file for file in files if re.match("# python jobs/(train|serve).py ", file.read_text())]
    assert files
    for file in files:
        config = load_config(file)
        assert config.run and config.shards


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"phases": ["units", "speech"]}, "faces is missing"),
        (
            {"phases": ["faces", "units"]},
            "each runs once, in this order: units, decoder, identity, sync, speech, hearing, mouths, faces",
        ),
        ({"phases": ["faces", "voices"]}, "phases.1 is 'voices'"),
        ({"pretrained": None, "shared": "backbone", "phases": ["faces"]}, "needs units"),
        ({"phases": ["units", "speech", "hearing", "faces"]}, "two ways to learn what sounds say of lips; take one"),
        ({"hearing": {"ridge": 0}}, "hearing.ridge is 0"),
        ({"cohort": {"statistics": 20, "over_select": 0.2}}, "not for cohorts with over_select or a trace"),
        ({"cohort": {"statistics": 20, "sampling": "poisson"}}, "statistics 20: with a privacy.mechanism or sampling"),
        (
            {"phases": ["faces"], "cohort": {"statistics": 20}, "privacy": {"mechanism": "skellam", "clip_norm": 1}}
            | {"privacy": {"mechanism": "skellam", "clip_norm": 1, "epsilon": 8}},
            "statistics 20: with a privacy.mechanism or sampling",
        ),
        ({"speech": {"rate": 1}}, "speech.rate"),
        ({"population": {"clients": 3, "pooled": True}}, "three ways to make clients; take one"),
        (
            {"phases": ["units", "faces"], "privacy": {"mechanism": "skellam", "clip_norm": 1, "epsilon": 8}},
            "drown in a",
        ),
    ],
)
def test_phases_that_cannot_be_run_are_refused(changes: dict, says: str) -> None:
    assert says in refusal(lambda: parse_config(MINIMAL | changes, "train.yaml"))


def test_three_lines_are_a_whole_recipe() -> None:
    config = parse_config(MINIMAL, "t")
    assert [phase.name for phase in config.plan] == ["units", "speech", "faces", "calibration", "sharpness"]
    first = 1
    counts = (1, config.speech.rounds, config.rounds, 3, config.sharpness.rounds)
    for phase, rounds in zip(config.plan, counts, strict=True):
        assert (phase.first, phase.count) == (first, rounds)
        assert {config.phase_at(number).name for number in range(phase.first, phase.last + 1)} == {phase.name}
        first += rounds
    assert config.all_rounds == first - 1


SKELLAM = {"mechanism": "skellam", "clip_norm": 1.0, "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cohort": {"size": 7}}, "opens no sum of fewer than 8 clients, and cohort.size is 7"),
        ({"cohort": {"size": 2}, "privacy": {"insecure_min_survivors": 3}}, "fewer than 3 clients"),
        ({"privacy": {"mechanism": "skellam", "clip_norm": 1.0}}, "needs `epsilon` or `noise_multiplier`"),
        ({"privacy": {"mechanism": "gaussian", "epsilon": 1.0}}, "needs `clip_norm`"),
        ({"privacy": {"epsilon": 1.0}}, "need a mechanism"),
        ({"privacy": {**SKELLAM, "simulated_cohort": 5}}, "go together"),
        ({"privacy": {**SKELLAM, "simulated_cohort": 5, "simulated_population": 4}}, "is larger than"),
        ({"privacy": {**SKELLAM, "clipping": "adaptive"}}, "needs a cohort of 64"),
        ({"aggregation": "plain", "privacy": SKELLAM}, "use aggregation: secure, or mechanism gaussian"),
        ({"cohort": {"sampling": "uniform"}, "privacy": SKELLAM}, "counts on cohort.sampling poisson"),
    ],
)
def test_privacy_settings_that_contradict_each_other_are_refused(changes: dict, says: str) -> None:
    assert says in refusal(lambda: parse_config(MINIMAL | changes, "train.yaml"))


def test_noise_brings_poisson_cohorts_and_exact_lora_sums_with_it() -> None:
    quiet, noisy = parse_config(MINIMAL, "t"), parse_config(MINIMAL | {"privacy": SKELLAM}, "t")
    assert (quiet.aggregation, quiet.poisson, quiet.trained_factors) == ("secure", False, "ab")
    assert (noisy.aggregation, noisy.poisson, noisy.trained_factors) == ("secure", True, "ffa")
    assert (quiet.phases, noisy.phases) == (["units", "speech", "faces", "calibration", "sharpness"], ["faces"])
    assert parse_config(MINIMAL | {"privacy": SKELLAM, "lora_aggregation": "ab"}, "t").trained_factors == "ab"
