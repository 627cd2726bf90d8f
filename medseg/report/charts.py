"""The report's figures, drawn by matplotlib. Every function gives an inline SVG, or None where there is nothing to draw."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.report.html import Html
from medseg.report.scores import ScoreTable
from medseg.report.svg import GRID, INK, MUTED, SURFACE, drawing, inline_svg, series

WIDTH, _HEIGHT = 5.0, 2.9
MOST_POINTS = 300
"""Of a class in one figure: more can't be told apart, and would take megabytes."""
_POINTS_OF_ALL = 6000
_LEAST_POINTS = 12
_NAME_CHARACTERS = 26
_MOST_IN_LEGEND = 12
_LOSS = re.compile(r"\bloss$", re.IGNORECASE)  # a class may be called hypoglossus
_SIGNS = {1: "+", -1: "\N{MINUS SIGN}"}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
AGREEMENT = 1.96
"""Standard deviations from the mean difference within which 95 % of normal differences lie."""

LABELS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "nsd": "NSD",
    "hd95_mm": "HD95 (mm)",
    "hd_mm": "HD (mm)",
    "assd_mm": "ASSD (mm)",
    "volume_prediction_ml": "Volume, predicted (ml)",
    "volume_reference_ml": "Volume, reference (ml)",
    "volume_difference_ml": "Volume difference (ml)",
    "volume_difference_percent": "Volume difference (%)",
}


def metric_label(name: str) -> str:
    """How a metric is called in tables and figures; a new one by its column's name."""
    return LABELS.get(name, name)


def short(name: str) -> str:
    """A class name that fits beside an axis."""
    return name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…"


def most_points(classes: int) -> int:
    """Of a class in one figure of so many classes: 300, fewer where there are more than 20."""
    return max(_LEAST_POINTS, min(MOST_POINTS, _POINTS_OF_ALL // max(1, classes)))


def some(values: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the sorted values, evenly by rank, the smallest and the largest among them."""
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(k * (len(ordered) - 1) / (most - 1))] for k in range(most)]


def distribution(table: ScoreTable, metric: str) -> Html | None:
    """Per class every case as a dot, over the quartiles' box with whiskers to 1.5 IQR, and the mean with its interval."""
    names = table.class_names
    values = [table.values(name, metric) for name in names]
    if not any(values):
        return None
    with drawing(WIDTH, 0.75 + 0.44 * len(names)) as figure:
        axes = figure.subplots()
        for place, (name, own) in enumerate(zip(names, values, strict=True)):
            if own:
                _box(axes, place, own, series(place), most_points(len(table.class_names)))
                _mean_mark(axes, place, table.summary(name, metric))
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_title(metric_label(metric))
        axes.locator_params(axis="x", nbins=6)
        means = [mean for name in names if (mean := table.summary(name, metric).get("mean")) is not None]
        _limits(axes, [*means, *(value for own in values for value in own)], shares=metric in ("dice", "nsd", "iou"))
        return inline_svg(figure, f"box-{metric.replace('_', '-')}", f"{metric_label(metric)} of every case, per class")


def _limits(axes: Any, values: Sequence[float], *, shares: bool) -> None:
    low, high = min(values), max(values)
    if shares:
        # Full range unless all of it would be empty.
        axes.set_xlim((0.0 if low < 0.5 else math.floor(low * 10 - 0.3) / 10) - 0.01, 1.01)
    elif low >= 0:
        axes.set_xlim(-0.02 * max(high, 1e-9), 1.05 * max(high, 1e-9))


def _box(axes: Any, place: int, values: Sequence[float], colour: str, most: int) -> None:
    q1, median, q3 = (float(q) for q in np.percentile(values, (25, 50, 75)))
    reach = 1.5 * (q3 - q1)
    low = min((v for v in values if v >= q1 - reach), default=q1)
    high = max((v for v in values if v <= q3 + reach), default=q3)
    axes.barh(place, q3 - q1, left=q1, height=0.52, color=colour, alpha=0.22, zorder=2)
    axes.barh(place, q3 - q1, left=q1, height=0.52, fill=False, edgecolor=colour, linewidth=1, zorder=3)
    axes.hlines([place, place], [low, q3], [q1, high], color=colour, linewidth=1, zorder=2)
    axes.vlines(median, place - 0.26, place + 0.26, color=colour, linewidth=2.2, zorder=4)
    shown = some(values, most)
    spread = [place + 0.36 * (_corput(k) - 0.5) for k in range(len(shown))]
    axes.plot(shown, spread, "o", color=colour, markersize=3.4, alpha=0.8, markeredgewidth=0, zorder=5)


def _corput(index: int) -> float:
    """The ``index``-th number of van der Corput's sequence: even, and the same in every report."""
    result, base = 0.0, 0.5
    index += 1
    while index:
        result, index, base = result + base * (index & 1), index >> 1, base / 2
    return result


def _mean_mark(axes: Any, place: int, summary: Mapping[str, Any]) -> None:
    mean, low, high = (summary.get(key) for key in ("mean", "mean_low", "mean_high"))
    if mean is None:
        return
    if low is not None and high is not None:
        axes.hlines(place + 0.37, low, high, color=INK, linewidth=1.4, zorder=6)
    axes.plot([mean], [place + 0.37], "D", color=INK, markersize=4, markeredgewidth=0, zorder=7)


def dice_by_volume(table: ScoreTable) -> Html | None:
    """Dice of every case against its reference's volume, on a logarithmic axis."""
    drawn = False
    with drawing(WIDTH, _HEIGHT) as figure:
        axes = figure.subplots()
        for index, name in enumerate(table.class_names):
            points = [(row.values.get("volume_reference_ml"), row.dice) for row in table.of_class(name)]
            known = [(volume, dice) for volume, dice in points if volume and dice is not None]
            if known:
                drawn = True
                _scatter(axes, some(known, most_points(len(table.class_names))), index, name)
        if not drawn:
            return None
        axes.set_xscale("log")
        _plain_log_ticks(axes)
        axes.set_xlabel("volume in the reference (ml)")
        axes.set_ylabel("Dice")
        axes.set_ylim(-0.03, 1.03)
        _legend(axes, len(table.class_names))
        axes.set_title("Dice against volume")
        return inline_svg(figure, "volume", "Dice of every case against the volume of its reference")


def _plain_log_ticks(axes: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, thinned to the powers where there are many, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_xlim()
    wide = math.log10(high / low) > 2.5
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _scatter(axes: Any, points: Sequence[tuple[float, float]], index: int, name: str) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(
        x, y, _MARKERS[index % len(_MARKERS)], color=series(index), markersize=5, alpha=0.8,
        markeredgecolor=SURFACE, markeredgewidth=0.5, label=short(name), zorder=3,
    )  # fmt: skip


def _legend(axes: Any, count: int, **kwargs: Any) -> None:
    if 1 < count <= _MOST_IN_LEGEND:
        axes.legend(framealpha=0.85, handletextpad=0.3, borderpad=0.4, **kwargs)


def bland_altman(table: ScoreTable, class_name: str, index: int) -> Html | None:
    """Predicted minus reference volume against the mean of the two, with the mean difference and the limits of agreement."""
    pairs = [
        (row.values.get("volume_prediction_ml"), row.values.get("volume_reference_ml"))
        for row in table.of_class(class_name)
    ]
    known = [(p, r) for p, r in pairs if p is not None and r is not None and (p or r)]
    if len(known) < 2:
        return None
    difference = [p - r for p, r in known]
    bias, spread = float(np.mean(difference)), float(np.std(difference, ddof=1))
    middle = [(p + r) / 2 for p, r in known]
    limit = AGREEMENT * spread
    # At least 2 % of the volumes up and down: differences of rounding would fill the plot otherwise.
    reach = 1.2 * max(limit, *(abs(one - bias) for one in difference), 0.02 * max(middle))
    with drawing(WIDTH, _HEIGHT) as figure:
        axes = figure.subplots()
        _scatter(axes, some(list(zip(middle, difference, strict=True)), MOST_POINTS), index, class_name)
        axes.axhline(0, color=GRID, linewidth=1.2, zorder=1)
        lines = [(bias, "-"), (bias + limit, "--"), (bias - limit, "--")]
        for value, style in lines:
            axes.axhline(value, color=INK, linestyle=style, linewidth=1, zorder=2)
        if limit < _LABEL_SHARE * reach:
            _beside(axes, bias, f"{_signed(bias)}\n\N{PLUS-MINUS SIGN} {_plain(limit)}")
        else:
            _beside(axes, bias, f"mean\n{_signed(bias)}")
            for sign in (1, -1):
                _beside(axes, bias + sign * limit, f"{_SIGNS[sign]}{AGREEMENT:g} SD\n{_signed(bias + sign * limit)}")
        axes.set_ylim(bias - reach, bias + reach)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel("mean of both volumes (ml)")
        axes.set_ylabel("predicted \N{MINUS SIGN} reference (ml)")
        axes.set_title(short(class_name))
        label = f"Bland-Altman plot of {class_name}: mean difference {bias:.3g} ml, SD {spread:.3g} ml"
        return inline_svg(figure, f"agreement-{index}", label)


def _beside(axes: Any, value: float, text: str) -> None:
    """Text at the right of the plot, at a height."""
    axes.annotate(
        text, (1, value), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
        ha="left", va="center", fontsize=8, color=INK,
    )  # fmt: skip


def _signed(value: float) -> str:
    size = _plain(value)
    return size if size == "0" else f"{_SIGNS[int(math.copysign(1, value))]}{size}"


def _plain(value: float) -> str:
    """Three digits that matter; what is below rounding is 0."""
    return f"{abs(value):.3g}" if abs(value) > _ROUNDING else "0"


_ROUNDING = 1e-9
_LABEL_SHARE = 0.25
"""Of half the plot's height, below which two labels of two lines would overlap."""
Points = Mapping[str, Sequence[tuple[float, float]]]


def against_dice(points: Points, *, name: str, title: str, xlabel: str, diagonal: bool) -> Html | None:
    """What was said of each mask without its truth, against its Dice.

    Args:
        points: class name to (said, Dice) pairs.
        name: of the figure.
        title: over it.
        xlabel: what was said.
        diagonal: whether it should equal Dice; then a line says so.
    """
    if not any(points.values()):
        return None
    with drawing(WIDTH, _HEIGHT) as figure:
        axes = figure.subplots()
        if diagonal:
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", zorder=1)
        for index, (class_name, own) in enumerate(points.items()):
            if own:
                _scatter(axes, some(own, most_points(len(points))), index, class_name)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("Dice")
        lowest = min(y for own in points.values() for _, y in own)
        floor = 0.0 if lowest < 0.5 else math.floor(lowest * 10 - 0.3) / 10
        axes.set_ylim(floor - 0.02, 1.02)
        if diagonal:
            axes.set_xlim(floor - 0.02, 1.02)
        _legend(axes, len(points))
        axes.set_title(title)
        return inline_svg(figure, name, title)


def reliability(curves: Mapping[str, Sequence[tuple[float, float, int]]]) -> Html | None:
    """How often a voxel is of the class, against the probability that the network gave it.

    Args:
        curves: class name to (mean probability, share that is of the class, voxels) per bin.
    """
    if not any(curves.values()):
        return None
    with drawing(WIDTH, _HEIGHT) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", zorder=1)
        for index, (name, bins) in enumerate(curves.items()):
            x, y = [one[0] for one in bins], [one[1] for one in bins]
            axes.plot(x, y, color=series(index), linewidth=1.5, zorder=2)
            _scatter(axes, list(zip(x, y, strict=True)), index, name)
        axes.set_xlabel("probability given")
        axes.set_ylabel("share that is of the class")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        _legend(axes, len(curves), loc="upper left")
        axes.set_title("Calibration of voxels")
        return inline_svg(figure, "reliability", "Share of voxels that are of the class, against their probability")


def learning_curves(history: Mapping[str, Sequence[tuple[int, float]]], index: int, *, loss: bool) -> Html | None:
    """One panel of a training's curves: the losses, or the scores."""
    curves = {name: own for name, own in history.items() if bool(_LOSS.search(name)) == loss and own}
    if not curves:
        return None
    with drawing(WIDTH, _HEIGHT) as figure:
        axes = figure.subplots()
        for place, (name, points) in enumerate(sorted(curves.items())):
            steps, values = zip(*sorted(points), strict=True)
            marker = _MARKERS[place % len(_MARKERS)] if len(points) < 40 else None
            axes.plot(
                steps, values, color=series(place), linewidth=1.6, marker=marker, markersize=4,
                markeredgecolor=SURFACE, markeredgewidth=0.5, label=short(name),
            )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("loss" if loss else "score")
        if not loss and all(0 <= value <= 1 for own in curves.values() for _, value in own):
            axes.set_ylim(-0.02, 1.02)
        if (len(curves) > 1 or not loss) and len(curves) <= _MOST_IN_LEGEND:
            axes.legend(framealpha=0.85, handletextpad=0.5, borderpad=0.4, loc="upper right" if loss else "lower right")
        axes.set_title("Training loss" if loss else "Validation scores")
        return inline_svg(figure, f"learning-{index}-{'loss' if loss else 'score'}", "Learning curves over steps")
