"""Labels and tolerances as the command line spells them: ``liver=1,tumour=2+3``."""

from __future__ import annotations

import math

from medseg.errors import UsageError

_BACKGROUND = "background"


def parse_labels(text: str, *, ignore: int | None = None) -> dict[str, tuple[int, ...]]:
    """Class name to file values, background first.

    Args:
        text: ``name=value`` or ``name=value+value``, separated by commas; value 0 is the background unless a name has it.
        ignore: a value that no class may have.

    Raises:
        UsageError: a part is no such pair, a name comes twice, or two names have the same values.
    """
    labels: dict[str, tuple[int, ...]] = {}
    taken: dict[int, str] = {} if ignore is None else {ignore: "--ignore"}
    for name, values in _pairs(text, "--labels"):
        numbers = tuple(_whole(value, name) for value in values.split("+"))
        for number in numbers:
            if number in taken and not _may_share(numbers, labels.get(taken[number], (0,))):
                raise UsageError(f"--labels: {name} has the value {number} of {taken[number]}, expected one of its own")
            taken.setdefault(number, name)
        labels[name] = numbers
    background = taken.get(0, _BACKGROUND)
    if 0 not in taken and _BACKGROUND in labels:
        raise UsageError(f"--labels: {_BACKGROUND} is {labels[_BACKGROUND][0]}, expected it to have the value 0")
    return {background: labels.pop(background, (0,)), **labels}


def _may_share(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Regions may overlap (whole=1+2,core=2); labels of the same values, or of the background's, are a slip."""
    return set(one) != set(other) and 0 not in one and 0 not in other


def parse_tolerance(text: str) -> float | dict[str, float]:
    """One number of mm for all classes, or ``name=mm`` for each.

    Raises:
        UsageError: a number is none, or not above 0.
    """
    if "=" not in text:
        return _positive(text)
    return {name: _positive(value) for name, value in _pairs(text, "--tolerance")}


def _pairs(text: str, flag: str) -> list[tuple[str, str]]:
    pairs: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise UsageError(f"{flag}: has {part.strip()!r}, expected name=value, as in liver=1,tumour=2")
        if name in pairs:
            raise UsageError(f"{flag}: names {name} twice, expected each class once")
        pairs[name] = value
    return list(pairs.items())


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--labels: {name} is {text!r}, expected a whole number, or several as {name}=2+3") from None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"--tolerance: is {text!r}, expected a number of mm above 0, or name=mm for each class")
    return value
