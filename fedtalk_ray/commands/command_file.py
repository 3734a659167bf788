"""A command's options from a YAML file in the first place: `fedtalk prepare jobs/configs/prepare.yaml --out elsewhere`.

Keys are the command's options without their dashes. What follows on the command line wins.
"""

from pathlib import Path
from typing import Any

from fedtalk_ray.config import read_yaml, unknown_key
from fedtalk_ray.errors import ConfigError


def expanded(group: Any, arguments: list[str], base: Path = Path()) -> list[str]:
    """The arguments with a leading YAML file replaced by the options that it holds.

    group: the application as a click group, with `commands`. base: the folder that the file's name starts from.
    Commands with an argument of their own, such as `train CONFIG`, read their file themselves. Raises `ConfigError`,
    one line, for an unreadable file, an unknown key (the nearest valid one is named), or a value that no option takes.
    """
    command = group.commands.get(arguments[0]) if arguments else None
    if command is None or len(arguments) < 2 or not arguments[1].endswith((".yaml", ".yml")):
        return arguments
    kinds = [parameter.param_type_name for parameter in getattr(command, "params", [])]
    if not kinds or "argument" in kinds:
        return arguments
    return [arguments[0], *_options(command.params, base / arguments[1]), *arguments[2:]]


def _options(options: list[Any], path: Path) -> list[str]:
    by_name = {name.removeprefix("--"): option for option in options for name in option.opts if name.startswith("--")}
    found = []
    for key, value in read_yaml(path).items():
        if key not in by_name:
            raise ConfigError(f"{path}: {unknown_key(str(key), by_name)}")
        found += _texts(by_name[key], key, value, path)
    return found


def _texts(option: Any, key: str, value: Any, path: Path) -> list[str]:
    """The command line of one key. A list is a repeated option where it may be repeated, else comma-separated."""
    name = f"--{key}"
    if option.is_flag:
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {key} is {value!r}; it takes true or false")
        return [name] if value else []
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, (dict, list)) for each in values):
        raise ConfigError(f"{path}: {key} is {value!r}; it takes a value, or a list of values")
    texts = [str(each) for each in values if each is not None]
    if option.multiple:
        return [part for text in texts for part in (name, text)]
    return [name, ",".join(texts)] if texts else []
