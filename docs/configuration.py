"""The settings as a page: every section and key of a pydantic model, out of the model itself."""

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_PLAIN = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference(model: type[BaseModel]) -> str:
    """Markdown: a heading for each section, and below it every key with type, default, bounds and docstring."""
    parts = [_section("", model)]
    parts += [f"## {name} {{: #{name} }}\n\n{_section(name, section)}" for name, section in sections(model)]
    return "\n\n".join(parts)


def sections(model: type[BaseModel], name: str = "") -> list[tuple[str, type[BaseModel]]]:
    """All sections below `model` by their dotted names, in the order of the tree; `model` itself is not among them."""
    found: list[tuple[str, type[BaseModel]]] = []
    for key, field in model.model_fields.items():
        if is_section(field.annotation):
            inner = _dotted(name, key)
            found += [(inner, field.annotation), *sections(field.annotation, inner)]
    return found


def defaults(model: type[BaseModel], indent: str = "") -> str:
    """YAML of all keys with their defaults; a key that has none stands without a value."""
    lines = []
    for key, field in model.model_fields.items():
        if is_section(field.annotation):
            lines.append(f"{indent}{key}:\n{defaults(field.annotation, indent + '  ')}")
        elif field.is_required():
            lines.append(f"{indent}{key}:  # required")
        else:
            lines.append(f"{indent}{key}: {value(field.default)}")
    return "\n".join(lines)


def is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def type_name(annotation: Any) -> str:
    """A type in words; a `Literal` as the values that it lists."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value(choice)}`" for choice in inside)
    if origin is Annotated:
        return type_name(inside[0])
    if origin in (Union, UnionType):
        return " or ".join(type_name(part) for part in inside)
    if annotation is NoneType:
        return "`null`"
    if origin is list:
        return f"list of {type_name(inside[0])}"
    return _PLAIN[annotation]


def bounds(field: FieldInfo) -> list[str]:
    """As "≥ 1" and "< 1", in the order in which they are declared."""
    return [
        f"{sign}\N{NO-BREAK SPACE}{getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(limit, name, None) is not None
    ]


def value(default: Any) -> str:
    """A default as YAML writes it."""
    return yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()


def _section(name: str, model: type[BaseModel]) -> str:
    keys, links = [], []
    for key, field in model.model_fields.items():
        full = _dotted(name, key)
        if is_section(field.annotation):
            links.append(f"- [`{full}`](#{full}): {_text(field.annotation)}")
        else:
            keys.append(_key(full, field))
    return "\n\n".join([_text(model), *keys, *(["Sections:\n\n" + "\n".join(links)] if links else [])])


def _key(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default `{value(field.default)}`"
    facts = ", ".join([type_name(field.annotation), default, *bounds(field)])
    text = "\n    ".join(_escaped(field.description or "").splitlines())
    return f"`{name}`{{: #{name} }}: {facts}\n:   {text}"


def _text(model: type[BaseModel]) -> str:
    return _escaped(" ".join((model.__doc__ or "").split()))


def _escaped(text: str) -> str:
    """What is no code must not be read as HTML."""
    parts = text.split("`")
    return "`".join(part.replace("<", "&lt;") if index % 2 == 0 else part for index, part in enumerate(parts))


def _dotted(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
