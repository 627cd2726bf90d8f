"""Scores in words and few numbers, for someone who looks at a run: how good, on what, and where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medseg.evaluation.aggregate import mean_of_classes
from medseg.evaluation.case import ClassScores
from medseg.evaluation.report import Scores, number_words

_HEADS = ("class", "Dice", "95 % interval", "NSD", "HD95 mm", "cases", "missed", "spurious")
_HEADLINE = ("dice", "nsd", "hd95_mm")


def headline(scores: Scores) -> dict[str, float]:
    """The few numbers by which runs are compared: ``dice``, ``nsd``, ``hd95_mm`` over classes, and Dice per class.

    Returns:
        ``dice`` (the mean over classes), ``dice_low`` and ``dice_high`` (its 95 % interval), ``dice/<class>``,
        ``dice_low/<class>`` and ``dice_high/<class>``, and so on; without the undefined.
    """
    found: dict[str, float] = {}
    means = mean_of_classes(scores.classes)
    for name in _HEADLINE:
        mean = means[name]["mean"]
        if isinstance(mean, float):
            found[name] = mean
    ends = {"dice_low": means["dice"].get("mean_low"), "dice_high": means["dice"].get("mean_high")}
    found |= {name: value for name, value in ends.items() if isinstance(value, float)}
    for one in scores.classes:
        dice = one.metrics["dice"]
        values = {"dice": dice.mean, "dice_low": dice.mean_low, "dice_high": dice.mean_high}
        found |= {f"{name}/{one.class_name}": value for name, value in values.items() if value is not None}
    return found


def score_table(scores: Scores) -> list[Sequence[str]]:
    """Heads, one row per class, and their mean where there are several; cells as text, "-" where undefined."""
    rows: list[Sequence[str]] = [_HEADS]
    for one in scores.classes:
        dice = one.metrics["dice"]
        interval = _interval(dice.mean_low, dice.mean_high)
        others = (number_words(one.metrics[name].mean) for name in _HEADLINE[1:])
        counts = (one.counts["cases"], one.counts["missed"], one.counts["spurious"])
        rows.append((one.class_name, number_words(dice.mean), interval, *others, *map(str, counts)))
    if len(scores.classes) > 1:
        means = mean_of_classes(scores.classes)
        dice_mean, nsd, hd95 = (number_words(means[name]["mean"]) for name in _HEADLINE)
        ends = _interval(means["dice"].get("mean_low"), means["dice"].get("mean_high"))
        rows.append(("mean of classes", dice_mean, ends, nsd, hd95, "", "", ""))
    return rows


def worst_table(scores: Scores, *, most: int = 5) -> list[Sequence[str]]:
    """Heads and the cases with the lowest mean Dice, the worst first; heads alone where no case has one."""
    names = [one.class_name for one in scores.classes]
    heads = ("case", "mean Dice", *names) if len(names) > 1 else ("case", "Dice")
    rows: list[Sequence[str]] = [heads]
    for case_id, mean in by_dice(scores.rows)[:most]:
        dices = {row.class_name: row.values["dice"] for row in scores.rows[case_id]}
        each = (number_words(dices.get(name)) for name in names) if len(names) > 1 else ()
        rows.append((case_id, number_words(mean), *each))
    return rows


def by_dice(rows: Mapping[str, Sequence[ClassScores]]) -> list[tuple[str, float]]:
    """(case, mean Dice over its classes), the worst first; cases without a defined Dice are left out."""
    found = [(case_id, _mean_dice(own)) for case_id, own in rows.items()]
    known = [(case_id, mean) for case_id, mean in found if mean is not None]
    return sorted(known, key=lambda pair: (pair[1], pair[0]))


def case_words(rows: Sequence[ClassScores]) -> str:
    """``Dice 0.713 (anterior 0.680, posterior 0.746)``."""
    each = ", ".join(f"{row.class_name} {_short(row.values['dice'])}" for row in rows)
    return f"Dice {_short(_mean_dice(rows))}" + (f" ({each})" if len(rows) > 1 else "")


def _interval(low: object, high: object) -> str:
    return f"{number_words(low)} to {number_words(high)}" if isinstance(low, float) and isinstance(high, float) else "-"


def _mean_dice(rows: Sequence[ClassScores]) -> float | None:
    known = [value for row in rows if (value := row.values["dice"]) is not None]
    return sum(known) / len(known) if known else None


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
