"""Cross-validation folds: by patient, stratified where something to stratify by is known, and always the same again."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from medseg.errors import ManifestError, UsageError
from medseg.manifest.cases import Case, Manifest

_SIZE = "\0cases"  # the tag that every case has; no column can hold it


@dataclass(frozen=True)
class _Patient:
    name: str
    cases: tuple[str, ...]
    tags: Mapping[str, int]


def kfold_splits_nnunet(ids: Iterable[str], *, folds: int = 5, seed: int = 12345) -> list[dict[str, list[str]]]:
    """nnU-Net's own split of case ids: scikit-learn's ``KFold(folds, shuffle=True, random_state=seed)``, ids sorted.

    Args:
        ids: case ids, in any order, each once.
        folds: number of folds, 2 to the number of ids.
        seed: nnU-Net uses 12345.

    Returns:
        One ``{"train": [...], "val": [...]}`` per fold, sorted, as in ``splits_final.json``.

    Raises:
        UsageError: fewer ids than folds, or fewer than two folds.
    """
    import numpy as np

    ordered = sorted(ids)
    _check_count(len(ordered), folds, "cases")
    # The legacy generator is meant: numpy keeps its stream the same for ever, and scikit-learn shuffles with it.
    shuffled = np.arange(len(ordered))
    np.random.RandomState(seed).shuffle(shuffled)
    splits, start = [], 0
    for fold in range(folds):
        size = len(ordered) // folds + (fold < len(ordered) % folds)
        held_out = set(shuffled[start : start + size].tolist())
        start += size
        train = [case_id for index, case_id in enumerate(ordered) if index not in held_out]
        splits.append({"train": train, "val": [ordered[index] for index in sorted(held_out)]})
    return splits


def _check_count(count: int, folds: int, what: str) -> None:
    if folds < 2:
        raise UsageError(f"folds: number is {folds}, expected at least 2")
    if count < folds:
        raise UsageError(f"folds: number is {folds}, expected at most the number of {what} ({count}); give --folds")


def make_folds(
    cases: Sequence[Case],
    folds: int,
    seed: int,
    strata: Mapping[str, Iterable[str]] | None = None,
    keep: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Deals cases to folds so that no patient is parted and folds are alike in size and in strata.

    Patients are taken one by one, those with the rarest tag first, and given to the fold that this leaves most even
    (least sum of squared shares over the tags). Ties fall by a hash of seed and patient, so the result depends on
    nothing else and is the same on every machine.

    Args:
        cases: the cases, in any order.
        folds: number of folds, 2 to the number of patients.
        seed: another seed, another split.
        strata: case id to its tags (classes present, site, sex ...); a case that is not named has none.
        keep: case id to a fold it has already; it stays there, and its patient's other cases join it.

    Returns:
        Fold of every case, by case id.

    Raises:
        UsageError: fewer patients than folds, or fewer than two folds.
    """
    patients = _patients(cases, strata or {})
    _check_count(len(patients), folds, "patients")
    totals: Counter[str] = Counter()
    for patient in patients:
        totals.update(patient.tags)
    counts: list[Counter[str]] = [Counter() for _ in range(folds)]
    result: dict[str, int] = {}
    settled = {case.patient: (keep or {})[case.id] for case in cases if case.id in (keep or {})}
    for patient in sorted(patients, key=lambda p: (p.name not in settled, _order(p, totals, seed))):
        fold = settled.get(patient.name, -1)
        if fold < 0:
            fold = min(range(folds), key=lambda f: (_unevenness(counts[f], patient.tags, totals), counts[f][_SIZE], f))
        counts[fold].update(patient.tags)
        result |= dict.fromkeys(patient.cases, fold)
    return result | {case_id: fold for case_id, fold in (keep or {}).items() if case_id in result}


def _patients(cases: Sequence[Case], strata: Mapping[str, Iterable[str]]) -> list[_Patient]:
    grouped: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        grouped[case.patient].append(case)
    patients = []
    for name, own in grouped.items():
        tags: Counter[str] = Counter()
        for case in own:
            tags.update({_SIZE, *strata.get(case.id, ())})
        # Sorted, because sums of floats follow this order and must not follow that of a set.
        patients.append(_Patient(name, tuple(case.id for case in own), dict(sorted(tags.items()))))
    return patients


def _order(patient: _Patient, totals: Mapping[str, int], seed: int) -> tuple[int, int, str]:
    rarest = min(totals[tag] for tag in patient.tags)
    return rarest, -patient.tags[_SIZE], hashlib.sha256(f"{seed}:{patient.name}".encode()).hexdigest()


def _unevenness(counts: Mapping[str, int], tags: Mapping[str, int], totals: Mapping[str, int]) -> float:
    """How much the sum over tags of squared shares grows when ``tags`` join a fold that holds ``counts``."""
    return sum(((counts.get(tag, 0) + n) ** 2 - counts.get(tag, 0) ** 2) / totals[tag] ** 2 for tag, n in tags.items())


def with_folds(manifest: Manifest, folds: Mapping[str, int]) -> Manifest:
    """``manifest`` with each training case's fold taken from ``folds``; a case not named there gets none."""
    return replace(manifest, training=tuple(replace(case, fold=folds.get(case.id)) for case in manifest.training))


def folds_from_splits(splits: Sequence[Mapping[str, Sequence[str]]], ids: Iterable[str]) -> dict[str, int]:
    """Case id to fold from nnU-Net's ``splits_final.json``.

    Raises:
        ManifestError: a case validates in no fold or in several, or a name is no case; every such fault.
    """
    wanted, folds, faults = set(ids), dict[str, int](), list[str]()
    for number, split in enumerate(splits):
        for case_id in split["val"]:
            if case_id not in wanted:
                faults.append(f"{case_id}: fold {number} names it, expected one of the training cases; check the split")
            elif case_id in folds:
                faults.append(f"{case_id}: validates in folds {folds[case_id]} and {number}, expected one fold")
            else:
                folds[case_id] = number
    faults += [f"{case_id}: validates in no fold, expected one" for case_id in sorted(wanted - set(folds))]
    if faults:
        raise ManifestError(faults)
    return folds


def patient_leaks(manifest: Manifest) -> dict[str, str]:
    """Cases whose patient also has cases on the other side of a split.

    Returns:
        Case id to one line: the patient is in two folds, or in training and in testing. Empty where nothing leaks.
    """
    places: dict[str, set[str]] = defaultdict(set)
    own: list[tuple[Case, str]] = [(c, "no fold" if c.fold is None else f"fold {c.fold}") for c in manifest.training]
    own += [(case, "testing") for case in manifest.testing]
    for case, place in own:
        places[case.patient].add(place)
    return {
        case.id: f"patient is in {' and in '.join(sorted(places[case.patient]))}, expected one; put all its cases into one"
        for case, _ in own
        if len(places[case.patient]) > 1
    }
