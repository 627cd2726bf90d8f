"""What the key of a prepared case is made of."""

from pathlib import Path

import pytest

from medseg.preparation.facts import CaseInputs
from medseg.preparation.inputs import Fixed
from medseg.preparation.work import CaseWork
from tests.preparation.builders import plan_for

INPUTS = CaseInputs(
    id="a", images=(Path("a.nii.gz"),), labels=(), names=("a.nii.gz",), channels=(), classes=(), ignore=None, orientation="RAS"
)  # fmt: skip


def key(**changes):
    return CaseWork.of(INPUTS, [Fixed("stamp", "sha")], plan_for(**changes), 1, Path("prepared")).key


def test_only_what_shapes_the_array_counts():
    assert key() == key(batch_size=7, patch_size_xyz=(8, 8, 8), reasons={"batch_size": "Why not."})
    assert len({key(), key(spacing_xyz_mm=(1.0, 1.0, 2.0)), key(stored_dtype="float32"), key(scheme="zscore")}) == 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_another_axis_are_another_array(axis):
    others = [{}, {"dimensions": 2}, *({"dimensions": 2, "through_plane_axis": a} for a in range(3) if a != axis)]
    assert key(dimensions=2, through_plane_axis=axis) not in {key(**other) for other in others}
