"""Cases with several references: a consensus to score against, and how well the raters agree with one another.

A model's score against one reader says little unless it stands beside what a second reader would get. Where a case has several
references, every two of them are scored against each other (the human band), and the mask against each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg.durable import sha256_file, sha256_json, write_json
from medseg.errors import GeometryError, MedsegError
from medseg.evaluation.case import CaseScores, ClassScores
from medseg.evaluation.consensus import Staple, consensus_classes, consensus_regions
from medseg.evaluation.intervals import mean_interval
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.pair import Situation
from medseg.evaluation.policy import EmptyPolicy, counted_value
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.reading import read_maps
from medseg.evaluation.registry import Metric, known_metrics
from medseg.evaluation.signflip import sign_flip
from medseg.imaging import LabelMap, grid_difference, regions_of, to_classes, write_label_map
from medseg.imaging.labels import IGNORE, from_classes
from medseg.runner.sidecar import Origin, is_done, write_sidecar

Policy = Literal["first", "majority", "staple", "each"]
Rows = Sequence[ClassScores]
_ORDER: tuple[Situation, ...] = ("present", "missed", "spurious", "both_empty")


# --- a consensus to score against -------------------------------------------------------------------------------------


def consensus_pairs(pairs: Sequence[CasePaths], protocol: Protocol, how: str, folder: Path) -> tuple[CasePaths, ...]:
    """The pairs with the reference of each case that has several replaced by their consensus, written to ``folder``.

    Args:
        pairs: of which those with ``raters`` are changed.
        protocol: for the labels.
        how: ``majority`` or ``staple``.
        folder: gets ``<case>.nii.gz`` and, for STAPLE, ``<case>.staple.json``; one that is there, made of the same, is kept.

    Returns:
        A case whose references can't be read, or lie on different grids, keeps that as its fault.
    """
    found = []
    for pair in pairs:
        if not pair.raters or pair.fault is not None:
            found.append(pair)
            continue
        try:
            found.append(replace(pair, reference=_consensus(pair, protocol, how, folder)))
        except (MedsegError, OSError) as error:
            reason = str(error) if isinstance(error, MedsegError) else f"{pair.case_id}: a reference can't be read"
            found.append(replace(pair, prediction=None, reference=None, fault=" ".join(reason.split())))
    return tuple(found)


def _consensus(pair: CasePaths, protocol: Protocol, how: str, folder: Path) -> Path:
    output = folder / f"{pair.case_id}.nii.gz"
    told = folder / f"{pair.case_id}.staple.json"
    labels = [[name, list(values), list(protocol.aliases.get(name, ()))] for name, values in protocol.labels.items()]
    origin = Origin(
        inputs={f"rater_{k}": sha256_file(path) for k, path in enumerate(pair.raters, start=1)},
        settings={"consensus": sha256_json([how, labels, protocol.ignore, _code_sha256()])},
    )
    if is_done(output, origin) and told.is_file() is (how == "staple"):
        return output
    maps = read_maps(pair.raters, naming=protocol.naming)
    for k, other in enumerate(maps[1:], start=2):
        difference = grid_difference(maps[0].shape, maps[0].affine, other.shape, other.affine)
        if difference is not None:
            raise GeometryError(
                f"{pair.case_id}: references 1 and {k} lie on different grids ({difference}), expected one grid"
            )
    raters = [
        to_classes(one, protocol.labels, ignore=protocol.ignore, name=f"{pair.case_id}: reference {k}")
        for k, one in enumerate(maps, start=1)
    ]
    ignore = None if protocol.ignore is None else IGNORE
    names = tuple(protocol.labels)
    if regions := regions_of(protocol.labels):
        classes, found = consensus_regions(raters, regions=regions, how=how, ignore=ignore)
    else:
        classes, found = consensus_classes(raters, class_count=len(names), how=how, ignore=ignore)
    ignored = classes == IGNORE if ignore is not None else np.zeros(classes.shape, np.bool_)
    array = from_classes(np.where(ignored, 0, classes).astype(np.uint8), protocol.labels)
    if protocol.ignore is not None and ignored.any():
        array = array.astype(np.result_type(array.dtype, np.min_scalar_type(protocol.ignore)))
        array[ignored] = protocol.ignore
    folder.mkdir(parents=True, exist_ok=True)
    write_label_map(LabelMap(array=array, affine=maps[0].affine), output, like=None)
    if how == "staple":
        write_json(told, {names[k]: _staple_json(one) for k, one in found.items()})
    else:
        told.unlink(missing_ok=True)  # of a STAPLE before
    write_sidecar(output, origin)
    return output


@cache
def _code_sha256() -> str:
    """Of what makes a consensus: a change of it makes old ones stale."""
    folder = Path(__file__).parent
    return sha256_json([sha256_file(folder / name) for name in ("consensus.py", "raters.py", "reading.py")])


def _staple_json(found: Staple) -> dict[str, Any]:
    return {
        "sensitivity": found.sensitivity.tolist(),
        "specificity": found.specificity.tolist(),
        "iterations": found.iterations,
        "converged": found.converged,
    }


# --- everyone against everyone ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RatedPair:
    """One comparison of a rated case.

    Attributes:
        case_id: whose.
        human: whether two raters are compared; else the mask and a rater.
        paths: what is scored, under an id of its own; of two raters the earlier stands as the prediction.
    """

    case_id: str
    human: bool
    paths: CasePaths


def rated_pairs(pairs: Sequence[CasePaths]) -> tuple[RatedPair, ...]:
    """Of each case with several references: every two of them, and the mask against each."""
    found = []
    for pair in pairs:
        if not pair.raters or pair.prediction is None or pair.fault is not None:
            continue
        numbered = list(enumerate(pair.raters, start=1))
        for k, rater in numbered:
            found.append((pair, False, f"{pair.case_id}.mask-{k}", pair.prediction, rater))
        for (k, one), (m, other) in combinations(numbered, 2):
            found.append((pair, True, f"{pair.case_id}.{k}-{m}", one, other))
    return tuple(
        RatedPair(
            case_id=pair.case_id,
            human=human,
            paths=CasePaths(
                case_id=name,
                prediction=first,
                reference=second,
                labelled=pair.labelled,
                mask_of=None if human else pair.case_id,
                two_references=human,
            ),
        )
        for pair, human, name, first, second in found
    )


def mean_scores(several: Sequence[CaseScores], policy: EmptyPolicy) -> CaseScores:
    """A mask's scores against several references: of each class :func:`mean_rows`, of all together the means."""
    together = {
        name: _mean([value for case in several if (value := case.values[name]) is not None])
        for name in several[0].values
    }
    return CaseScores(rows=mean_rows([case.rows for case in several], policy), values=together)


def mean_rows(several: Sequence[Rows], policy: EmptyPolicy) -> tuple[ClassScores, ...]:
    """One row per class for a mask scored against several references: each value is the mean of what counts.

    Undefined values are imputed before they are averaged. The situation is the best of the raters': present before missed
    before spurious before both empty. Voxel counts are means, rounded. The list of lesions is the one against the first.
    """
    return tuple(
        _mean_row([next(row for row in rows if row.class_name == first.class_name) for rows in several], policy)
        for first in several[0]
    )


def _mean_row(rows: Sequence[ClassScores], policy: EmptyPolicy) -> ClassScores:
    situations = {row.situation for row in rows}

    def mean_count(name: str) -> int:
        return round(math.fsum(getattr(row, name) for row in rows) / len(rows))

    return ClassScores(
        class_name=rows[0].class_name,
        situation=next(one for one in _ORDER if one in situations),
        true_positive=mean_count("true_positive"),
        false_positive=mean_count("false_positive"),
        false_negative=mean_count("false_negative"),
        diagonal_mm=rows[0].diagonal_mm,
        values={metric.name: _mean_value(metric, rows, policy) for metric in known_metrics(rows[0].values)},
        lesions=rows[0].lesions,
    )


def _mean_value(metric: Metric, rows: Sequence[ClassScores], policy: EmptyPolicy) -> float | None:
    found = []
    for row in rows:
        raw = row.values[metric.name]
        value = math.nan if raw is None else raw
        found.append(counted_value(value, metric.worst_value(row.diagonal_mm), row.situation, policy))
    return _mean([value for value in found if not math.isnan(value)])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def human_band(
    rated: Sequence[RatedPair],
    rows: Mapping[str, Rows],
    class_names: Sequence[str],
    *,
    how: str,
    policy: EmptyPolicy,
    patients: Mapping[str, str],
) -> dict[str, Any]:
    """How the raters agree with one another, and the mask with them, over the cases with several references.

    Args:
        rated: the comparisons.
        rows: their ids to their rows; those that could not be made are not there.
        class_names: without background.
        how: the policy for such cases.
        policy: for empty masks.
        patients: case id to its patient.

    Returns:
        ``policy``, ``cases``, ``comparisons`` and, per class and metric for which one way is better, ``human`` (mean over cases
        of the mean over every two raters), ``model`` (of the mean over the raters; each with ``n``, ``sd`` and 95 % interval)
        and ``difference`` (model minus human, with the sign-flip test's interval and p). {} where nothing was compared.
    """
    cases = sorted({one.case_id for one in rated if one.paths.case_id in rows})
    some = next((row for found in rows.values() for row in found), None)
    if some is None:
        return {}
    classes: dict[str, dict[str, Any]] = {}
    metrics = known_metrics(some.values)
    for class_name in class_names:
        for metric in metrics:
            if metric.better is None:
                continue
            human, model = (_per_case(rated, rows, class_name, metric, policy, human=side) for side in (True, False))
            if human and model:
                classes.setdefault(class_name, {})[metric.name] = _beside(human, model, metric, patients)
    made = sum(one.paths.case_id in rows for one in rated)
    return {"policy": how, "cases": len(cases), "comparisons": made, "failed": len(rated) - made, "classes": classes}


def _per_case(
    rated: Sequence[RatedPair],
    rows: Mapping[str, Rows],
    class_name: str,
    metric: Metric,
    policy: EmptyPolicy,
    *,
    human: bool,
) -> dict[str, float]:
    own: dict[str, list[ClassScores]] = {}
    for one in rated:
        if one.human is human:
            found = [row for row in rows.get(one.paths.case_id, ()) if row.class_name == class_name]
            own.setdefault(one.case_id, []).extend(found)
    means = {case: _mean_value(metric, several, policy) for case, several in sorted(own.items())}
    return {case: mean for case, mean in means.items() if mean is not None}


def _beside(
    human: Mapping[str, float], model: Mapping[str, float], metric: Metric, patients: Mapping[str, str]
) -> dict[str, Any]:
    shared = [case for case in human if case in model]
    names = [patients.get(case, case) for case in shared]
    result: dict[str, Any] = {
        "human": _mean_json(human, metric, patients),
        "model": _mean_json(model, metric, patients),
        "difference": None,
    }
    if shared:
        _, index = np.unique(np.asarray(names), return_inverse=True)
        gaps = np.array([model[case] - human[case] for case in shared])
        sums, counts = np.bincount(index, gaps).astype(np.float64), np.bincount(index).astype(np.float64)
        flips = sign_flip(sums[:, None], counts[:, None])
        low, high = (float(end[0]) if math.isfinite(end[0]) else None for end in (flips.low, flips.high))
        result["difference"] = {
            "n": len(shared),
            "mean": float(flips.mean[0]),
            "low": low,
            "high": high,
            "p_value": float(flips.p_value[0]),
        }
    return result


def _mean_json(values: Mapping[str, float], metric: Metric, patients: Mapping[str, str]) -> dict[str, Any]:
    array = np.array(list(values.values()))
    found = mean_interval(array, [patients.get(case, case) for case in values], bounds=metric.bounds)
    return {
        "n": len(array),
        "mean": math.fsum(array) / len(array),
        "sd": float(array.std(ddof=1)) if len(array) > 1 else None,
        "low": found.low,
        "high": found.high,
        "least": float(array.min()),
        "greatest": float(array.max()),
    }
