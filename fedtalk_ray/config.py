"""One loader for all that users write: runs, comparisons and the files of commands, with one way to say what is wrong.

`load_config(path, ["rounds=5", "local.steps=10"])` gives a `TrainConfig`; `settings` declares it. Unknown keys are
refused with the nearest valid one named. Every error is a `ConfigError`, one line.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from fedtalk_ray.errors import ConfigError
from fedtalk_ray.recipe import PHASES, LossConfig, PhaseName
from fedtalk_ray.settings import TrainConfig

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """The configuration in a YAML file with `key=value` overrides (dots reach inside; values are YAML)."""
    tree = read_yaml(path)
    for override in overrides or []:
        set_key(tree, *assignment(override, "override"), "override")
    return parse_config(tree, str(path))


def parse_config(tree: Mapping[str, Any], source: str) -> TrainConfig:
    """A checked `TrainConfig` from plain data; `source` names it in errors."""
    return parse(TrainConfig, tree, source)


def parse_loss(weights: list[str]) -> LossConfig:
    """Loss settings from `key=value` texts, the others as they are declared."""
    tree: dict[str, Any] = {}
    for weight in weights:
        set_key(tree, *assignment(weight, "loss"), "loss")
    return parse(LossConfig, tree, "loss")


def parse_phases(names: list[str]) -> tuple[PhaseName, ...]:
    """The phases of these names, in the order in which they are gone through."""
    if unknown := [name for name in names if name not in PHASES]:
        raise ConfigError(f"phase: {unknown[0]!r} is none; known are {', '.join(PHASES)}")
    return tuple(name for name in PHASES if name in names)


def save_config(config: TrainConfig, path: Path) -> None:
    """The resolved configuration as YAML, readable by `load_config`."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def read_yaml(path: str | Path, what: str = "configuration") -> dict[str, Any]:
    """The `key: value` lines of a YAML file as plain data. what: the file is called so in errors."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not YAML: it is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{what} {path} must hold `key: value` lines, not {type(tree).__name__}")
    return tree


def parse(model: type[Model], tree: Mapping[str, Any], source: str) -> Model:
    """Plain data as a checked model."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(problem, model) for problem in error.errors())) from error


def assignment(text: str, source: str) -> tuple[str, Any]:
    """The key and the value of `key=value`."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"{source} {text!r} is not of the form key=value, for example rounds=5")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} {text!r}: {value!r} is not a YAML value") from error


def set_key(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Sets a dotted key in a tree of sections, in place."""
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{source} {key!r}: {section} is a value, not a section")
        tree = inner
    tree[last] = value


def unknown_key(key: str, known: Iterable[str], last: str | None = None) -> str:
    """What to say of a key that is not known. last: the part of it to compare, else the whole."""
    near = difflib.get_close_matches(last or key, known, n=1, cutoff=0.0)
    return f"unknown key {key!r}; the nearest valid key is {near[0]!r}"


def _explain(problem: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        for part in problem["loc"][:-1]:
            # The keys of a table, such as a method's name, are no fields.
            field = model.model_fields.get(str(part))
            model = (_section_in(field.annotation) if field else None) or model
        return unknown_key(where, model.model_fields, str(problem["loc"][-1]))
    if problem["type"] == "missing":
        return f"key {where!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where} is {problem['input']!r}: {message}" if where else message


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a type is, or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
