"""The plan as a YAML file: one value a line, under a comment that says why.

The comments are the plan's reasons, and reading takes them from there, so that a value and its reason can't drift apart.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medseg.config import yaml12
from medseg.durable import sha256_json, write_text
from medseg.errors import InputError
from medseg.preparation.plan import Plan

PLAN_FORMAT = 1
_TITLE = (
    "# How scans become prepared arrays, and why. Overrides belong in the config; --replan makes this file anew.\n\n"
)
_REASON = re.compile(r"^# (?P<reason>.+)\n(?P<key>[a-z0-9_]+):", re.MULTILINE)


def plan_text(plan: Plan) -> str:
    """The plan as YAML."""
    values: dict[str, Any] = plan.model_dump(mode="json", exclude={"reasons"})
    parts = [_TITLE]
    for key, value in values.items():
        if key in plan.reasons:
            parts.append(f"# {plan.reasons[key]}\n")
        parts.append(f"{key}:{_yaml(value)}\n")
    return "".join(parts)


def _yaml(value: Any) -> str:
    def flow(item: Any) -> str:
        return json.dumps(item, ensure_ascii=False)

    if isinstance(value, dict) and value:
        return "".join(f"\n  {flow(key)}: {flow(item)}" for key, item in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "".join(f"\n  - {flow(item)}" for item in value)
    return f" {flow(value)}"


def write_plan(path: Path, plan: Plan) -> None:
    """Writes the plan atomically."""
    write_text(path, plan_text(plan))


def read_plan(path: Path) -> Plan:
    """Reads a plan.

    Raises:
        InputError: missing, no YAML, a newer format, or values that no plan has; the message names all of them.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name}: can't be read ({type(error).__name__}); prepare again with --replan") from error
    document = yaml12.parse(text)
    if document.faults:
        faults = "; ".join(f"line {line} {fault}" for line, fault in document.faults)
        raise InputError(f"{path.name}: is no YAML ({faults}); correct it, or prepare again with --replan")
    value = document.value
    if not isinstance(value, dict) or value.get("format") != PLAN_FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise InputError(f"{path.name}: has plan format {found}, expected {PLAN_FORMAT}; update medseg or use --replan")
    value["reasons"] = {match["key"]: match["reason"] for match in _REASON.finditer(text)}
    try:
        return Plan.model_validate_json(json.dumps(value))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
        raise InputError(f"{path.name}: is no plan ({faults}); correct it, or prepare again with --replan") from error


def plan_sha256(plan: Plan) -> str:
    """SHA-256 of everything in the plan but what is only for information: its reasons and the alternatives."""
    return sha256_json(plan.model_dump(mode="json", exclude={"reasons", "alternatives"}))
