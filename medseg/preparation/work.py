"""What a worker does with one case: read, prepare, write."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.durable import sha256_json
from medseg.errors import DamagedFileError
from medseg.imaging import Header, read_label_map, to_classes
from medseg.preparation.case import prepare_image, prepare_labels
from medseg.preparation.facts import CaseInputs
from medseg.preparation.grid import Grid
from medseg.preparation.inputs import Fixed, fix, must_be_unchanged
from medseg.preparation.locations import sample_locations
from medseg.preparation.plan import Plan
from medseg.preparation.previous import prepare_previous
from medseg.preparation.store import STORE_FORMAT, StoredCase, case_path
from medseg.preparation.writing import CHUNK_PLANAR_XYZ, CHUNK_XYZ, WHOLE_BELOW_VOXELS, write_case
from medseg.runner.worker import die_with_parent

T = TypeVar("T")
R = TypeVar("R")
PREPARATION_VERSION = 1
"""Raised whenever the same scan and plan would give other voxels, so that old cases are made again."""


@dataclass(frozen=True, kw_only=True)
class CaseWork:
    """One case to write.

    Attributes:
        files: checksums of the inputs, which the key is made of.
        path: of the case's file.
        values: voxel values of scan and prepared array, whichever are more; for the memory estimate.
        previous: the first stage's mask and its checksum, in a cascade.
    """

    id: str
    inputs: CaseInputs
    files: tuple[Fixed, ...]
    key: str
    path: Path
    values: int
    previous: tuple[Path, Fixed] | None = None

    @classmethod
    def of(
        cls,
        inputs: CaseInputs,
        files: Sequence[Fixed],
        plan: Plan,
        values: int,
        output: Path,
        *,
        previous: Path | None = None,
    ) -> CaseWork:
        """The work for a case of the prepared folder ``output``; its key is made of its files and the plan.

        Raises:
            ScanError: the mask of the first stage can't be read.
        """
        shaping = plan.model_dump(
            mode="json",
            include={"dimensions", "orientation", "spacing_xyz_mm", "channels", "labels", "ignore", "stored_dtype"},
        )
        made_of: dict[str, Any] = {
            "store": STORE_FORMAT,
            "preparation": PREPARATION_VERSION,
            "chunks": [CHUNK_XYZ, CHUNK_PLANAR_XYZ, WHOLE_BELOW_VOXELS],
            "files": [fixed.sha256 for fixed in files],
            "images": len(inputs.images),
            "plan": shaping,
        }
        if plan.through_plane_axis is not None:
            # Only here, so that the keys of everything else, and with them the stores that are there, stay what they are.
            made_of["slices across"] = plan.through_plane_axis
        if inputs.labelled is not None:
            made_of["labelled"] = list(inputs.labelled)
        if inputs.aliases:
            made_of["aliases"] = [[name, list(others)] for name, others in inputs.aliases]
        mask = None if previous is None else (previous, fix(previous))
        if mask is not None:
            made_of["previous"] = mask[1].sha256
        key = sha256_json(made_of)[:16]
        return cls(
            id=inputs.id,
            inputs=inputs,
            files=tuple(files),
            key=key,
            path=case_path(output, inputs.id, key),
            values=values,
            previous=mask,
        )


def end_with_server(task: Callable[[T], R], item: T) -> R:
    """Runs a task in a worker that the kernel ends with the server it was forked from, which ends with the command."""
    if multiprocessing.parent_process() is not None:
        die_with_parent(os.getppid())
    return task(item)


def prepare_case(work: CaseWork, *, plan: Plan, verify: bool = False) -> bool:
    """Prepares one case and writes it.

    Args:
        work: the case.
        plan: how.
        verify: if the case is there, read it whole and write it only if it is damaged.

    Returns:
        Whether it was written.

    Raises:
        ScanError: a file can't be used, or changed since it was checked.
        EnvironmentFault: the store can't be written.
    """
    if verify and work.path.is_file() and _is_sound(StoredCase(work.id, work.path)):
        return False
    from medseg.preparation.loading import load_scan

    image, grid = prepare_image(load_scan(work.inputs.images, plan.channels), plan)
    labels = prepare_labels(_classes(work.inputs, grid), grid) if work.inputs.labels else None
    previous = None if work.previous is None else prepare_previous(_previous_classes(work), grid)
    for path, fixed in zip(work.inputs.paths, work.files, strict=True):
        must_be_unchanged(path, fixed.stamp)
    write_case(
        work.path,
        image=image,
        labels=labels,
        grid=grid,
        locations={} if labels is None else sample_locations(labels, case_id=work.id),
        dtype=plan.stored_dtype,
        slice_axis=plan.slice_axis,
        labelled=work.inputs.labelled,
        previous=previous,
    )
    return True


def _is_sound(case: StoredCase) -> bool:
    try:
        case.verify()
    except DamagedFileError:
        return False
    return True


def _previous_classes(work: CaseWork) -> npt.NDArray[np.uint8]:
    assert work.previous is not None
    path, fixed = work.previous
    classes = to_classes(read_label_map(path), dict(work.inputs.classes), ignore=None, name=path.name)
    must_be_unchanged(path, fixed.stamp)
    return classes


def _classes(inputs: CaseInputs, grid: Grid) -> npt.NDArray[np.uint8]:
    path, labels = inputs.labels[0], dict(inputs.classes)
    scan = Header(shape=grid.original_shape, affine=np.array(grid.original_affine))
    label_map = read_label_map(path, naming=inputs.naming, like=scan)
    return to_classes(label_map, labels, ignore=inputs.ignore, name=path.name)
