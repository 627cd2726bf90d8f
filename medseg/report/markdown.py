"""``report.md``: the report for a terminal or a Git forge, without figures and slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medseg.durable.markdown import code, plain, table
from medseg.report.charts import metric_label
from medseg.report.content import Content
from medseg.report.failures import KINDS
from medseg.report.groups import LESION_HEADS, UNSURE_HEADS, lesion_rows, unsure_rows
from medseg.report.judged import expected_calibration_error
from medseg.report.numbers import counted, interval, number
from medseg.report.sections import MAIN_METRICS

_MOST_LISTED = 50


def markdown(content: Content) -> str:
    """The report in Markdown. Text from outside can't become markup: what could is escaped."""
    scores = content.table
    cases = scores.metrics["cases"]
    lines = [f"# Scores of {plain(scores.name)}", "", f"{cases['scored']:,} of {cases['expected']:,} cases scored."]
    notes = [*scores.metrics.get("notes", ()), *content.facts.notes, *content.notes]
    lines += ["", *(f"- {plain(str(note))}" for note in notes)] if notes else []
    lines += [
        "",
        *_summary(content),
        "",
        *_confidence(content),
        *_beside(content),
        *_failures(content),
        *_definitions(content),
    ]
    lines += [*_identity(content), "## Left out", ""]
    lines += [f"- {plain(text)}" for text in (*content.left_out, "Figures and slices: they are in report.html.")]
    return "\n".join(lines) + "\n"


def _summary(content: Content) -> list[str]:
    scores = content.table
    shown = [name for name in MAIN_METRICS if any(scores.summary(c, name) for c in scores.class_names)]
    rows = []
    for name in scores.class_names:
        counts = scores.metrics["classes"][name]["counts"]
        cells = [str(counts["cases"]), str(counts.get("missed", 0)), str(counts.get("spurious", 0))]
        for metric in shown:
            found = scores.summary(name, metric)
            cells.append(_mean(found, "*" if found.get("n_imputed") else ""))
        rows.append([name, *cells])
    means = scores.metrics.get("mean_of_classes", {})
    if len(rows) > 1:
        rows.append(["mean of classes", "", "", "", *(_mean(means.get(name) or {}) for name in shown)])
    policy = (scores.metrics.get("definitions", {}).get("empty_masks") or {}).get("policy", "")
    return [
        *_table(["class", "cases", "missed", "spurious", *(metric_label(name) for name in shown)], rows),
        "",
        (
            f"Mean over cases with its 95 % interval. Empty masks: {plain(policy)}. A star marks means that count the worst "
            "value where a mask was missed or spurious."
        ),
    ]


def _mean(found: Mapping[str, Any], star: str = "") -> str:
    return f"{number(found.get('mean'))}{star} {interval(found, 'mean_low', 'mean_high')}".strip()


def _confidence(content: Content) -> list[str]:
    judged = content.judged
    said = [f"{plain(name)} {number(value)}" for name, value in judged.correlation.items() if value is not None]
    errors = [
        f"{plain(name)} {number(expected_calibration_error(curve))}" for name, curve in judged.curves.items() if curve
    ]
    inside, bounded = judged.covered
    lines = []
    if said:
        lines.append(
            f"Rank correlation of uncertainty with Dice (below 0: unsure where it is wrong): {', '.join(said)}."
        )
    if bounded:
        lines.append(f"{inside} of {bounded} masks lie above their bound.")
    if errors:
        lines.append(
            f"Expected calibration error of the voxels, {counted(judged.mapped, 'case')}: {', '.join(errors)}."
        )
    return ["## Confidence and calibration", "", *lines, ""] if lines else []


def _beside(content: Content) -> list[str]:
    """What only some scores have: entropy where masks are wrong, and lesions."""
    lines = []
    if content.unsure:
        lines += ["## Uncertainty where it is wrong", "", *_table(UNSURE_HEADS, unsure_rows(content)), ""]
    if rows := lesion_rows(content):
        lines += ["## Lesions", "", *_table(LESION_HEADS, rows), ""]
    return lines


def _failures(content: Content) -> list[str]:
    cases = content.table.metrics["cases"]
    lines = ["## Failures", ""]
    count, looked = content.suspects
    lines += [
        f"{counted(count, 'structure')} conspicuous, {looked:,} looked into; docs/report.md states the rules.",
        "",
    ]
    rows = [[case, "", "missing", "", "has no prediction"] for case in cases["missing"]]
    rows += [[case, "", "left over", "", "has a prediction but no reference"] for case in cases["extra"]]
    rows += [[case, "", "failed", "", str(reason)] for case, reason in cases["failed"].items()]
    order = list(KINDS)
    rows += [
        [failure.case, failure.class_name, failure.kind, number(failure.dice), failure.reason]
        for failure in sorted(content.failures, key=lambda failure: order.index(failure.kind))
    ]
    if rows:
        lines += [*_table(["case", "class", "kind", "Dice", "reason"], rows[:_MOST_LISTED]), ""]
    if len(rows) > _MOST_LISTED:
        lines += [f"And {len(rows) - _MOST_LISTED:,} more, in report.html.", ""]
    return lines


def _definitions(content: Content) -> list[str]:
    known = content.table.metrics.get("definitions", {})
    rows = [[metric_label(name), str(one.get("definition", ""))] for name, one in known.get("metrics", {}).items()]
    terms = [[name.replace("_", " "), text] for name, text in known.items() if isinstance(text, str)]
    return ["## Definitions", "", *_table(["metric", "definition"], rows), "", *_table(["convention", "is"], terms), ""]


def _identity(content: Content) -> list[str]:
    own = content.table.metrics.get("identity", {})
    rows = [[plain(name.replace("_", " ")), code(value)] for name, value in own.items() if isinstance(value, str)]
    versions = ", ".join(f"{name} {value}" for name, value in (own.get("versions") or {}).items())
    lines = ["## Data and model", "", *table(["scores", "is"], [*rows, ["versions", plain(versions)]]), ""]
    for title, facts in (("masks", content.facts.predictions), *(("model", model) for model in content.facts.models)):
        if facts:
            lines += [*_table([title, "is"], facts), ""]
    if content.facts.plan:
        lines += ["### Plan, with reasons", "", *_table(["value", "is", "because"], content.facts.plan), ""]
    return lines


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return table([plain(head) for head in heads], ([plain(cell) for cell in row] for row in rows))
