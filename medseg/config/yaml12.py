"""YAML as people expect it: 1.2 scalars, no duplicate keys, no aliases, no tags, and the line of every key.

PyYAML follows YAML 1.1, in which ``1e-3`` is text, ``off`` is False and ``0012`` is 10. Here a plain scalar is null, true,
false, a whole number, a float (YAML 1.2 core schema) or text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

_INT = re.compile(r"[-+]?[0-9]+\Z")
_BASED_INT = re.compile(r"0(o[0-7]+|x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_MAX_DIGITS = 400
_MAX_DEPTH = 32

Path = tuple[str | int, ...]


@dataclass
class Document:
    """A parsed file: ``value`` of plain types, ``lines`` from key path to line (1-based), ``faults`` as (line, sentence)."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)


def scalar(text: str) -> Any:
    """A plain scalar by the YAML 1.2 core schema: ``"1e-3"`` is 0.001, ``"off"`` is text, ``"0012"`` is 12."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _MAX_DIGITS:
        return text
    if _INT.match(text):
        return int(text)
    if _BASED_INT.match(text):
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    if _SPECIAL.match(text):
        return float(text.lower().replace(".", ""))
    return text


def parse(text: str) -> Document:
    """Parses one YAML document; faults are collected, not raised. Empty text gives None."""
    document = Document()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        document.faults.append((line, f"is no valid YAML ({error.problem or error.context})"))
        return document
    except (yaml.YAMLError, RecursionError) as error:
        document.faults.append((1, f"is no valid YAML ({type(error).__name__})"))
        return document
    if node is not None:
        document.value = _build(node, (), document, set())
    return document


def _build(node: yaml.Node, path: Path, document: Document, seen: set[int]) -> Any:
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    if isinstance(node, yaml.ScalarNode):
        return _build_scalar(node, line, document)
    if id(node) in seen or len(path) > _MAX_DEPTH:
        document.faults.append((line, "aliases and nesting this deep are not read; write the value out"))
        return None
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), document, seen) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key_line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append((key_line, "a key must be a plain word"))
            continue
        key = str(key_node.value)
        if key in result:
            first = document.lines[(*path, key)]
            document.faults.append((key_line, f"{key}: is given twice (first on line {first}); keep one"))
            continue
        document.lines[(*path, key)] = key_line
        result[key] = _build(value_node, (*path, key), document, seen)
    return result


def _build_scalar(node: yaml.ScalarNode, line: int, document: Document) -> Any:
    # A quoted scalar is text; SafeLoader's own tag resolution (YAML 1.1) is not used for the plain ones.
    if node.style in ("'", '"', "|", ">"):
        return str(node.value)
    if node.tag not in _STANDARD_TAGS:
        document.faults.append((line, f"tag {node.tag} is not read; write a plain value"))
        return None
    return scalar(str(node.value))


_STANDARD_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}
