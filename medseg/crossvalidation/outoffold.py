"""Out-of-fold masks: every case is segmented by the models that did not see it, and by those only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medseg.config.sections import EvaluateSection, InferSection
from medseg.crossvalidation.candidates import Candidate
from medseg.crossvalidation.decisions import Evidence
from medseg.crossvalidation.tables import TableTask, read_tables
from medseg.durable import sha256_file, sha256_json
from medseg.evaluation.experiment import CaseSet, manifest_set, rater_notes
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.postprocessing import Step, apply_steps
from medseg.imaging import LabelMap, read_label_map, spacing_xyz_mm, to_classes, write_label_map
from medseg.imaging.labels import from_classes
from medseg.inference.cases import manifest_cases, refuse_same_names
from medseg.inference.ensemble import build_engine
from medseg.inference.experiment import own_section
from medseg.inference.model import load_models
from medseg.inference.report import CaseReport
from medseg.inference.runs import run_name
from medseg.inference.stage import infer_folder
from medseg.manifest import Case, Manifest
from medseg.runner.sidecar import Origin, is_done, write_sidecar

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataPlace:
    """Where the manifest's files are, and how masks are scored.

    Attributes:
        manifest: with folds.
        folds: fold to its held-out cases.
        data_root, allow_outside: see ``medseg.manifest.resolve``.
        evaluate: the config's section.
    """

    manifest: Manifest
    folds: Mapping[int, Sequence[Case]]
    data_root: Path
    allow_outside: bool
    evaluate: EvaluateSection

    @property
    def fold_of(self) -> dict[str, int]:
        """Case id to the fold that holds it out."""
        return {case.id: fold for fold, cases in self.folds.items() for case in cases}


def mask_folder(candidate: Candidate, fold: int, output: Path) -> Path:
    """Where a candidate's masks of a fold lie: those of one work folder where ``medseg infer`` writes them too."""
    if candidate.mixed:
        return output / "predictions" / candidate.name / run_name(fold)
    (work,) = candidate.works.values()
    return work / "predictions" / run_name(fold)


def predict_folds(
    candidate: Candidate, place: DataPlace, output: Path, *, section: InferSection | None, device: torch.device
) -> list[CaseReport]:
    """Masks of every held-out case of every fold; those that are there, made of the same, are kept.

    Args:
        candidate: its folds are finished.
        place: of the scans.
        output: of the cross-validation.
        section: of the config; None takes that of each model's own config.
        device: where to compute.
    """
    reports: list[CaseReport] = []
    for fold, cases in place.folds.items():
        models = [model for path in candidate.members(fold).values() for model in load_models(path, device=device)]
        engine = build_engine(models, section or own_section(models[0]), device=device)
        found = manifest_cases(place.manifest, cases, data_root=place.data_root, allow_outside=place.allow_outside)
        folder = mask_folder(candidate, fold, output)
        _LOG.info("%s: %s", candidate.name, run_name(fold))
        reports += infer_folder(engine, refuse_same_names(found), output=folder)
    return reports


def out_of_fold_set(candidate: Candidate, place: DataPlace, output: Path) -> CaseSet:
    """All held-out cases that have labels, paired with the candidate's masks."""
    sets = [
        manifest_set(
            candidate.name,
            place.manifest,
            [case.id for case in cases],
            place.evaluate,
            predictions=mask_folder(candidate, fold, output),
            data_root=place.data_root,
            allow_outside=place.allow_outside,
        )
        for fold, cases in place.folds.items()
    ]
    found = [one for one in sets if one is not None]
    pairs = tuple(sorted((pair for one in found for pair in one.pairs), key=lambda pair: pair.case_id))
    every = [case for cases in place.folds.values() for case in cases]
    return replace(found[0], pairs=pairs, notes=rater_notes(every, pairs, place.evaluate.raters))


def evidence_of(cases: CaseSet, place: DataPlace, folder: Path, *, seed: int, processes: int | None) -> Evidence:
    """What the decisions look at: a table per case that has both masks."""
    tasks = [
        TableTask(
            case_id=pair.case_id,
            prediction=pair.prediction,
            reference=pair.reference,
            protocol=cases.protocol,
            labelled=pair.labelled,
        )
        for pair in cases.pairs
        if pair.prediction is not None and pair.reference is not None and pair.fault is None
    ]
    tables = read_tables(tasks, folder, processes=processes)
    class_names = cases.protocol.class_names
    patients = {case.id: case.patient for case in place.manifest.training}
    return Evidence(tables=tables, class_names=class_names, patients=patients, seed=seed)


def cleaned_pairs(
    pairs: Sequence[CasePaths], steps: Mapping[str, Sequence[Step]], folder: Path, *, cases: CaseSet
) -> tuple[CasePaths, ...]:
    """The pairs with each prediction after its steps, written to ``folder``; without steps a prediction stays itself.

    Args:
        pairs: of masks as the models made them.
        steps: case id to the steps of its fold.
        folder: for the masks that change; one that is there, made of the same, is kept.
        cases: for the labels.
    """
    return tuple(
        replace(pair, prediction=_cleaned(pair.prediction, steps[pair.case_id], folder, cases.protocol.labels))
        if pair.prediction is not None and steps.get(pair.case_id)
        else pair
        for pair in pairs
    )


def _cleaned(mask: Path, steps: Sequence[Step], folder: Path, labels: Mapping[str, tuple[int, ...]]) -> Path:
    output = folder / mask.name
    settings = {"postprocessing": sha256_json([step.plain() for step in steps])}
    origin = Origin(inputs={"mask": sha256_file(mask)}, settings=settings)
    if not is_done(output, origin):
        read = read_label_map(mask)
        classes = to_classes(read, labels, ignore=None, name=mask.name)
        spacing = spacing_xyz_mm(read.affine)
        clean = apply_steps(classes, steps, class_names=tuple(labels), spacing_xyz_mm=[float(size) for size in spacing])
        label_map = LabelMap(array=from_classes(clean, labels), affine=read.affine, header=read.header)
        write_label_map(label_map, output, like=read.header)
        write_sidecar(output, origin)
    return output
