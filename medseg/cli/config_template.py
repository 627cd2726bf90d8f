"""A config with every key, its default and its meaning, written from the schema so that it never falls behind it."""

from __future__ import annotations

import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medseg.config import Config

_WIDTH = 110


def commented_config(*, command: str, values: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """YAML of a complete config; the first line is the command that runs it.

    Args:
        command: what to type.
        values: dotted key to value, where it is not the default (``data.manifest``).
        reasons: dotted key to a sentence that is put above it, after what the schema says of it.

    Returns:
        Text that ``load_config`` takes.
    """
    lines = [
        f"# {command}",
        "#",
        *_comment("Every key with its default. Delete what you don't change: defaults are the same."),
    ]
    lines += _section(Config, "", 0, values, reasons)
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: int = 0) -> list[str]:
    pad = " " * indent + "# "
    return textwrap.wrap(" ".join(text.split()).replace("``", "'"), _WIDTH, initial_indent=pad, subsequent_indent=pad)


def _section(
    model: type[BaseModel], prefix: str, indent: int, values: Mapping[str, Any], reasons: Mapping[str, str]
) -> Iterator[str]:
    for position, (name, field) in enumerate(model.model_fields.items()):
        key = f"{prefix}{name}"
        pad = " " * indent
        section = _section_of(field)
        about = " ".join(filter(None, (field.description, reasons.get(key))))
        if section is not None:
            if position:
                yield ""
            about = about or (section.__doc__ or "")
        yield from _comment(about, indent) if about else ()
        if section is not None:
            yield f"{pad}{name}:"
            yield from _section(section, f"{key}.", indent + 2, _own_defaults(field, key, values), reasons)
        else:
            value = values[key] if key in values else _default(field)
            yield f"{pad}{name}: {_yaml(value)}"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section a field holds; of several kinds, the one that is the default."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return type(default)
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _own_defaults(field: FieldInfo, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values``, below them what the default section says where that differs from its own fields' defaults."""
    default = field.get_default(call_default_factory=True)
    own: dict[str, Any] = {}
    if isinstance(default, BaseModel):
        own = {f"{key}.{name}": value for name, value in default.model_dump(mode="json", exclude_unset=True).items()}
    return own | dict(values)


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True)
    if field.is_required() and typing.get_origin(field.annotation) not in (types.UnionType, typing.Union):
        raise AssertionError(f"{field.title or field.annotation} has no default and no value")
    return value


def _yaml(value: Any) -> str:
    """A value in YAML's flow form, which JSON is; plain words go without quotes."""
    if isinstance(value, str) and value.isidentifier() and value.lower() not in ("null", "true", "false"):
        return value
    return json.dumps(value, ensure_ascii=False, default=list)
