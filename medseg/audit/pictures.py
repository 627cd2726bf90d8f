"""The slice of a suspicious case that shows its label best, for pictures; drawing them is the tracker's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg.audit.findings import LOOK
from medseg.audit.sketch import foreground
from medseg.audit.stage import AuditReport


class SuspectSlice(NamedTuple):
    """One slice: ``image`` (X, Y), ``label`` (X, Y) class indices or None, ``planar`` for a picture."""

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.uint8] | None
    planar: bool


def suspect_slices(report: AuditReport, most: int = 20) -> Iterator[tuple[str, SuspectSlice]]:
    """(name, slice) for each case of the first ``most`` findings with a score that deserves a look.

    Yields:
        a name such as ``03 moved label hippocampus_001`` and the slice with most of the label; of a case without a label
        the middle one. A case that could not be read has none.
    """
    for rank, finding in enumerate(report.findings[:most], start=1):
        if finding.score < LOOK:
            return
        for case_id in finding.cases:
            sketch = report.sketches.get(case_id)
            if sketch is None:
                continue
            z = sketch.shape_xyz[2] // 2
            if sketch.classes is not None:
                area = np.count_nonzero(foreground(sketch.classes), axis=(0, 1))
                z = int(area.argmax()) if area.any() else z
            label = sketch.classes[..., z] if sketch.classes is not None else None
            image = sketch.image.mean(axis=0)[..., z]
            yield f"{rank:02d} {finding.kind} {case_id}", SuspectSlice(image, label, sketch.planar)
