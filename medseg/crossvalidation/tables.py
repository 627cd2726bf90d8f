"""What every step of post-processing would do to a case's counts, from one look at its two masks.

Each predicted component of a class is one row: its size, how much of it is right, and the same of the holes it encloses.
Any choice of components is then arithmetic, so that a decision on any set of cases reads no mask again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from medseg.durable import read_json, sha256_file, sha256_json, write_json
from medseg.errors import GeometryError, InputError
from medseg.evaluation.postprocessing import BoolArray, ClassArray, components, flat_axes, hole_voxels
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.reading import read_pair
from medseg.imaging import grid_difference, regions_of, spacing_xyz_mm, to_classes
from medseg.imaging.labels import IGNORE
from medseg.runner.pool import run_cases
from medseg.runner.resources import default_processes

_FORMAT = 1
_FEW_CASES = 8
_MEMORY_PER_CASE_BYTES = 2 * 1024**3


@dataclass(frozen=True, kw_only=True)
class Component:
    """One predicted component of a class; all in voxels.

    Attributes:
        size: of the component.
        counted: those that somebody labelled.
        right: those that have the class in the reference.
        hole_counted, hole_right: the same of the background it encloses.
        in_main: whether it lies in the largest component of all classes together.
    """

    size: int
    counted: int
    right: int
    hole_counted: int
    hole_right: int
    in_main: bool


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """One class of one case: voxels in the reference, the volume of a voxel, and the prediction's components by size."""

    reference: int
    voxel_mm3: float
    components: tuple[Component, ...]


CaseTable = Mapping[str, ClassTable]
"""Class name to its table, of those that the case's reference was labelled for."""


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done to one class, and to all of them before.

    Attributes:
        main_only: only what lies in the largest component of all classes together is kept.
        keep: then all components, the largest, or those of ``minimum_mm3`` at least.
        minimum_mm3: see ``keep``.
        fill: then holes are filled.
    """

    main_only: bool = False
    keep: Literal["all", "largest", "minimum"] = "all"
    minimum_mm3: float = 0.0
    fill: bool = False


def treated_dice(table: ClassTable, treatment: Treatment) -> float:
    """Dice of the class after a treatment; 1 where neither mask has the class.

    Scores leave such a case out (docs/metrics.md); a decision that weighs false alarms may not: a case whose spurious
    component is taken away goes from 0 to 1, rather than out of the mean.
    """
    kept = [part for part in table.components if part.in_main or not treatment.main_only]
    if treatment.keep == "largest":
        kept = kept[:1]
    elif treatment.keep == "minimum":
        kept = [part for part in kept if part.size * table.voxel_mm3 >= treatment.minimum_mm3]
    predicted = sum(part.counted + treatment.fill * part.hole_counted for part in kept)
    right = sum(part.right + treatment.fill * part.hole_right for part in kept)
    total = predicted + table.reference
    return 2 * right / total if total else 1.0


@dataclass(frozen=True, kw_only=True)
class TableTask:
    """A case's two label maps and the labels they are read with."""

    case_id: str
    prediction: Path
    reference: Path
    protocol: Protocol
    labelled: tuple[str, ...] | None = None


def case_table(task: TableTask) -> CaseTable:
    """Reads both masks of a case; ``task`` says where they are and what their values mean.

    Raises:
        GeometryError: they lie on different grids.
        LabelError: a voxel has a value that is no label.
        ScanError: a file can't be read.
    """
    prediction, reference = read_pair(task.prediction, task.reference, naming=task.protocol.naming)
    difference = grid_difference(prediction.shape, prediction.affine, reference.shape, reference.affine)
    if difference is not None:
        raise GeometryError(f"{task.case_id}: prediction and reference lie on different grids ({difference})")
    labels = task.protocol.labels
    predicted = to_classes(prediction, labels, ignore=None, name=f"{task.case_id}: prediction")
    wanted = to_classes(reference, labels, ignore=task.protocol.ignore, name=f"{task.case_id}: reference")
    voxel_mm3 = math.prod(float(size) for size in spacing_xyz_mm(reference.affine))
    regions = regions_of(labels)
    members = {
        name: (index,) if regions is None else regions.indices_of(name)
        for index, name in enumerate(labels)
        if index > 0 and (task.labelled is None or name in task.labelled)
    }
    return class_tables(predicted, wanted, members=members, voxel_mm3=voxel_mm3)


def class_tables(
    predicted: ClassArray, wanted: ClassArray, *, members: Mapping[str, Sequence[int]], voxel_mm3: float
) -> dict[str, ClassTable]:
    """A table per class.

    Args:
        predicted: (X, Y, Z) class indices.
        wanted: the same of the reference, 255 where nobody labelled.
        members: class name to its indices: one, or several where classes are regions that overlap.
        voxel_mm3: volume of a voxel.
    """
    flat = flat_axes(predicted.shape)
    predicted, wanted = predicted[flat], wanted[flat]
    numbers, sizes = components(predicted > 0)
    main = numbers == 1 + int(np.argmax(sizes)) if len(sizes) else np.zeros(predicted.shape, bool)
    tables = {}
    for name, indices in members.items():
        truth = np.isin(wanted, indices)
        rows = _rows(np.isin(predicted, indices), truth, free=predicted == 0, known=wanted != IGNORE, main=main)
        tables[name] = ClassTable(reference=int(np.count_nonzero(truth)), voxel_mm3=voxel_mm3, components=tuple(rows))
    return tables


def _rows(mask: BoolArray, truth: BoolArray, *, free: BoolArray, known: BoolArray, main: BoolArray) -> list[Component]:
    """The components of ``mask``, largest first; of equals the one that comes first in the array, as in post-processing."""
    numbers, sizes = components(mask)
    rows, boxes = [], ndimage.find_objects(numbers)
    for number in np.argsort(-sizes, kind="stable") + 1:
        box = boxes[number - 1]  # an enclosed voxel lies within it, so nothing outside has to be looked at
        inside = numbers[box] == number
        holes = hole_voxels(inside) & free[box]
        rows.append(
            Component(
                size=int(sizes[number - 1]),
                counted=int(np.count_nonzero(inside & known[box])),
                right=int(np.count_nonzero(inside & truth[box])),
                hole_counted=int(np.count_nonzero(holes & known[box])),
                hole_right=int(np.count_nonzero(holes & truth[box])),
                in_main=bool(main[box][inside][0]),
            )
        )
    return rows


def read_tables(tasks: Sequence[TableTask], folder: Path, *, processes: int | None = None) -> dict[str, CaseTable]:
    """A table per case, kept in ``folder`` and read from there where both masks and the labels are the same.

    Args:
        tasks: one per case.
        folder: of this set's tables.
        processes: at once; None chooses by cores and memory.

    Raises:
        InputError: a case can't be read; scoring has named it before.
    """
    keys = {task.case_id: _key(task) for task in tasks}
    found = {task.case_id: table for task in tasks if (table := _read(folder, task.case_id, keys)) is not None}
    waiting = [(task.case_id, task) for task in tasks if task.case_id not in found]
    if processes is None:
        processes = 1 if len(waiting) < _FEW_CASES else default_processes(_MEMORY_PER_CASE_BYTES)
    for outcome in run_cases(case_table, waiting, processes=processes):
        if outcome.value is None:
            raise InputError(str(outcome.error))
        plain = {name: asdict(table) for name, table in outcome.value.items()}
        write_json(
            folder / f"{outcome.case_id}.json", {"format": _FORMAT, "key": keys[outcome.case_id], "classes": plain}
        )
        found[outcome.case_id] = outcome.value
    return {task.case_id: found[task.case_id] for task in tasks}


def _key(task: TableTask) -> str:
    files = [sha256_file(path) for path in (task.prediction, task.reference)]
    labels = [[name, list(values)] for name, values in task.protocol.labels.items()]
    labelled = None if task.labelled is None else list(task.labelled)
    return sha256_json([_FORMAT, *files, labels, task.protocol.ignore, labelled])


def _read(folder: Path, case_id: str, keys: Mapping[str, str]) -> CaseTable | None:
    try:
        content = read_json(folder / f"{case_id}.json")
        if content["key"] != keys[case_id]:
            return None
        return {name: _table(plain) for name, plain in content["classes"].items()}
    except (InputError, KeyError, TypeError):
        return None


def _table(plain: Mapping[str, Any]) -> ClassTable:
    parts = tuple(Component(**part) for part in plain["components"])
    return ClassTable(reference=plain["reference"], voxel_mm3=plain["voxel_mm3"], components=parts)
