"""What a search may change, and in which ranges: a small YAML file, and random draws from it.

Each key is a value of the config, each value a range::

    train.optimiser.learning_rate: {log: [1e-4, 1e-2]}
    train.foreground_share: {uniform: [0.2, 0.8]}
    prepare.batch_size: {integer: [2, 12]}
    train.loss.kind: [dice_ce, dice_focal]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg.config import Config, load_config, yaml12
from medseg.errors import ConfigError

Kind = Literal["log", "uniform", "integer", "choice"]
_RANGES = ("log", "uniform", "integer")
_SEARCHED = ("train.", "network", "prepare.batch_size", "prepare.patch_size_xyz")
_FIXED = ("train.budget", "train.early_stopping", "train.save_minutes", "train.validation", "train.workers")


@dataclass(frozen=True)
class Range:
    """What one key may be: of a choice ``values`` are its options, of a range its lowest and highest value."""

    kind: Kind
    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """A plain value: log-uniform, uniform, a whole number (both ends included) or one of the options."""
        if self.kind == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "integer":
            return int(rng.integers(low, high + 1))
        if self.kind == "uniform":
            return _rounded(float(rng.uniform(low, high)))
        return _rounded(math.exp(rng.uniform(math.log(low), math.log(high))))


def _rounded(value: float) -> float:
    """Three digits: what the search can tell apart, and what people can read."""
    return float(f"{value:.3g}")


def load_space(path: Path) -> dict[str, Range]:
    """Reads a space.

    Raises:
        ConfigError: every fault of the file, with its line.
    """
    try:
        document = yaml12.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path.name}: can't be read as text ({type(error).__name__}); check the path"]) from error
    faults = [f"{path.name}:{line}: {sentence}" for line, sentence in document.faults]
    raw = document.value
    if not faults and (not isinstance(raw, dict) or not raw):
        faults.append(f"{path.name}:1: holds no keys, expected config keys with a range each; see docs/tune.md")
    space: dict[str, Range] = {}
    for key, value in raw.items() if isinstance(raw, dict) else ():
        found = _range(str(key), value)
        if isinstance(found, str):
            faults.append(f"{path.name}:{document.lines.get((key,), 1)}: {key}: {found}")
        else:
            space[str(key)] = found
    if faults:
        raise ConfigError(faults)
    return space


def _range(key: str, value: Any) -> Range | str:
    """The range, or what is wrong with it."""
    if not key.startswith(_SEARCHED) or key.startswith(_FIXED):
        searched = ", ".join(_SEARCHED)
        return f"can't be searched, expected a key of {searched}, but none of {', '.join(_FIXED)}"
    if isinstance(value, list):
        return Range("choice", tuple(value)) if value else "is an empty list, expected at least one option"
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in _RANGES:
        return "is no range, expected a list of options, or one of {log: [a, b]}, {uniform: [a, b]}, {integer: [a, b]}"
    kind, ends = next(iter(value.items()))
    if not isinstance(ends, list) or len(ends) != 2 or not all(_is_number(end) for end in ends) or ends[0] >= ends[1]:
        return f"{kind} is {ends!r:.60}, expected two numbers, the lower one first"
    if kind == "log" and ends[0] <= 0:
        return f"log begins at {ends[0]}, expected a positive number"
    if kind == "integer" and not all(isinstance(end, int) for end in ends):
        return f"integer is {ends!r:.60}, expected two whole numbers"
    return Range(kind, tuple(ends))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain_space(space: Mapping[str, Range]) -> dict[str, Any]:
    """The space as plain values, for hashing and for the record."""
    return {key: {"kind": found.kind, "values": list(found.values)} for key, found in space.items()}


def draw_candidates(space: Mapping[str, Range], count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` candidates as key to value; the first is the default, which changes nothing.

    Candidate k is drawn from (seed, k) alone, so that a search with more candidates begins with the same ones.
    """
    drawn: list[dict[str, Any]] = [{}]
    for k in range(1, count):
        rng = np.random.default_rng((seed, k))
        drawn.append({key: space[key].draw(rng) for key in sorted(space)})
    return drawn


def candidate_config(path: Path, overrides: tuple[str, ...], values: Mapping[str, Any]) -> Config:
    """The config of a candidate: the file, the command's own ``--set``, then the candidate's values.

    Raises:
        ConfigError: a value is none the config may have.
    """
    return load_config(path, (*overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())))
