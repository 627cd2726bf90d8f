"""``crossvalidation.json`` and ``.md``: the scores one may report, and which data decided what.

Equal results give equal bytes: no times, no paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.crossvalidation.decisions import Decision, Finding
from medseg.crossvalidation.stage import CrossValidation
from medseg.durable import write_json, write_text
from medseg.durable.markdown import text_table
from medseg.evaluation.aggregate import mean_of_classes, summarise
from medseg.evaluation.bootstrap import RESAMPLES
from medseg.evaluation.report import Scores, interval_lines

FORMAT = 1
_SHOWN = (("dice", "Dice"), ("nsd", "NSD"), ("hd95_mm", "HD95 mm"))


def write_report(result: CrossValidation, output: Path) -> None:
    """Writes both files, each atomically."""
    write_text(output / "crossvalidation.md", report_text(result))
    write_json(output / "crossvalidation.json", report_json(result))


def deciders(result: CrossValidation) -> dict[str, str]:
    """What was decided to which data decided it."""
    one = len(result.candidates) == 1
    others = "for each fold's reported scores by the other folds' out-of-fold masks, for the model by all folds'"
    return {
        "weights of each fold": "; ".join(result.trainings),
        "threshold": "none: the class with the highest score",
        "mirroring and overlap": "the config, before training; no data",
        "configuration": "the config: only one was compared" if one else others,
        "post-processing": others,
    }


_TABLE_NOTE = (
    "Mean ± SD over cases; the interval is the mean's, 95 %. Unprocessed are the masks of the chosen configuration as the "
    "networks made them."
)
CAVEAT = (
    "The out-of-fold masks of the other folds come from networks that had the scored fold among their training cases. A "
    "decision made on them is therefore not wholly blind to it; cross-validation inside cross-validation would be, at the cost "
    "of a training for every pair of folds."
)


def report_json(result: CrossValidation) -> dict[str, Any]:
    """The content of ``crossvalidation.json``."""
    return {
        "format": FORMAT,
        "manifest": {"name": result.place.manifest.name, "sha256": result.place.manifest.sha256},
        "folds": {str(fold): len(cases) for fold, cases in result.place.folds.items()},
        "configurations": [candidate.name for candidate in result.candidates],
        "decided_by": deciders(result),
        "caveat": CAVEAT,
        "bootstrap": {"resamples": RESAMPLES, "unit": "patient"},
        "scores": {"reported": _scores_json(result.reported), "unprocessed": _scores_json(result.plain)},
        "dice_by_fold": dice_by_fold(result),
        "model": {"sha256": result.model_sha256, **result.final.plain()},
        "quality": dict(result.quality),
        "decided_for_fold": {str(fold): decision.plain() for fold, decision in result.per_fold.items()},
    }


def _scores_json(scores: Scores) -> dict[str, Any]:
    return {
        "cases": {"expected": scores.expected, "scored": len(scores.rows)},
        "mean_of_classes": mean_of_classes(scores.classes),
        "classes": {one.class_name: {n: m.plain() for n, m in one.metrics.items()} for one in scores.classes},
        "identity": scores.identity(),
    }


def dice_by_fold(result: CrossValidation) -> dict[str, float | None]:
    """Fold to its reported mean Dice over classes; None where no case of it has one."""
    found: dict[str, float | None] = {}
    protocol, folds = result.reported.protocol, result.place.fold_of
    for fold in result.place.folds:
        rows = {case: rows for case, rows in result.reported.rows.items() if folds[case] == fold}
        mean = mean_of_classes(summarise(rows, protocol.class_names, protocol.policy))["dice"]["mean"]
        found[str(fold)] = mean if isinstance(mean, float) else None
    return found


def report_text(result: CrossValidation) -> str:
    """The content of ``crossvalidation.md``."""
    scores = result.reported
    by_fold = ", ".join(f"{fold}: {_number(mean)}" for fold, mean in dice_by_fold(result).items())
    lines = [
        f"# Cross-validation of {result.place.manifest.name}",
        "",
        _summary(result, by_fold),
        "",
        "## Scores to report",
        "",
        *_score_table(scores, result.plain),
        "",
        " ".join([_TABLE_NOTE, *interval_lines(scores.classes)[1:]]),
        "",
        "## Which data decided what",
        "",
        *text_table(("decided", "by"), deciders(result).items()),
        "",
        CAVEAT,
        "",
        "## The model",
        "",
        *_decision_lines(result.final),
        "",
        "## Decided for the reported scores of each fold",
        "",
        *text_table(
            ("fold", "configuration", "post-processing"),
            ((str(fold), one.choice.name, _steps_text(one)) for fold, one in result.per_fold.items()),
        ),
        "",
        *_quality_lines(result.quality),
    ]
    return "\n".join(lines)


def _summary(result: CrossValidation, by_fold: str) -> str:
    scores = result.reported
    return (
        f"{len(scores.rows)} of {scores.expected} cases scored, each by networks that did not train on it, in "
        f"{len(result.place.folds)} folds. Mean Dice over classes by fold: {by_fold}."
    )


def finding_lines(decision: Decision) -> list[str]:
    """One line per step that was considered: its effect on Dice, and whether it was adopted."""
    return [
        f"{_verdict(finding)} {finding.what}: Dice {_effect(finding)}{_note(finding)}" for finding in decision.steps
    ]


def _score_table(scores: Scores, plain: Scores) -> list[str]:
    unprocessed = {one.class_name: one.metrics["dice"].mean for one in plain.classes}
    rows = []
    for one in scores.classes:
        dice = one.metrics["dice"]
        cells = [f"{_number(one.metrics[name].mean)} ± {_number(one.metrics[name].sd)}" for name, _ in _SHOWN]
        interval = f"{_number(dice.mean_low)} to {_number(dice.mean_high)}"
        rows.append((one.class_name, *cells, interval, str(dice.n), _number(unprocessed[one.class_name])))
    means, before = mean_of_classes(scores.classes), mean_of_classes(plain.classes)
    cells = [_number(means[name]["mean"]) for name, _ in _SHOWN]
    interval = f"{_number(means['dice']['mean_low'])} to {_number(means['dice']['mean_high'])}"
    rows.append(("mean of classes", *cells, interval, "", _number(before["dice"]["mean"])))
    heads = ("class", *(title for _, title in _SHOWN), "Dice, interval", "cases", "Dice, unprocessed")
    return text_table(heads, rows)


def _decision_lines(decision: Decision) -> list[str]:
    lines = []
    if len(decision.choice.findings) > 1:
        rows = (
            (one.what, _number(one.after), "-" if one.effect is None else f"{one.effect} {one.note}", _verdict(one))
            for one in decision.choice.findings
        )
        lines += [*text_table(("configuration", "Dice", "difference", ""), rows), ""]
    else:
        lines += [f"Configuration: {decision.choice.name}.", ""]
    if not decision.steps:
        return [*lines, "Post-processing: none is considered for regions that overlap."]
    considered = (
        (one.what, _number(one.before), _number(one.after), f"{_effect(one)}{_note(one)}", _verdict(one))
        for one in decision.steps
    )
    lines += text_table(("post-processing considered", "Dice before", "after", "effect", ""), considered)
    text = (
        "A structure that neither mask has counts 1 in this table. Effects are out-of-fold, on the cases that decided; the "
        f"bootstrap draws patients, {RESAMPLES:,} times."
    )
    return [*lines, "", text]


def _quality_lines(quality: Mapping[str, Any]) -> list[str]:
    """What can be told of a mask without its truth; no line where nothing was calibrated."""
    if not quality:
        return []
    coverage, error = quality["coverage"], quality["mean_absolute_error"]
    text = (
        f"The Dice expected of a mask, by a calibration of the other folds, is off by {error['expected_dice']:.4f} on average "
        f"(the class' mean would be by {error['always_the_mean']:.4f}). Its bound promises {coverage['promised']:.0%} of masks "
        f"above it, and {coverage['found']:.1%} are. Looking at the riskiest fifth finds {quality['found_of_worst_tenth']:.0%} "
        f"of the worst tenth (chance: 20%; rank correlation over cases {quality['rank_correlation']:.2f}). See "
        "risk_coverage.png."
    )
    return ["## Quality without truth", "", text, ""]


def _steps_text(decision: Decision) -> str:
    return "; ".join(str(step) for step in decision.adopted) or "none"


def _verdict(finding: Finding) -> str:
    return "adopted" if finding.adopted else "left out"


def _effect(finding: Finding) -> str:
    effect = finding.effect
    if effect is not None and not (effect.better or effect.worse):
        return f"unchanged in all {effect.cases} cases"
    return str(effect)


def _note(finding: Finding) -> str:
    return f" ({finding.note})" if finding.note else ""


def _number(value: object) -> str:
    if not isinstance(value, float):
        return "-"
    return f"{value:.4f}" if abs(value) < 2 else f"{value:.2f}"
