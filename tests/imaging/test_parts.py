"""Scan files in two parts."""

import hashlib

import numpy as np
import pytest
import SimpleITK

from medseg.imaging.parts import parts_of, sha256_of_parts
from medseg.inference.inputs import InputFiles
from medseg.preparation.inputs import fix, stamp_of


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a.mhd", ["a.mhd", "a.raw"]), ("a.nhdr", ["a.nhdr", "a.raw"]), ("a.mha", ["a.mha"]), ("a.nrrd", ["a.nrrd"])],
)
def test_the_data_file_is_a_part(tmp_path, name, parts):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((2, 3, 4), np.int16)), str(tmp_path / name))
    assert [path.name for path in parts_of(tmp_path / name)] == parts
    data = tmp_path / parts[-1]
    before = sha256_of_parts(tmp_path / name)
    assert (before == hashlib.sha256(data.read_bytes()).hexdigest()) == (len(parts) == 1)
    # Whoever remembers a scan notices that only its voxels were changed.
    files, fixed = InputFiles([tmp_path / name]), fix(tmp_path / name)
    data.write_bytes(data.read_bytes()[:-1] + b"\7")
    assert sha256_of_parts(tmp_path / name) != before
    assert InputFiles([tmp_path / name]).sha256s() != {"image_0000": before}
    assert files.sha256s() != {"image_0000": before}
    assert fix(tmp_path / name).sha256 != fixed.sha256
    assert stamp_of(tmp_path / name) != fixed.stamp


def test_what_can_not_be_told_is_one_part(tmp_path):
    (tmp_path / "a.mhd").write_text("no header")
    (tmp_path / "b.mhd").write_text("NDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementDataFile = gone.raw\n")
    for name in ("a.mhd", "b.mhd", "c.mhd", "d.nii.gz"):
        assert parts_of(tmp_path / name) == (tmp_path / name,)
