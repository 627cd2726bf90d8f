"""From finished folds to a report and one model: out-of-fold masks, evidence, decisions, scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medseg.config.sections import InferSection
from medseg.crossvalidation.candidates import Candidate, refuse_leaks, refuse_unfinished
from medseg.crossvalidation.decisions import Decision, decide, nested
from medseg.crossvalidation.judged import calibrate, judged_cases
from medseg.crossvalidation.outoffold import DataPlace, cleaned_pairs, evidence_of, out_of_fold_set, predict_folds
from medseg.durable import FolderLock, read_json, remove_stale_temporaries
from medseg.errors import InputError
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.report import Scores
from medseg.evaluation.stage import run_evaluate
from medseg.imaging.regions import overlap
from medseg.inference.model import save_ensemble
from medseg.inference.report import CaseReport

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is done.

    Attributes:
        infer: the config's section; None takes that of each model's own config.
        seed: of the bootstrap.
        device: where to compute.
        processes: for scoring; None chooses.
    """

    infer: InferSection | None
    seed: int
    device: torch.device
    processes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """What came out.

    Attributes:
        place: the manifest and its folds.
        candidates: what was compared.
        final: decided on all cases; what the model is.
        per_fold: fold to what was decided on all other folds; what its reported scores were made with.
        reported: scores of every case under the decision of its fold.
        plain: scores of the final configuration's masks as the networks made them.
        predictions: one report per mask.
        trainings: one sentence per training on how its weights were chosen.
        model: the model folder.
        model_sha256: of it.
        quality: how well the Dice of a mask can be told without its truth (`calibrating.figures`); {} where that was not tried.
    """

    place: DataPlace
    candidates: tuple[Candidate, ...]
    final: Decision
    per_fold: Mapping[int, Decision]
    reported: Scores
    plain: Scores
    predictions: Sequence[CaseReport]
    trainings: tuple[str, ...]
    model: Path
    model_sha256: str
    quality: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 4 where a case has no mask or no score."""
        good = all(report.good for report in self.predictions)
        return 0 if good and self.reported.complete and self.plain.complete else 4


def run_crossvalidation(
    candidates: Sequence[Candidate], place: DataPlace, output: Path, *, settings: Settings
) -> CrossValidation:
    """Does everything that follows training; what is done already and made of the same is kept.

    Args:
        candidates: each with a finished model for every fold; one is enough.
        place: the manifest, its folds, where its files are.
        output: for masks after post-processing, tables, scores and ``model/``.
        settings: how.

    Raises:
        InputError: a fold is not finished, was trained on a case that it holds out, or no case can be scored.
        LockedError: another process writes ``output``.
    """
    refuse_unfinished(candidates, list(place.folds))
    refuse_leaks(candidates, place.manifest, place.folds)
    with FolderLock(output):
        remove_stale_temporaries(output)
        predictions = []
        sets: dict[str, CaseSet] = {}
        for candidate in candidates:
            predictions += predict_folds(candidate, place, output, section=settings.infer, device=settings.device)
            sets[candidate.name] = out_of_fold_set(candidate, place, output)
        final, per_fold = _decide(candidates, sets, place, output, settings)
        reported = _score(_nested_set(sets, per_fold, final, place, output), output / "scores" / "reported", settings)
        plain = _score(sets[final.choice.name], output / "scores" / "unprocessed", settings)
        (chosen,) = (candidate for candidate in candidates if candidate.name == final.choice.name)
        members = {name: path for fold in place.folds for name, path in chosen.members(fold).items()}
        sha256 = save_ensemble(
            output / "model", members, postprocessing=final.adopted, evidence={"decision": final.plain()}
        )
        judged = judged_cases(sets[chosen.name].pairs, place.fold_of, scores=reported, drawn=plain)
        names = sets[chosen.name].protocol.class_names
        quality = calibrate(output / "model", judged, names, output, expected=len(reported.rows))
        return CrossValidation(
            place=place,
            candidates=tuple(candidates),
            final=final,
            per_fold=per_fold,
            reported=reported,
            plain=plain,
            predictions=predictions,
            trainings=_trainings(members),
            model=output / "model",
            model_sha256=sha256,
            quality=quality,
        )


def _decide(
    candidates: Sequence[Candidate],
    sets: Mapping[str, CaseSet],
    place: DataPlace,
    output: Path,
    settings: Settings,
) -> tuple[Decision, dict[int, Decision]]:
    evidence = {
        name: evidence_of(cases, place, output / "tables" / name, seed=settings.seed, processes=settings.processes)
        for name, cases in sets.items()
    }
    shared = set.intersection(*(set(one.tables) for one in evidence.values()))
    folds = {case: fold for case, fold in place.fold_of.items() if case in shared}
    if len(set(folds.values())) < 2:
        raise InputError(
            "cross-validation: fewer than two folds have a case with masks and labels, expected all of them"
        )
    evidence = {
        name: replace(one, tables={case: one.tables[case] for case in sorted(folds)}) for name, one in evidence.items()
    }
    # Regions that overlap share voxels: what is taken from one would have to be taken from others, so they stay as they are.
    clean = not overlap(place.manifest.labels)
    make = partial(decide, ensembles=[candidate.name for candidate in candidates if candidate.mixed], clean=clean)
    return make(evidence), nested(evidence, folds, make)


def _nested_set(
    sets: Mapping[str, CaseSet], per_fold: Mapping[int, Decision], final: Decision, place: DataPlace, output: Path
) -> CaseSet:
    """Every case with the mask that the decision of its fold makes of it."""
    folds = place.fold_of
    deciding = {fold: per_fold.get(fold, final) for fold in place.folds}  # a fold without a scored case has none
    first = next(iter(sets.values()))
    pairs: list[CasePaths] = []
    for name, cases in sets.items():
        chosen = [pair for pair in cases.pairs if deciding[folds[pair.case_id]].choice.name == name]
        steps = {pair.case_id: deciding[folds[pair.case_id]].adopted for pair in chosen}
        pairs += cleaned_pairs(chosen, steps, output / "masks", cases=cases)
    return replace(first, name="reported", pairs=tuple(sorted(pairs, key=lambda pair: pair.case_id)))


def _score(cases: CaseSet, output: Path, settings: Settings) -> Scores:
    report = run_evaluate(replace(cases, name=output.name), output=output, processes=settings.processes)
    for fault in report.faults:
        _LOG.error("%s", fault)
    if not report.scores.rows:
        raise InputError("cross-validation: no case could be scored; see the lines above")
    return report.scores


def _trainings(members: Mapping[str, Path]) -> tuple[str, ...]:
    infos = (read_json(path / "model.json")["training"] for path in members.values())
    return tuple(dict.fromkeys(str(info.get("weights", "not recorded")) for info in infos))
