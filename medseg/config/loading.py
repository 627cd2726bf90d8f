"""Loading a config: every fault at once, each as ``file:line: key: what is wrong``."""

from __future__ import annotations

import difflib
import json
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from medseg.config import yaml12
from medseg.config.sections import Config
from medseg.durable import write_text
from medseg.errors import ConfigError

_MAX_CONFIG_BYTES = 1 << 20


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks one experiment's YAML.

    Args:
        path: the YAML file, at most 1 MiB.
        overrides: ``a.b=value`` each, applied before checking; the value follows the same scalar rules.

    Raises:
        ConfigError: all faults found, one line each; ``--set`` faults are named by the option in place of a line.
    """
    document = yaml12.parse(_read(path))
    faults = [f"{path.name}:{line}: {sentence}" for line, sentence in document.faults]
    raw = document.value
    if raw is None and not faults:
        faults.append(f"{path.name}:1: is empty, expected at least name and data.manifest")
    elif not isinstance(raw, dict) and not faults:
        faults.append(f"{path.name}:1: holds no keys, expected at least name and data.manifest")
    if not isinstance(raw, dict):
        raise ConfigError(faults)
    origins = {location: f"{path.name}:{line}" for location, line in document.lines.items()}
    faults += _apply_overrides(raw, overrides, origins)
    try:
        config = Config.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        faults += [_sentence(fault, raw, origins, path) for fault in error.errors(include_url=False)]
    if faults:
        raise ConfigError(sorted(faults, key=_line_of))
    return config


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved config as YAML, atomically; ``load_config`` reads it back to an equal one."""
    write_text(path, config_text(config))


def config_text(config: Config) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True)


def _line_of(fault: str) -> float:
    line = fault.split(":")[1]
    return int(line) if line.isdigit() else math.inf  # faults of --set come last


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError([f"{path.name}: has more than {_MAX_CONFIG_BYTES:,} bytes, too much for a config"])
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: can't be read ({error.strerror}); check the path given to --config"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path.name}: is no UTF-8 text (byte {error.start}); save it as UTF-8"]) from error


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str], origins: dict[yaml12.Path, str]) -> list[str]:
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            faults.append(f"--set {override}: has no '=', expected --set section.key=value")
            continue
        value = yaml12.parse(text)
        faults += [f"--set {override}: {sentence}" for _, sentence in value.faults]
        node, parts = raw, tuple(key.split("."))
        for part in parts[:-1]:
            child = node.get(part)
            if not isinstance(child, dict):
                child = node[part] = {}
            node = child
        node[parts[-1]] = value.value
        for depth in range(1, len(parts) + 1):
            origins.setdefault(parts[:depth], f"--set {key}")
        origins[parts] = f"--set {key}"
    return faults


def _sentence(fault: Any, raw: Any, origins: dict[yaml12.Path, str], path: Path) -> str:
    location = _real_location(fault["loc"], raw)
    origin = next(
        (origins[location[:n]] for n in range(len(location), 0, -1) if location[:n] in origins), f"{path.name}:1"
    )
    key = ".".join(str(part) for part in location) or "config"
    return f"{origin}: {key}: {_what(fault, location, raw)}"


def _real_location(loc: Sequence[str | int], raw: Any) -> yaml12.Path:
    # pydantic puts the tag of a union ("unet") and the branch of an optional ("float") into the path; the file has neither.
    node, result = raw, []
    for i, part in enumerate(loc):
        inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if inside:
            node = node[part]
        elif not (isinstance(node, dict) and i == len(loc) - 1):
            continue
        result.append(part)
    return tuple(result)


def _what(fault: Any, location: yaml12.Path, raw: Any) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{_suggest(str(location[-1]), _known_keys(location[:-1], raw))}"
    if kind == "missing":
        return "has too few entries" if isinstance(fault["loc"][-1], int) else "is missing; add it"
    if kind in ("literal_error", "union_tag_invalid"):
        got = fault["input"] if kind == "literal_error" else context.get("tag")
        expected = str(context.get("expected") or context.get("expected_tags"))
        choices = [word.strip(" '") for word in expected.replace(" or ", ",").split(",")]
        return f"is {got!r}, expected {' or '.join(choices)}{_suggest(str(got), choices)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if isinstance(fault["input"], dict | list):
        return message[:1].lower() + message[1:]
    return f"is {fault['input']!r}: {message[:1].lower() + message[1:]}"


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else (f"; known are {', '.join(known)}" if known else "")


def _known_keys(location: yaml12.Path, raw: Any) -> list[str]:
    annotation: Any = Config
    node = raw
    for part in location:
        model = _model_of(annotation, node)
        if model is not None and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        # else a name that people chose, such as a channel's, with a section of the same kind below it
        node = node[part]
    model = _model_of(annotation, node)
    return list(model.model_fields) if model else []


def _model_of(annotation: Any, node: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        same = kind is None or not isinstance(node, dict) or node.get("kind", kind.default) == kind.default
        return annotation if same else None
    models = (_model_of(inner, node) for inner in typing.get_args(annotation))
    return next((model for model in models if model), None)
