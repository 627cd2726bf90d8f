"""The files and the table of scores. Equal scores give equal bytes: sorted, floats as repr, no times and no paths."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.durable import sha256_bytes, sha256_json, write_json, write_text
from medseg.evaluation.aggregate import ClassSummary, Summary, mean_of_classes, summarise_whole
from medseg.evaluation.case import ClassScores
from medseg.evaluation.identity import code_sha256, definitions, versions
from medseg.evaluation.lesions import pooled_lesions
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.subgroups import Groups, summarise_groups

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 2
_COUNTS = ("true_positive", "false_positive", "false_negative")
_SHOWN = (("dice", "Dice"), ("nsd", "NSD"), ("hd95_mm", "HD95 mm"), ("assd_mm", "ASSD mm"))
_EMPTY_WORDS = (("missed", "missed"), ("spurious", "spurious"), ("both_empty", "absent"))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Everything that was found out about a set of cases.

    Attributes:
        name: of the set, e.g. "fold_0".
        rows: case id to one row per class, scored cases only.
        classes: summary per class.
        missing: cases with a reference and no prediction.
        extra: predictions without a reference.
        failed: case id to why it could not be scored.
        inputs: case id to (prediction's, reference's sha256).
        protocol: what they were scored with.
        notes: sentences a reader should know.
        patients: case id to its patient; empty where each case is another's, or nobody knows.
        groups: column to case id to its value, see ``medseg.evaluation.subgroups``.
        raters: what ``medseg.evaluation.raters`` found, as plain values; empty where no case has several references.
        whole: case id to the metrics of all its classes together.
    """

    name: str
    rows: Mapping[str, Sequence[ClassScores]]
    classes: Sequence[ClassSummary]
    missing: Sequence[str]
    extra: Sequence[str]
    failed: Mapping[str, str]
    inputs: Mapping[str, tuple[str, str]]
    protocol: Protocol
    notes: Sequence[str] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    groups: Groups = field(default_factory=dict)
    raters: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def expected(self) -> int:
        """Cases with a reference."""
        return len(self.rows) + len(self.missing) + len(self.failed)

    def identity(self) -> dict[str, str]:
        """One hash over all scored predictions and one over all references."""
        return {
            "predictions": sha256_json({case: pair[0] for case, pair in self.inputs.items()}),
            "references": sha256_json({case: pair[1] for case, pair in self.inputs.items()}),
        }

    @property
    def clusters(self) -> dict[str, str]:
        """Scored case to the first scored case of its patient, which stands for the patient without a name of its own."""
        firsts: dict[str, str] = {}
        return {case: firsts.setdefault(self.patients.get(case, case), case) for case in sorted(self.rows)}

    def by_group(self) -> dict[str, Any]:
        """Summaries per subgroup, see ``medseg.evaluation.subgroups``."""
        protocol = self.protocol
        return summarise_groups(self.rows, self.groups, protocol.class_names, protocol.policy, self.clusters)

    @property
    def complete(self) -> bool:
        """Whether every expected case was scored and nothing was left over."""
        return not (self.missing or self.extra or self.failed)


def write_scores(scores: Scores, folder: Path) -> None:
    """Writes ``cases.csv``, then ``metrics.json`` (which holds its hash), each atomically."""
    table = cases_csv(scores)
    write_text(folder / "cases.csv", table)
    write_json(folder / "metrics.json", metrics_json(scores, sha256_bytes(table.encode())))


def cases_csv(scores: Scores) -> str:
    """One line per case and class: situation, voxel counts, every metric; an undefined value is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("case", "patient", "class", "situation", *_COUNTS, "image_diagonal_mm", *scores.protocol.metrics))
    for row in case_table(scores):
        writer.writerow(["" if value is None else value for value in row.values()])
    return stream.getvalue()


def case_table(scores: Scores) -> list[dict[str, str | int | float | None]]:
    """The rows of ``cases.csv`` as dictionaries, sorted by case, classes in the order of the labels."""
    clusters = scores.clusters
    return [
        {
            "case": case_id,
            "patient": clusters[case_id],
            "class": row.class_name,
            "situation": row.situation,
            **{name: getattr(row, name) for name in _COUNTS},
            "image_diagonal_mm": row.diagonal_mm,
            **{name: row.values[name] for name in scores.protocol.metrics},
        }
        for case_id in sorted(scores.rows)
        for row in scores.rows[case_id]
    ]


def metrics_json(scores: Scores, cases_csv_sha256: str) -> dict[str, Any]:
    """The content of ``metrics.json``; docs/metrics.md describes it."""
    return {
        "format": FORMAT,
        "name": scores.name,
        "cases": {
            "expected": scores.expected,
            "scored": len(scores.rows),
            "patients": len(set(scores.clusters.values())),
            "missing": sorted(scores.missing),
            "extra": sorted(scores.extra),
            "failed": dict(sorted(scores.failed.items())),
        },
        "labels": {name: list(values) for name, values in scores.protocol.labels.items()},
        "ignore": scores.protocol.ignore,
        "tolerance_mm": dict(scores.protocol.tolerance_mm),
        "classes": {
            summary.class_name: {
                "counts": dict(summary.counts),
                "metrics": {name: found.plain() for name, found in summary.metrics.items()},
            }
            for summary in scores.classes
        },
        "mean_of_classes": mean_of_classes(scores.classes),
        "all_classes": summarise_whole(scores.whole, scores.patients),
        "groups": scores.by_group(),
        "raters": dict(scores.raters),
        **({"lesions": pooled} if (pooled := pooled_lesions(scores.rows, scores.protocol.class_names)) else {}),
        "notes": list(scores.notes),
        "definitions": definitions(scores.protocol.policy, scores.protocol.metrics),
        "identity": {
            **{f"{name}_sha256": value for name, value in scores.identity().items()},
            "references": {case: pair[1] for case, pair in sorted(scores.inputs.items())},
            "cases_csv_sha256": cases_csv_sha256,
            "code_sha256": code_sha256(),
            "versions": versions(),
        },
    }


def flat_metrics(scores: Scores) -> dict[str, float]:
    """Means for a tracker: ``<class>/<metric>``, ``mean/<metric>``, ``all_classes/<metric>`` and how many cases were scored.

    Without the undefined.
    """
    found: dict[str, float] = {"cases/scored": len(scores.rows), "cases/expected": scores.expected}
    for summary in scores.classes:
        for name, metric in summary.metrics.items():
            if metric.mean is not None:
                found[f"{summary.class_name}/{name}"] = metric.mean
    for name, mean in mean_of_classes(scores.classes).items():
        if isinstance(mean["mean"], float):
            found[f"mean/{name}"] = mean["mean"]
    for name, together in summarise_whole(scores.whole).items():
        if together["mean"] is not None:
            found[f"all_classes/{name}"] = together["mean"]
    return found


def terminal_table(scores: Scores) -> Table:
    """The means per class for a terminal: mean ± SD over the cases that count, and how often a mask was empty."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=_title(scores), title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left", pad_edge=False
    )
    table.add_column("class", min_width=8, overflow="fold")
    for _, title in _SHOWN:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("cases", justify="right")
    for summary in scores.classes:
        table.add_row(summary.class_name, *(_cell(summary, name) for name, _ in _SHOWN), _count_words(summary))
    if len(scores.classes) > 1:
        means = mean_of_classes(scores.classes)
        table.add_section()
        table.add_row("mean", *(number_words(means[name]["mean"]) for name, _ in _SHOWN))
    table.caption = _caption(scores)
    return table


def _title(scores: Scores) -> str:
    return f"{scores.name}: {len(scores.rows)} of {scores.expected} cases scored"


def _count_words(summary: ClassSummary) -> str:
    # "absent" is both_empty in one word that fits a terminal.
    empty = ((summary.counts[key], word) for key, word in _EMPTY_WORDS)
    return "\n".join([str(summary.counts["cases"]), *(f"{count} {word}" for count, word in empty if count)])


def _cell(summary: ClassSummary, name: str) -> str:
    found = summary.metrics[name]
    spread = f"±{found.sd:.2g}" if found.sd is not None else ""
    return f"{number_words(found.mean)}{spread}{'*' if found.n_imputed else ''}"


def number_words(value: object) -> str:
    """A score for people: four decimals of a small one, two of a distance; "-" of what is no number."""
    if not isinstance(value, float):
        return "-"
    return f"{value:.4f}" if abs(value) < 2 else f"{value:.2f}"


def _caption(scores: Scores) -> str:
    tolerances = scores.protocol.tolerance_mm
    shown = (
        f"{next(iter(tolerances.values())):g} mm"
        if len(set(tolerances.values())) == 1
        else ", ".join(f"{value:g} mm ({name})" for name, value in tolerances.items())
    )
    text = f"Mean ± SD over cases; NSD within {shown}; empty masks: {scores.protocol.policy.name}."
    if any(summary.metrics[name].n_imputed for summary in scores.classes for name, _ in _SHOWN):
        text += " * counts the worst value where a mask was missed or spurious; metrics.json has the mean without."
    return text


def score_lines(scores: Scores) -> list[str]:
    """What belongs under the table: intervals of the mean Dice and their notes, the worst subgroups, what raters agree on."""
    return [*interval_lines(scores.classes), *_group_lines(scores), *_rater_lines(scores)]


def interval_lines(classes: Sequence[ClassSummary], metric: str = "dice") -> list[str]:
    """The 95 % interval of each class's mean, and what must be said beside it; no line where no class has one."""
    found = {
        one.class_name: one.metrics[metric]
        for one in classes
        if one.metrics[metric].intervals and one.metrics[metric].n > 1
    }
    if not found:
        return []
    patients = max(own.intervals["mean"]["patients"] for own in found.values())
    title = dict(_SHOWN).get(metric, metric)
    words = ", ".join(f"{name} {_interval_words(own)}" for name, own in found.items())
    mean = mean_of_classes(classes)[metric]
    if len(found) > 1 and mean["mean_low"] is not None:
        words += f", mean of classes {number_words(mean['mean_low'])} to {number_words(mean['mean_high'])}"
    notes: dict[str, list[str]] = {}
    for name, own in found.items():
        if note := own.intervals["mean"]["note"]:
            notes.setdefault(note, []).append(name)
    lines = [f"{title}, 95 % interval of the mean over {patients} patients: {words}."]
    return [*lines, *(f"{', '.join(names)}: {note}." for note, names in notes.items())]


def _interval_words(found: Summary) -> str:
    if found.mean_low is None:
        return "none"
    without = found.intervals["mean"]["if_none_fails"]
    text = f"{number_words(found.mean_low)} to {number_words(found.mean_high)}"
    return (
        text
        if without is None
        else f"{text} ({number_words(without[0])} to {number_words(without[1])} if none ever fails)"
    )


def _group_lines(scores: Scores) -> list[str]:
    """Where a column makes groups, the one with the worst mean Dice of each class."""
    lines = []
    for column, own in scores.by_group().items():
        words = [
            f"{name} {worst['dice']['value']} {number_words(worst['dice']['mean'])} (best {worst['dice']['best']} "
            f"{number_words(worst['dice']['best_mean'])})"
            for name, worst in own["worst"].items()
            if "dice" in worst
        ]
        if words:
            lines.append(f"Worst Dice by {column}, of {len(own['values'])}: {', '.join(words)}.")
    return lines


def _rater_lines(scores: Scores) -> list[str]:
    """What two raters get against each other, and the masks against the raters."""
    if not scores.raters:
        return []
    words = (
        f"{name} {number_words(own['dice']['human']['mean'])} (masks {number_words(own['dice']['model']['mean'])})"
        for name, own in scores.raters["classes"].items()
        if "dice" in own
    )
    return [f"Dice of one rater against another, {scores.raters['cases']} cases: {', '.join(words)}."]
