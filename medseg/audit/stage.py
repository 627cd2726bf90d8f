"""The audit of a data set: sketch every case, compare them with each other, and judge every label against its scan.

``<output>`` holds ``audit.json`` (all of it), ``findings.csv`` (the list) and ``cases/<id>.npz`` (the sketches, so that a
second audit, or one that was stopped, reads only what is new). Nothing outside the folder is written.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.audit.alternatives import Answers, ask, log_shares_of_prediction
from medseg.audit.duplicates import find_duplicates, same_labels
from medseg.audit.findings import (
    LOOK,
    Finding,
    disagreement_findings,
    fit_findings,
    grid_findings,
    pair_findings,
    ranked,
    same_label_findings,
    shape_findings,
)
from medseg.audit.shapes import ClassShape, class_shapes
from medseg.audit.sketch import SKETCH_FORMAT, ClassArray, Sketch, SketchTask, sketch_case, working_spacing_xyz_mm
from medseg.audit.voxel_model import fit_voxel_models
from medseg.config.series import SeriesSection
from medseg.durable import FolderLock, remove_stale_temporaries, sha256_json, write_json, write_text
from medseg.errors import InputError, MedsegError
from medseg.imaging import (
    apply_axes,
    changed_shape,
    ras_change,
    read_header,
    read_label_map,
    resample_labels,
    spacing_xyz_mm,
    to_classes,
)
from medseg.imaging.regions import index_labels
from medseg.manifest import Case, Manifest, resolve
from medseg.preparation.case import expand_channels
from medseg.preparation.inputs import fix
from medseg.runner.pool import run_cases
from medseg.runner.progress import CaseProgress
from medseg.runner.resources import default_processes

_LOG = logging.getLogger(__name__)
AUDIT_FORMAT = 1
_GROUPS = 5
_SEED = 0
_LEAST_PATIENTS = 6
"""Fewer labelled patients than this teach the voxel model too little; labels are then not judged against their scans."""
_MEMORY_PER_CASE_BYTES = 2 * 1024**3
_Geometry = tuple[tuple[int, int, int], tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        findings: the highest score first.
        shapes: per foreground class.
        case_count: cases that were looked at, unreadable ones included.
        notes: sentences a reader should know.
        sketches: case id to its sketch, for pictures.
    """

    findings: tuple[Finding, ...]
    shapes: tuple[ClassShape, ...]
    case_count: int
    notes: tuple[str, ...]
    sketches: Mapping[str, Sketch]

    @property
    def exit_code(self) -> int:
        """0; 4 where a case could not be read."""
        return 4 if any(finding.kind == "unreadable" for finding in self.findings) else 0

    def plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "format": AUDIT_FORMAT,
            "cases": self.case_count,
            "notes": list(self.notes),
            "findings": [finding.plain() for finding in self.findings],
            "shapes": [asdict(shape) for shape in self.shapes],
        }


def run_audit(
    manifest: Manifest,
    *,
    data_root: Path,
    output: Path,
    predictions: Mapping[str, Path] | None = None,
    allow_outside: bool = False,
    processes: int | None = None,
) -> AuditReport:
    """Audits the training cases of a manifest.

    Args:
        manifest: its training cases are audited; testing cases take part in the search for duplicates.
        data_root: where its paths start.
        output: folder of the results.
        predictions: case id to a mask that was predicted by a model that did not train on that case; cases without one are
            judged by the audit's own voxel model.
        allow_outside: whether paths may lead out of the data root.
        processes: cases at a time; None chooses by cores and memory.

    Raises:
        InputError: no case can be read at all.
        LockedError: another process writes ``output``.
        EnvironmentFault: ``output`` can't be written.
    """
    with FolderLock(output):
        remove_stale_temporaries(output / "cases")
        tasks, unreadable = _tasks(manifest, data_root, output / "cases", allow_outside=allow_outside)
        sketches, failed = _sketched(tasks, processes)
        unreadable |= failed
        if not sketches:
            raise InputError(
                f"{manifest.path.name}: none of its {len(unreadable)} cases can be read; run prepare --check-only"
            )
        report = _judged(manifest, sketches, unreadable, {task.id: task for task in tasks}, predictions or {})
        write_json(output / "audit.json", report.plain())
        write_text(output / "findings.csv", _csv(report.findings))
        return report


def _tasks(
    manifest: Manifest, data_root: Path, cache: Path, *, allow_outside: bool
) -> tuple[list[SketchTask], dict[str, str]]:
    """What is to be sketched, and what can't be (case id to why)."""
    channels, faults = expand_channels(manifest.channels), {}
    found: list[tuple[Case, tuple[Path, ...], Path | None, _Geometry]] = []
    for case in (*manifest.training, *manifest.testing):
        try:
            files = resolve(manifest, case, data_root, allow_outside)
            label = files.labels[0] if files.labels else None
            found.append((case, files.images, label, _geometry(files.images[0], channels[0].series)))
        except MedsegError as error:
            faults[case.id] = str(error).replace("\n", "; ")
    if not found:
        return [], faults
    spacing = working_spacing_xyz_mm([g[0] for *_, g in found], [g[1] for *_, g in found])
    settings = {
        "format": SKETCH_FORMAT,
        "spacing_xyz_mm": spacing,
        "labels": {name: list(values) for name, values in manifest.labels.items()},
        "ignore": manifest.ignore,
        "channels": [[c.name, c.unit, *([c.series.model_dump()] if c.series else [])] for c in channels],
        **({"aliases": manifest.aliases} if manifest.aliases else {}),
    }
    tasks = []
    for case, images, label, _ in found:
        try:
            content = [fix(path).sha256 for path in (*images, *([label] if label else []))]
        except MedsegError as error:
            faults[case.id] = str(error)
            continue
        tasks.append(
            SketchTask(
                id=case.id, images=images, label=label, channels=channels, labels=manifest.labels, ignore=manifest.ignore,
                spacing_xyz_mm=spacing, cache=cache / f"{case.id}.npz", key=sha256_json([settings, content]),
                aliases=manifest.aliases,
            )
        )  # fmt: skip
    return tasks, faults


def _geometry(path: Path, series: SeriesSection | None) -> _Geometry:
    header = read_header(path, series=series)
    shape, spacing = header.shape, spacing_xyz_mm(header.affine)
    if not header.planar:
        change = ras_change(header.affine)
        shape, spacing = changed_shape(shape, change), spacing[list(change.permutation)]
    return shape, (float(spacing[0]), float(spacing[1]), float(spacing[2]))


def _sketched(tasks: Sequence[SketchTask], processes: int | None) -> tuple[dict[str, Sketch], dict[str, str]]:
    count = processes or default_processes(_MEMORY_PER_CASE_BYTES)
    sketches: dict[str, Sketch] = {}
    faults: dict[str, str] = {}
    with CaseProgress("audit", len(tasks)) as progress:
        for outcome in run_cases(sketch_case, [(task.id, task) for task in tasks], processes=count):
            progress.advance()
            if outcome.value is None:
                faults[outcome.case_id] = str(outcome.error)
            else:
                sketches[outcome.case_id] = outcome.value
    # In the manifest's order, so that what is drawn from them does not depend on which worker was first.
    return {task.id: sketches[task.id] for task in tasks if task.id in sketches}, faults


def _judged(
    manifest: Manifest,
    sketches: Mapping[str, Sketch],
    unreadable: Mapping[str, str],
    tasks: Mapping[str, SketchTask],
    predictions: Mapping[str, Path],
) -> AuditReport:
    cases = {case.id: case for case in (*manifest.training, *manifest.testing)}
    folds = {case_id: case.fold for case_id, case in cases.items()}
    patients = {case_id: case.patient for case_id, case in cases.items()}
    training = {case.id for case in manifest.training}
    labelled = [sketch for sketch in sketches.values() if sketch.label_sha256 is not None and sketch.id in training]
    # Of overlapping labels the stored indices are combinations, and these are what is judged.
    names, notes = tuple(index_labels(manifest.labels)), []
    findings = [
        Finding(kind="unreadable", cases=(case_id,), score=80.0, sentence=reason.removeprefix(f"{case_id}: "))
        for case_id, reason in sorted(unreadable.items())
    ]
    findings += pair_findings(find_duplicates(list(sketches.values())), folds, patients)
    findings += same_label_findings(same_labels(list(sketches.values())))
    findings += grid_findings(labelled)
    partial = {case_id for case_id, case in cases.items() if case.labelled is not None}
    findings += shape_findings({sketch.id: sketch.shapes for sketch in labelled}, names, partial=partial)
    fitting = [sketch for sketch in labelled if sketch.classes is not None]
    predicted = dict(_predicted(fitting, tasks, predictions))
    if len({patients[sketch.id] for sketch in fitting if sketch.id not in predicted}) in range(1, _LEAST_PATIENTS):
        notes.append("too few labelled patients to judge labels against their scans; predictions would do it")
        fitting = [sketch for sketch in fitting if sketch.id in predicted]
    findings += fit_findings(_answers(fitting, patients, predicted, len(names)), names)
    findings += disagreement_findings(
        {sketch.id: _mean_dice(sketch.classes, predicted[sketch.id]) for sketch in fitting if sketch.id in predicted}
    )
    result = ranked(findings)
    notes += _pair_notes(result)
    shapes = class_shapes(names, [sketch.shapes for sketch in labelled])
    return AuditReport(
        findings=result,
        shapes=shapes,
        case_count=len(sketches) + len(unreadable),
        notes=tuple(notes),
        sketches=sketches,
    )


def _pair_notes(findings: Sequence[Finding]) -> list[str]:
    alike = [finding for finding in findings if finding.kind == "alike"]
    parted = sum(finding.evidence["folds"][0] != finding.evidence["folds"][1] for finding in alike)
    if not alike:
        return []
    note = (
        f"{len(alike)} pairs of cases are alike, {parted} of them in different folds; "
        "where two are of one patient, say so in the manifest (`patient`) and deal the folds again"
    )
    return [note]


def _predicted(
    fitting: Sequence[Sketch], tasks: Mapping[str, SketchTask], predictions: Mapping[str, Path]
) -> Iterator[tuple[str, ClassArray]]:
    """Predictions on the sketches' grids; one that can't be used is said and left out."""
    for sketch in fitting:
        path = predictions.get(sketch.id)
        if path is None:
            continue
        try:
            label_map = read_label_map(path, naming=tasks[sketch.id].labels)
            classes = to_classes(label_map, tasks[sketch.id].labels, ignore=None, name=f"prediction of {sketch.id}")
        except MedsegError as error:
            _LOG.warning("%s", error)
            continue
        if not sketch.planar:
            classes = apply_axes(classes, ras_change(label_map.affine))
        yield sketch.id, resample_labels(classes, sketch.shape_xyz)


def _answers(
    fitting: Sequence[Sketch], patients: Mapping[str, str], predicted: Mapping[str, ClassArray], class_count: int
) -> dict[str, Answers]:
    modelled = [sketch for sketch in fitting if sketch.id not in predicted]
    groups = {sketch.id: _group(patients[sketch.id]) for sketch in modelled}
    models = fit_voxel_models(modelled, groups, class_count=class_count, seed=_SEED) if modelled else None
    answers = {}
    for sketch in fitting:
        if sketch.id in predicted:
            shares = log_shares_of_prediction(predicted[sketch.id], class_count)
        else:
            assert models is not None
            shares = models.log_shares(sketch, groups[sketch.id])
        answer = ask(sketch, shares)
        if answer is not None:
            answers[sketch.id] = answer
    return answers


def _group(patient: str) -> int:
    return int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) % _GROUPS


def _mean_dice(classes: ClassArray | None, predicted: ClassArray) -> float:
    assert classes is not None
    values = []
    for index in np.union1d(np.unique(classes), np.unique(predicted)):
        if 0 < index < 255:
            both = np.count_nonzero((classes == index) & (predicted == index))
            values.append(2 * both / (np.count_nonzero(classes == index) + np.count_nonzero(predicted == index)))
    return float(np.mean(values)) if values else 1.0


def _csv(findings: Sequence[Finding]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("rank", "kind", "score", "case", "other_case", "finding", "also"))
    for rank, finding in enumerate(findings, start=1):
        if finding.score >= LOOK:
            first, *other = finding.cases
            row = (rank, finding.kind, f"{finding.score:.2f}", first, *(other or [""]), finding.sentence)
            writer.writerow((*row, "; ".join(finding.also)))
    return stream.getvalue()
