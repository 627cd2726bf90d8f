"""Configurations that can be compared: the finished folds of one work folder, or of several that answer together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from medseg.durable import read_json
from medseg.errors import InputError, UsageError
from medseg.inference.runs import latest_run, run_name
from medseg.manifest import Case, Manifest


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration.

    Attributes:
        name: of its work folder, or of several joined with ``+``.
        works: its work folders by name; several are an ensemble of configurations.
    """

    name: str
    works: Mapping[str, Path]

    @property
    def mixed(self) -> bool:
        """Whether several configurations answer together."""
        return len(self.works) > 1

    def members(self, fold: int) -> dict[str, Path]:
        """Name to model folder of those that answer for a fold's held-out cases."""
        return {
            (f"{name}-{run_name(fold)}" if self.mixed else run_name(fold)): latest_run(work, fold) / "model"
            for name, work in self.works.items()
        }


def find_candidates(works: Sequence[Path]) -> tuple[Candidate, ...]:
    """One candidate per work folder, then one per pair of them.

    Raises:
        UsageError: none was given, or two have the same name.
    """
    named = {work.resolve().name: work for work in works}
    if len(named) < max(1, len(works)):
        raise UsageError("--choose: two work folders have one name, expected a name each; rename one")
    singles = [Candidate(name=name, works={name: work}) for name, work in named.items()]
    pairs = [
        Candidate(name=f"{one}+{two}", works={one: named[one], two: named[two]}) for one, two in combinations(named, 2)
    ]
    return (*singles, *pairs)


def folds_of(manifest: Manifest) -> dict[int, tuple[Case, ...]]:
    """Fold to its held-out cases.

    Raises:
        UsageError: there are fewer than two folds.
    """
    numbers = sorted({case.fold for case in manifest.training if case.fold is not None})
    if len(numbers) < 2:
        raise UsageError(
            f"{manifest.path.name}: has {len(numbers)} folds, expected at least 2; see medseg manifest split"
        )
    return {fold: manifest.fold_cases(fold)[1] for fold in numbers}


def refuse_unfinished(candidates: Sequence[Candidate], folds: Sequence[int]) -> None:
    """Raises InputError, naming them, if a fold of a candidate has no finished model."""
    missing = [
        f"{name}/{run_name(fold)}"
        for candidate in candidates
        if not candidate.mixed
        for fold in folds
        for name, work in candidate.works.items()
        if not (latest_run(work, fold) / "model" / "model.json").is_file()
    ]
    if missing:
        raise InputError(
            f"cross-validation: {', '.join(missing)} has no finished model; run medseg train --fold all first"
        )


def refuse_leaks(candidates: Sequence[Candidate], manifest: Manifest, folds: Mapping[int, Sequence[Case]]) -> None:
    """Checks against the runs' own records that no model was trained on a patient it is scored on.

    Raises:
        InputError: one was: the manifest's folds changed since, or two cases of a patient were parted.
    """
    patients = {case.id: case.patient for case in manifest.training}
    for candidate in candidates:
        if candidate.mixed:
            continue
        (work,) = candidate.works.values()
        for fold, cases in folds.items():
            held_out = {case.patient for case in cases}
            run = latest_run(work, fold)
            trained = _trained_cases(run)
            leaked = sorted(case for case in trained if patients.get(case, case) in held_out)
            if leaked:
                raise InputError(
                    f"{candidate.name}/{run.name}: was trained on {leaked[0]}"
                    + (f" and {len(leaked) - 1} more" if len(leaked) > 1 else "")
                    + f", which fold {fold} of {manifest.path.name} holds out; train the fold again with --fresh"
                )


def _trained_cases(run: Path) -> list[str]:
    try:
        cases: dict[str, Any] = read_json(run / "run.json")["identity"]["training cases"]
    except (InputError, KeyError, TypeError) as error:
        raise InputError(
            f"{run.name}: run.json does not say what it was trained on, expected it beside the model; copy the whole run folder"
        ) from error
    return list(cases)
