"""The report's sections in HTML, one function each; a section without content is left out, its link too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.report import charts
from medseg.report.content import Content
from medseg.report.failures import KINDS
from medseg.report.html import Child, Html, element, joined, table
from medseg.report.judged import expected_calibration_error
from medseg.report.numbers import NONE, counted, interval, number
from medseg.report.scores import ScoreTable
from medseg.report.svg import SERIES_COUNT

MAIN_METRICS = ("dice", "nsd", "hd95_mm", "assd_mm")
_METRIC_HEADS = (
    "class", "metric", "n", "mean", "95 % interval", "SD", "median", "quartiles", "range", "not imputed",
)  # fmt: skip
AGREEMENT_PLOTS = 12
MOST_CELLS = 40_000
"""Of the table of all rows: about a megabyte."""


def key(index: int) -> Html:
    """The class's colour as a small square."""
    return element("span", class_=f"key k{index % SERIES_COUNT + 1}", aria_hidden="true")


def section(identity: str, title: str, lead: Child, *content: Child) -> Html:
    """A section with its heading and a sentence under it."""
    heading = element("h2", title, id=f"{identity}-title")
    return element(
        "section", heading, element("p", lead, class_="lead") if lead else None, *content,
        id=identity, aria_labelledby=f"{identity}-title",
    )  # fmt: skip


def figures(drawn: Sequence[Html | None], captions: Sequence[str] = ()) -> Html | None:
    """Charts side by side, as many as the page is wide; None where there is none."""
    boxes = [
        element("figure", chart, element("figcaption", captions[i]) if i < len(captions) and captions[i] else None)
        for i, chart in enumerate(drawn)
        if chart is not None
    ]
    return element("div", boxes, class_="charts") if boxes else None


def summary(content: Content) -> Html:
    """Tiles, notes, and per class the means with their intervals."""
    scores, cases = content.table, content.table.metrics["cases"]
    means = scores.metrics.get("mean_of_classes", {})
    unscored = len(cases["missing"]) + len(cases["extra"]) + len(cases["failed"])
    tiles = [
        (number((means.get("dice") or {}).get("mean")), "mean Dice over classes"),
        (number((means.get("nsd") or {}).get("mean")), f"mean NSD{_tolerance(scores)}"),
        (f"{cases['scored']:,} / {cases['expected']:,}", "cases scored" + (f", {unscored} not" if unscored else "")),
        (f"{content.suspects[0]:,}", "conspicuous structures"),
    ]
    return section(
        "summary", "Summary", None,
        element("div", [element("div", element("b", value), element("span", word), class_="tile") for value, word in tiles],
                class_="tiles"),
        _notes(content),
        _summary_table(scores),
        element("p", _interval_words(scores), class_="note"),
        [element("p", note, class_="note") for note in _interval_notes(scores)],
        element("details", element("summary", "Every metric, per class"), _metric_table(scores)),
    )  # fmt: skip


def _tolerance(scores: ScoreTable) -> str:
    values = set((scores.metrics.get("tolerance_mm") or {}).values())
    return f" within {values.pop():g} mm" if len(values) == 1 else ""


def _notes(content: Content) -> Html | None:
    notes = [*content.table.metrics.get("notes", ()), *content.facts.notes, *content.notes]
    return element("ul", [element("li", str(note)) for note in notes], class_="notes") if notes else None


def _summary_table(scores: ScoreTable) -> Html:
    shown = [name for name in MAIN_METRICS if any(scores.summary(c, name) for c in scores.class_names)]
    heads = ["class", "cases", *(charts.metric_label(name) for name in shown), "volume, mean difference"]
    rows: list[list[Child]] = []
    for index, name in enumerate(scores.class_names):
        cells: list[Child] = [joined(key(index), name), _counts(scores.metrics["classes"][name]["counts"])]
        cells += [_cell(scores.summary(name, metric)) for metric in shown]
        volume, percent = (scores.summary(name, f"volume_difference_{unit}").get("mean") for unit in ("ml", "percent"))
        small = element("small", f"{number(percent)} %") if percent is not None else None
        cells.append(joined(f"{number(volume)} ml", small) if volume is not None else NONE)
        rows.append(cells)
    if len(rows) > 1:
        means = scores.metrics.get("mean_of_classes", {})
        rows.append(["mean of classes", "", *(_mean(means.get(name) or {}) for name in shown), ""])
    return table(heads, rows)


def _counts(counts: Mapping[str, int]) -> Html:
    words = [
        f"{counts[name]} {word}" for name, word in (("missed", "missed"), ("spurious", "spurious")) if counts.get(name)
    ]
    absent = [f"{counts['both_empty']} absent"] if counts.get("both_empty") else []
    small = element("small", ", ".join(words + absent), class_="warn" if words else None) if words or absent else None
    return joined(number(counts["cases"]), small)


def _mean(found: Mapping[str, Any]) -> Html:
    ends = interval(found, "mean_low", "mean_high")
    return joined(number(found.get("mean")), element("small", ends) if ends else None)


def _cell(found: Mapping[str, Any]) -> Html:
    star = "*" if found.get("n_imputed") else ""
    median = f"median {number(found.get('median'))}" if found.get("median") is not None else ""
    return joined(number(found.get("mean")) + star, element("small", interval(found, "mean_low", "mean_high")),
                  element("small", median))  # fmt: skip


def _interval_words(scores: ScoreTable) -> str:
    definitions = scores.metrics.get("definitions", {})
    policy = (definitions.get("empty_masks") or {}).get("policy", "")
    said = str(definitions.get("statistics", "")).strip()
    imputed = any(
        scores.summary(name, metric).get("n_imputed") for name in scores.class_names for metric in MAIN_METRICS
    )
    words = f"Mean over cases with its 95 % interval in brackets. {said[:1].upper()}{said[1:]}. Empty masks: {policy}."
    if imputed:
        words += " * counts the worst value where a mask was missed or spurious; the table below has the mean without."
    return words


def _interval_notes(scores: ScoreTable) -> list[str]:
    """What belongs beside the intervals, once each."""
    notes: dict[str, None] = {}
    for name in scores.class_names:
        for metric in MAIN_METRICS:
            for one in (scores.summary(name, metric).get("intervals") or {}).values():
                if isinstance(one, Mapping) and one.get("note"):
                    notes[str(one["note"])] = None
    return list(notes)


def _metric_table(scores: ScoreTable) -> Html:
    rows = [
        _metric_row(joined(key(index), name), metric, found)
        for index, name in enumerate(scores.class_names)
        for metric, found in scores.metrics["classes"][name]["metrics"].items()
        if isinstance(found, Mapping)
    ]
    together = scores.metrics.get("all_classes") or {}
    rows += [_metric_row(Html("all classes"), name, one) for name, one in together.items() if isinstance(one, Mapping)]
    return table(_METRIC_HEADS, rows, numeric_from=2)


def _metric_row(name: Html, metric: str, found: Mapping[str, Any]) -> list[Child]:
    imputed = f" ({found['n_imputed']} imputed)" if found.get("n_imputed") else ""
    median = interval(found, "median_low", "median_high")
    return [
        name,
        element("span", charts.metric_label(metric), class_="whole"),
        f"{found.get('n', 0)}{imputed}",
        number(found.get("mean")),
        interval(found, "mean_low", "mean_high") or NONE,
        number(found.get("sd")),
        joined(number(found.get("median")), element("small", median) if median else None),
        f"{number(found.get('q1'))} to {number(found.get('q3'))}",
        f"{number(found.get('minimum'))} to {number(found.get('maximum'))}",
        number(found.get("mean_defined")),
    ]


def distributions(content: Content) -> Html | None:
    """Box and strip plots."""
    drawn = [charts.distribution(content.table, metric) for metric in MAIN_METRICS]
    lead = (
        "Every dot is a case; the box spans the quartiles, its line is the median, whiskers reach to the last case within 1.5 "
        "interquartile ranges. The diamond under it is the mean with its 95 % interval."
    )
    most = charts.most_points(len(content.table.class_names))
    if any(len(content.table.of_class(name)) > most for name in content.table.class_names):
        lead += f" Of each class {most} dots are drawn, evenly by rank."
    boxes = figures(drawn)
    return section("distributions", "Distributions", lead, boxes) if boxes else None


def volumes(content: Content) -> Html | None:
    """Dice against volume, and Bland-Altman plots."""
    names = content.table.class_names
    plots = [charts.bland_altman(content.table, name, i) for i, name in enumerate(names[:AGREEMENT_PLOTS])]
    drawn = [charts.dice_by_volume(content.table), *plots]
    lead = (
        "Small structures cost more Dice for the same error at the border, so Dice is read against volume. The Bland-Altman "
        "plots show predicted minus reference volume: the line is the mean difference, dashes are the limits of agreement "
        f"(mean ± {charts.AGREEMENT:g} SD)."
    )
    if len(names) > AGREEMENT_PLOTS:
        lead += f" Bland-Altman plots of the first {AGREEMENT_PLOTS} of {len(names)} classes."
    boxes = figures(drawn)
    return section("volumes", "Volumes", lead, boxes) if boxes else None


def confidence(content: Content) -> Html | None:
    """Whether the model was unsure where it is wrong."""
    judged = content.judged
    correlation = [f"{name} {number(value)}" for name, value in judged.correlation.items() if value is not None]
    inside, bounded = judged.covered
    errors = [f"{name} {number(expected_calibration_error(curve))}" for name, curve in judged.curves.items() if curve]
    drawn = [
        charts.against_dice(
            judged.uncertainty, name="uncertainty", title="Uncertainty beside error", xlabel="uncertainty (mean entropy)",
            diagonal=False,
        ),
        charts.against_dice(
            judged.expected, name="expected", title="Expected Dice beside Dice", xlabel="expected without the truth",
            diagonal=True,
        ),
        charts.reliability(judged.curves),
    ]  # fmt: skip
    captions = [
        f"Rank correlation with Dice: {', '.join(correlation)}. Below 0 the model is unsure where it is wrong; near 0 "
        "uncertainty tells nothing."
        if correlation
        else "Too few cases for a rank correlation.",
        f"{inside} of {bounded} masks lie above their bound." if bounded else "",
        (
            f"Voxels in the box 12 mm around the structures, {counted(judged.mapped, 'case')}. Expected calibration error: "
            f"{', '.join(errors)}."
        ),
    ]
    boxes = figures(drawn, captions)
    lead = (
        "Is the model unsure where it is wrong? What inference said of each mask without its truth, beside the truth."
    )
    return section("confidence", "Confidence and calibration", lead, boxes) if boxes else None


def failure_list(content: Content) -> Html:
    """Failures by kind with their reasons, and the cases that have no score."""
    shown = {one.case_id: number_ for number_, one in enumerate(content.shown)}
    by_kind = {kind: [failure for failure in content.failures if failure.kind == kind] for kind in KINDS}
    parts: list[Child] = [_unscored(content.table)]
    counts = [[kind, str(len(found)), KINDS[kind]] for kind, found in by_kind.items() if found]
    if counts:
        parts.append(table(["kind", "structures", "rule"], counts, numeric_from=9, class_="wide"))
    for kind, found in by_kind.items():
        if not found:
            continue
        rows = [
            [_link(failure.case, shown), failure.class_name, number(failure.dice),
             joined(failure.reason, [element("small", said) for said in content.judged.said.get(failure.case, ())])]
            for failure in found
        ]  # fmt: skip
        parts += [
            element("h3", f"{kind[:1].upper()}{kind[1:]} ({len(found)})"),
            table(["case", "class", "Dice", "reason"], rows, numeric_from=9, class_="wide even"),
        ]
    count, looked = content.suspects
    if not count:
        parts.append(element("p", "No structure is conspicuous."))
    lead = (
        "Conspicuous are structures that are missed or spurious, have a Dice below 0.7, or lie below their class's quartiles "
        f"by more than 1.5 interquartile ranges: {count:,} here, {looked:,} looked into. One may have several kinds of failure."
    )
    return section("failures", "Failures", lead, *parts)


def _link(case: str, shown: Mapping[str, int]) -> Child:
    return element("a", case, href=f"#case-{shown[case]}") if case in shown else case


def _unscored(scores: ScoreTable) -> Html | None:
    cases = scores.metrics["cases"]
    rows = [[case, "missing", "has no prediction"] for case in cases["missing"]]
    rows += [[case, "left over", "has a prediction but no reference"] for case in cases["extra"]]
    rows += [[case, "failed", str(reason)] for case, reason in cases["failed"].items()]
    if not rows:
        return None
    more = element("p", f"And {len(rows) - 200:,} more; metrics.json names them.") if len(rows) > 200 else None
    return joined(element("h3", f"Not scored ({len(rows)})"),
                  table(["case", "what", "reason"], rows[:200], numeric_from=9, class_="wide even"), more)  # fmt: skip


def learning(content: Content) -> Html | None:
    """Learning curves."""
    drawn: list[Html | None] = []
    captions: list[str] = []
    for index, (name, history) in enumerate(content.facts.histories[:6]):
        for loss in (True, False):
            chart = charts.learning_curves(history, index, loss=loss)
            if chart is not None:
                drawn.append(chart)
                captions.append(f"Training of {name}." if len(content.facts.histories) > 1 else "")
    boxes = figures(drawn, captions)
    return (
        section("learning", "Training", "Learning curves of the model that made the masks.", boxes) if boxes else None
    )


def all_rows(content: Content) -> Html:
    """The table of all cases."""
    scores = content.table
    most = max(1, MOST_CELLS // (len(scores.columns) + 3))
    rows = sorted(scores.rows, key=lambda row: row.dice if row.dice is not None else 2.0)[:most]
    cells = [
        [row.case, row.class_name, row.situation, *(_exact(row.values[name]) for name in scores.columns)]
        for row in rows
    ]
    lead = f"The {len(rows):,} rows with the lowest Dice" if len(rows) < len(scores.rows) else f"All {len(rows):,} rows"
    heads = ["case", "class", "situation", *scores.columns]
    return section(
        "rows", "All rows", f"{lead} of cases.csv, lowest Dice first. Empty where a metric is undefined.",
        element("details", element("summary", "Show the table"),
                table(heads, cells, numeric_from=3, class_="sortable")),
    )  # fmt: skip


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
