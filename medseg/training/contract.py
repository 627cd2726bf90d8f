"""The input contract of a model: what the facts of the prepared cases say a scan should look like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medseg.imaging import Regions
from medseg.inference.contract import ChannelContract, InputContract, Span
from medseg.preparation.facts import CaseFacts, FactsJournal
from medseg.preparation.plan import Plan
from medseg.preparation.store import PreparedData

_ABSOLUTE = ("ct", "none", "rgb")


def training_contract(prepared: PreparedData) -> InputContract | None:
    """The contract of all prepared cases, which the plan was made of too; the same for every fold.

    Args:
        prepared: with ``facts.jsonl`` beside its index.

    Returns:
        None where no facts of the cases are kept (an older medseg prepared them, or the file was not copied along).
    """
    journal = FactsJournal(prepared.folder / "facts.jsonl")
    facts = {case_id: journal.facts(case_id) for case_id in prepared.cases if journal.key(case_id)}
    if not facts:
        return None
    looked_for = {case_id: prepared.cases[case_id].labelled for case_id in facts}
    return contract_of(
        [(one, looked_for[case_id]) for case_id, one in facts.items() if one.geometry is not None], prepared.plan
    )


def contract_of(cases: Sequence[tuple[CaseFacts, Sequence[str] | None]], plan: Plan) -> InputContract:
    """The contract of some cases.

    Args:
        cases: facts of each, and the classes that were looked for in it (None: all). Facts without ``scan`` (of an older
            medseg) add nothing to orientation and intensities.
        plan: for channels, classes, and whether axes are turned.
    """
    planar, scans = plan.of_pictures, [facts.scan for facts, _ in cases if facts.scan is not None]
    spacings = [facts.geometry.spacing_xyz_mm for facts, _ in cases if facts.geometry is not None]
    extents = [
        facts.shape_xyz if planar else np.multiply(facts.shape_xyz, facts.geometry.spacing_xyz_mm)
        for facts, _ in cases
        if facts.geometry is not None
    ]
    percentiles = np.array([scan.percentiles for scan in scans])
    volumes, present = _volumes(cases, plan)
    return InputContract(
        cases=len(cases),
        planar=planar,
        orientation=plan.orientation,
        channels=tuple(
            ChannelContract(
                name=channel.name,
                absolute=channel.scheme in _ABSOLUTE,
                percentiles=_spans(percentiles[:, number]) if scans else None,
            )
            for number, channel in enumerate(plan.channels)
        ),
        spacing_xyz_mm=None if planar else _spans(spacings),
        extent_xyz_mm=_spans(extents),
        axes=tuple(sorted({scan.axes for scan in scans})) if not planar else (),
        oblique_degrees=max(scan.oblique_degrees for scan in scans) if scans and not planar else None,
        oriented=all(scan.oriented for scan in scans) if scans and not planar else None,
        # One file without a modality, and nothing is known of the others' either.
        modalities=tuple(sorted({scan.modality for scan in scans})) if scans and all(s.modality for s in scans) else (),
        volume_ml=volumes,
        present=present,
    )


def _spans(rows: Any) -> tuple[Span, Span, Span] | None:
    """Smallest and largest of each of three columns, to six digits; None without rows."""
    values = np.asarray(rows, np.float64)
    if values.size == 0:
        return None
    x, y, z = (_span(column) for column in values.T)
    return x, y, z


def _span(values: Iterable[float]) -> Span:
    kept = list(values)
    return float(f"{min(kept):.6g}"), float(f"{max(kept):.6g}")


def _volumes(
    cases: Sequence[tuple[CaseFacts, Sequence[str] | None]], plan: Plan
) -> tuple[dict[str, Span], dict[str, float]]:
    """Per class without background: the range of its volume in ml where it is there, and the share of cases that have it."""
    volumes, present = {}, {}
    for index, name in enumerate(tuple(plan.labels)[1:], start=1):
        found = [
            _volume(facts, _indices(index, name, plan.regions))
            for facts, looked_for in cases
            if facts.class_voxels is not None and (looked_for is None or name in looked_for)
        ]
        if there := [volume for volume in found if volume > 0]:
            volumes[name] = _span(there)
        if found:
            present[name] = round(len(there) / len(found), 6)
    return volumes, present


def _indices(index: int, name: str, regions: Regions | None) -> Sequence[int]:
    return (index,) if regions is None else regions.indices_of(name)


def _volume(facts: CaseFacts, indices: Sequence[int]) -> float:
    """ml, or thousands of pixels of a picture."""
    assert facts.class_voxels is not None
    assert facts.geometry is not None
    voxels = sum(facts.class_voxels.get(index, 0) for index in indices)
    voxel_mm3 = 1.0 if facts.planar else float(np.prod(facts.geometry.spacing_xyz_mm))
    return voxels * voxel_mm3 / 1000
