"""What the audit has to say: findings with a score, ranked, and the rules that make them.

Scores are of one scale so that one list can hold all of them: 100 for a scan that is there twice in different folds, 90 in
one fold, 80 for what can't be right (a label on another grid, one label on two scans); below that a label's finding has the
number of robust deviations by which it stands out of its set, up to 70. From 3.5 on a case deserves a look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from medseg.audit.alternatives import Answers, robust_z
from medseg.audit.duplicates import Pair
from medseg.audit.shapes import Shape
from medseg.audit.sketch import Sketch

LOOK = 3.5
"""Score from which a case deserves a look."""
Kind = Literal[
    "leak", "duplicate", "alike", "same label", "grid", "unreadable", "swapped classes", "mirrored label", "moved label",
    "poor fit", "disagreement", "missing structure", "stray voxels", "volume", "position",
]  # fmt: skip
_MOVE_FLOOR, _MIRROR_FLOOR, _EXCHANGE_FLOOR, _FIT_FLOOR, _DICE_FLOOR = 0.05, 0.15, 0.15, 0.1, 0.02
_LABEL_CAP, _FIT_CAP, _SHAPE_CAP = 70.0, 30.0, 8.0
_USUAL = 0.8
"""A structure that so many of the labelled cases have is missed where it is absent."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to look at.

    Attributes:
        kind: what sort.
        cases: one case, or the two of a pair.
        score: how much it stands out; see the module.
        sentence: for people, without paths.
        evidence: the numbers behind it, plain values.
        also: sentences of what else stands out in the same case.
    """

    kind: Kind
    cases: tuple[str, ...]
    score: float
    sentence: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "kind": self.kind,
            "cases": list(self.cases),
            "score": round(self.score, 2),
            "sentence": self.sentence,
            "evidence": dict(self.evidence),
            "also": list(self.also),
        }


def ranked(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """One list, the highest score first; of one case's label findings the best leads and the others become its ``also``."""
    singles: dict[str, list[Finding]] = defaultdict(list)
    result = []
    for finding in findings:
        if len(finding.cases) == 1 and finding.kind not in ("grid", "unreadable"):
            singles[finding.cases[0]].append(finding)
        else:
            result.append(finding)
    for group in singles.values():
        first, *others = sorted(group, key=lambda finding: (-finding.score, finding.kind))
        also = tuple(finding.sentence for finding in others if finding.score >= LOOK)
        result.append(replace(first, also=also))
    return tuple(sorted(result, key=lambda finding: (-finding.score, finding.cases)))


def pair_findings(
    pairs: Sequence[Pair], folds: Mapping[str, int | None], patients: Mapping[str, str]
) -> Iterator[Finding]:
    """What duplicate and alike scans mean for the folds.

    Two scans that are merely alike and belong to one patient by the manifest are as they should be.
    """
    for pair in pairs:
        one, other = folds.get(pair.first), folds.get(pair.second)
        parted, same_patient = one != other, patients.get(pair.first) == patients.get(pair.second)
        if not pair.same_scan and same_patient:
            continue
        evidence = {
            "identical": pair.identical,
            "correlation": round(pair.correlation, 4),
            "move_mm": [round(v, 2) for v in pair.move_mm],
            "mirrored_axes": list(pair.mirrored),
            "folds": [one, other],
        }
        kind, score, sentence = _pair_sentence(pair, parted=parted)
        where = f"in folds {_fold(one)} and {_fold(other)}" if parted else f"both in fold {_fold(one)}"
        yield Finding(
            kind=kind, cases=(pair.first, pair.second), score=score, sentence=f"{sentence}, {where}", evidence=evidence
        )


def _fold(fold: int | None) -> str:
    return "none" if fold is None else str(fold)


def _pair_sentence(pair: Pair, *, parted: bool) -> tuple[Kind, float, str]:
    how = [f"correlation {pair.correlation:.2f}"]
    if pair.mirrored:
        how.append("mirrored " + " and ".join("xyz"[axis] for axis in pair.mirrored))
    if any(pair.move_mm):
        how.append(f"moved by {_mm(pair.move_mm)}")
    if pair.identical:
        return ("leak" if parted else "duplicate"), (100.0 if parted else 90.0), "every voxel is the same"
    if pair.same_scan:
        score = (99.0 if parted else 89.0) * pair.correlation
        return ("leak" if parted else "duplicate"), score, f"one scan in disguise ({', '.join(how)})"
    # Between a patient's two scans and two patients lies no sharp border: listed below all faults of single labels.
    return (
        "alike",
        (4.0 if parted else 2.0) + pair.correlation,
        f"alike, as two scans of one patient may be ({', '.join(how)})",
    )


def _mm(move_mm: Sequence[float]) -> str:
    """A move along the axes that it goes along; x runs to the right, y to the front, z up, in a picture x right and y down."""
    return ", ".join(f"{axis} {value:+.3g} mm" for axis, value in zip("xyz", move_mm, strict=True) if value)


def same_label_findings(pairs: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Equal labels on different scans."""
    for pair in pairs:
        yield Finding(kind="same label", cases=pair, score=80.0, sentence="one label on two different scans")


def grid_findings(sketches: Sequence[Sketch]) -> Iterator[Finding]:
    """Labels on another grid than their scan."""
    for sketch in sketches:
        if sketch.grid_fault is not None:
            sentence = f"the label's {sketch.grid_fault} of its scan"
            yield Finding(kind="grid", cases=(sketch.id,), score=80.0, sentence=sentence)


def fit_findings(answers: Mapping[str, Answers], names: Sequence[str]) -> Iterator[Finding]:
    """Labels that fit their scan better in another way, and labels that fit it badly in any.

    Args:
        answers: case id to its answers; outliers are judged against all of them.
        names: class names, background first.
    """
    ids = sorted(answers)
    moves = robust_z([answers[i].move_gain for i in ids], floor=_MOVE_FLOOR)
    fits = robust_z([-answers[i].fit for i in ids], floor=_FIT_FLOOR)
    for case_id, move_z, fit_z in zip(ids, moves, fits, strict=True):
        answer = answers[case_id]
        if answer.move_gain > 0 and move_z >= LOOK:
            sentence = f"the label fits its scan better moved by {_mm(answer.move_mm)}"
            yield _fit("moved label", case_id, move_z, answer.move_gain, sentence, move_mm=list(answer.move_mm))
        if fit_z >= LOOK:
            sentence = f"label and scan go together badly ({fit_z:.1f} deviations worse than the set)"
            yield Finding(
                kind="poor fit", cases=(case_id,), score=min(float(fit_z), _FIT_CAP) / 2, sentence=sentence,
                evidence={"fit": round(answer.fit, 4)},
            )  # fmt: skip
    yield from _mirror_findings(answers)
    yield from _exchange_findings(answers, names)


def _fit(kind: Kind, case_id: str, z: float, gain: float, sentence: str, **evidence: Any) -> Finding:
    numbers = {"gain": round(gain, 4), **evidence}
    return Finding(kind=kind, cases=(case_id,), score=min(float(z), _LABEL_CAP), sentence=sentence, evidence=numbers)


def _mirror_findings(answers: Mapping[str, Answers]) -> Iterator[Finding]:
    for axis, letter in enumerate("xyz"):
        ids = sorted(i for i, answer in answers.items() if axis in answer.mirrors)
        for case_id, z in zip(ids, robust_z([answers[i].mirrors[axis] for i in ids], floor=_MIRROR_FLOOR), strict=True):
            gain = answers[case_id].mirrors[axis]
            if gain > 0 and z >= LOOK:
                # 20 and more: a mirrored label fits a move to the other side as well, and the simpler reason leads.
                sentence = f"the label fits its scan better mirrored along {letter}"
                yield _fit("mirrored label", case_id, 20 + z, gain, sentence, axis=letter)


def _exchange_findings(answers: Mapping[str, Answers], names: Sequence[str]) -> Iterator[Finding]:
    for a, b in sorted({pair for answer in answers.values() for pair in answer.exchanges}):
        ids = sorted(i for i, answer in answers.items() if (a, b) in answer.exchanges)
        gains = [answers[i].exchanges[a, b] for i in ids]
        for case_id, z, gain in zip(ids, robust_z(gains, floor=_EXCHANGE_FLOOR), gains, strict=True):
            if gain > 0 and z >= LOOK:
                sentence = f"the label fits its scan better with {names[a]} and {names[b]} exchanged"
                yield _fit("swapped classes", case_id, 20 + z, gain, sentence, classes=[names[a], names[b]])


def disagreement_findings(dice: Mapping[str, float]) -> Iterator[Finding]:
    """Cases whose out-of-fold prediction is another than their label.

    Args:
        dice: case id to the mean Dice over classes of label and prediction on the coarse grid.
    """
    ids = sorted(dice)
    median = float(np.median(list(dice.values()))) if dice else 0.0
    for case_id, z in zip(ids, robust_z([-dice[i] for i in ids], floor=_DICE_FLOOR), strict=True):
        if z >= LOOK:
            sentence = (
                f"label and out-of-fold prediction agree at Dice {dice[case_id]:.2f} (the set's median {median:.2f})"
            )
            evidence = {"dice": round(dice[case_id], 4), "median": round(median, 4)}
            score = min(float(z), _FIT_CAP) / 2
            yield Finding(kind="disagreement", cases=(case_id,), score=score, sentence=sentence, evidence=evidence)


def shape_findings(
    shapes: Mapping[str, Mapping[int, Shape]], names: Sequence[str], *, partial: Collection[str] = ()
) -> Iterator[Finding]:
    """Structures that are missing, or whose volume, place or pieces are unlike the set's.

    Args:
        shapes: labelled case id to class index to shape.
        names: class names, background first.
        partial: cases that were labelled for some classes only; nothing is missed in them.
    """
    for index, name in enumerate(names[1:], start=1):
        found = {case_id: case[index] for case_id, case in shapes.items() if index in case}
        share = len(found) / max(1, len(shapes))
        if _USUAL <= share < 1:
            for case_id in sorted(set(shapes) - set(found) - set(partial)):
                sentence = f"{name} is missing, {share:.0%} of the labelled cases have it"
                score = 4 + 8 * (share - _USUAL) / (1 - _USUAL)
                evidence = {"class": name, "share": round(share, 4)}
                yield Finding(
                    kind="missing structure", cases=(case_id,), score=score, sentence=sentence, evidence=evidence
                )
        yield from _volumes(found, name)
        yield from _positions(found, name)
        yield from _strays(found, name)


def _volumes(found: Mapping[str, Shape], name: str) -> Iterator[Finding]:
    ids = sorted(found)
    median = float(np.median([found[i].volume_ml for i in ids])) if ids else 0.0
    z = np.abs(robust_z([np.log(found[i].volume_ml) for i in ids], floor=0.1))
    for case_id, value in zip(ids, z, strict=True):
        if value >= LOOK:
            volume = found[case_id].volume_ml
            sentence = f"{name} has {volume:.3g} ml, the set's median {median:.3g} ml"
            yield _shape("volume", case_id, value, sentence, {"class": name, "volume_ml": volume})


def _positions(found: Mapping[str, Shape], name: str) -> Iterator[Finding]:
    ids = sorted(found)
    if not ids:
        return
    z = np.abs(np.stack([robust_z([found[i].centre_xyz[axis] for i in ids], floor=0.03) for axis in range(3)]))
    for column, case_id in enumerate(ids):
        axis = int(z[:, column].argmax())
        if z[axis, column] >= LOOK:
            place = found[case_id].centre_xyz[axis]
            sentence = f"{name} lies at {place:.0%} of the scan's extent along {'xyz'[axis]}, unlike the set"
            evidence = {"class": name, "centre_xyz": [round(v, 4) for v in found[case_id].centre_xyz]}
            yield _shape("position", case_id, float(z[axis, column]), sentence, evidence)


def _strays(found: Mapping[str, Shape], name: str) -> Iterator[Finding]:
    """Small pieces far from the rest; of a class that comes in pieces everywhere nothing is said."""
    if not found or np.median([shape.components for shape in found.values()]) > 1:
        return
    for case_id in sorted(found):
        shape = found[case_id]
        if shape.components > 1 and shape.stray_share < 0.1:
            far = shape.stray_far_mm / max(shape.thickness_mm, 1e-6)
            number = f"{shape.components - 1} further piece{'s' if shape.components > 2 else ''}"
            sentence = f"{name} has {number} ({shape.stray_share:.1%} of it), up to {shape.stray_far_mm:.3g} mm away"
            evidence = {"class": name, "components": shape.components, "far_mm": round(shape.stray_far_mm, 2)}
            yield _shape("stray voxels", case_id, 3.0 + min(far, 5.0), sentence, evidence)


def _shape(kind: Kind, case_id: str, z: float, sentence: str, evidence: Mapping[str, Any]) -> Finding:
    return Finding(kind=kind, cases=(case_id,), score=min(float(z), _SHAPE_CAP), sentence=sentence, evidence=evidence)
