import subprocess
import sys

import numpy as np
import pytest
import SimpleITK

from medseg.errors import LabelError, ScanError, UnsupportedScanError
from medseg.imaging import Limits, read_header, read_label_map, read_volume
from tests import synthetic

NAMES = ["a.nrrd", "a.mha"]


def image(array, *, spacing=(0.5, 1.0, 2.0), origin=(10, -20, 30), is_vector=False):
    made = SimpleITK.GetImageFromArray(array, isVector=is_vector)
    made.SetSpacing(spacing[: made.GetDimension()])
    made.SetOrigin(origin[: made.GetDimension()])
    if made.GetDimension() == 3:
        made.SetDirection([float(v) for v in synthetic.rotation(10, 20, 30).ravel()])
    return made


def values(dtype="int16", shape=(4, 5, 6)):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_voxels_and_ras_affine(tmp_path, name, dtype, compressed):
    made = image(values(dtype))
    SimpleITK.WriteImage(made, str(tmp_path / name), useCompression=compressed)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array[0], values(dtype).transpose(2, 1, 0))
    for index in ((0, 0, 0), (5, 0, 0), (1, 4, 3)):
        lps = np.array(made.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], lps * [-1, -1, 1], atol=1e-9)
    header = read_header(tmp_path / name)
    assert (header.shape, header.dtype, header.channels) == ((6, 5, 4), dtype, 1)
    assert header.format == ("nrrd" if name.endswith("nrrd") else "metaimage")
    np.testing.assert_array_equal(header.affine, volume.affine)


@pytest.mark.parametrize("name", NAMES)
def test_channels(tmp_path, name):
    array = values(shape=(4, 5, 6, 3))
    SimpleITK.WriteImage(image(array, is_vector=True), str(tmp_path / name))
    np.testing.assert_array_equal(read_volume(tmp_path / name, channels=3).array, array.transpose(3, 2, 1, 0))
    with pytest.raises(ScanError, match="is 4-D with 3 volumes, expected one volume"):
        read_volume(tmp_path / name)
    with pytest.raises(ScanError, match="is 4-D with 3 volumes"):
        read_label_map(tmp_path / name)
    four = values(shape=(2, 4, 5, 6))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(four, isVector=False), str(tmp_path / name))
    np.testing.assert_array_equal(read_volume(tmp_path / name, channels=2).array, four.transpose(0, 3, 2, 1))


@pytest.mark.parametrize("name", NAMES)
def test_two_dimensions(tmp_path, name):
    SimpleITK.WriteImage(image(values(shape=(5, 6))), str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    assert volume.shape == (6, 5, 1)
    assert volume.header.planar
    np.testing.assert_array_equal(
        volume.affine, np.array([[-0.5, 0, 0, -10], [0, -1, 0, 20], [0, 0, 1, 0], [0, 0, 0, 1]])
    )


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_truncated_data_is_refused(tmp_path, name, compressed):
    path = tmp_path / name
    SimpleITK.WriteImage(image(values(shape=(20, 20, 20))), str(path), useCompression=compressed)
    data = path.read_bytes()
    for kept in (0.5, 0.99):
        path.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(
            ScanError, match=rf"^{name}: (gzip stream ends early|header promises 20x20x20 values = 16,000)"
        ):
            read_volume(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_of_compressed_data_is_refused(tmp_path, name):
    path = tmp_path / name
    SimpleITK.WriteImage(image(values(shape=(20, 20, 20))), str(path), useCompression=True)
    data = bytearray(path.read_bytes())
    data[-2000] ^= 16
    path.write_bytes(data)
    with pytest.raises(ScanError, match=r"the file is damaged|ends early|header promises"):
        read_volume(path)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_checked(tmp_path, name):
    array = values("float32")
    array[1, 2, 3] = np.nan
    SimpleITK.WriteImage(image(array), str(tmp_path / name))
    with pytest.raises(ScanError, match="1 voxel is not finite"):
        read_volume(tmp_path / name)
    with pytest.raises(LabelError, match="1 label voxels are no whole number"):
        read_label_map(tmp_path / name)
    with pytest.raises(ScanError, match="header declares"):
        read_header(tmp_path / name, limits=Limits(max_voxels=100))


def edited(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


NRRD_FAULTS = {
    "block": (b"type: short", b"type: block", "type is 'block', expected whole or real numbers"),
    "ascii": (b"encoding: raw", b"encoding: ascii", "encoding is 'ascii', expected raw or gzip"),
    "huge": (b"sizes: 6 5 4", b"sizes: 60000 60000 60000", r"declares 60000x60000x60000 = 2\.2e\+14"),
    "zero": (b"sizes: 6 5 4", b"sizes: 6 0 4", "size along y is 0"),
    "dimension": (b"dimension: 3", b"dimension: 4", "sizes are '6 5 4' for '4' dimensions"),
    "space": (b"left-posterior-superior", b"scanner-xyz", "space is 'scanner-xyz', expected"),
    "twice": (b"type: short", b"type: short\nTYPE: float", "header gives 'TYPE' twice"),
    "outside": (b"encoding: raw", b"encoding: raw\ndata file: /etc/passwd", "points to voxels in another folder"),
    "parent": (b"encoding: raw", b"encoding: raw\ndata file: ../x.raw", "points to voxels in another folder"),
    "list": (
        b"encoding: raw",
        b"encoding: raw\ndata file: LIST",
        "points to voxels in another folder or in many files",
    ),
    "pattern": (b"encoding: raw", b"encoding: raw\ndata file: x%03d.raw 1 9 1", "points to voxels in another folder"),
    "missing": (
        b"encoding: raw",
        b"encoding: raw\ndata file: gone.raw",
        r"^a\.nrrd: of the data file that its header names, there is no such file; put both",
    ),
    "link": (b"encoding: raw", b"encoding: raw\ndata file: link.raw", "points to a link that leads to another folder"),
    "magic": (b"NRRD000", b"NXRD000", "content is .*, expected a NRRD header"),
}
META_FAULTS = {
    "type": (b"MET_SHORT", b"MET_OTHER", "ElementType is 'MET_OTHER'"),
    "text": (b"BinaryData = True", b"BinaryData = False", "holds its voxels as text"),
    "huge": (b"DimSize = 6 5 4", b"DimSize = 60000 60000 60000", r"declares 60000x60000x60000 = 2\.2e\+14"),
    "outside": (b"= LOCAL", b"= /etc/passwd", "points to voxels in another folder"),
    "parent": (b"= LOCAL", b"= ../x.raw", "points to voxels in another folder"),
    "list": (b"= LOCAL", b"= LIST", "points to voxels in another folder or in many files"),
    "link": (b"= LOCAL", b"= link.raw", "points to a link that leads to another folder"),
    "singular": (b"TransformMatrix = ", b"TransformMatrix = 0 0 0 0 0 0 0 0 0\nX = ", "can't be decoded|no inverse"),
    "no header": (b"ElementDataFile", b"Element", "expected a MetaImage header"),
}


@pytest.mark.parametrize("fault", NRRD_FAULTS)
def test_nrrd_header_faults(tmp_path, fault, no_absolute_paths):
    old, new, words = NRRD_FAULTS[fault]
    _refused(tmp_path, "a.nrrd", old, new, words, no_absolute_paths)


@pytest.mark.parametrize("fault", META_FAULTS)
def test_metaimage_header_faults(tmp_path, fault, no_absolute_paths):
    old, new, words = META_FAULTS[fault]
    _refused(tmp_path, "a.mha", old, new, words, no_absolute_paths)


def _refused(tmp_path, name, old, new, words, no_absolute_paths):
    SimpleITK.WriteImage(image(values()), str(tmp_path / name))
    (tmp_path / "link.raw").symlink_to("/etc/passwd")
    edited(tmp_path / name, old, new)
    for read in (read_header, read_volume):
        with pytest.raises(ScanError, match=words) as caught:
            read(tmp_path / name)
        no_absolute_paths(str(caught.value))


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_a_data_file_beside_its_header_is_read_and_its_length_checked(tmp_path, name):
    SimpleITK.WriteImage(image(values()), str(tmp_path / name))
    np.testing.assert_array_equal(read_volume(tmp_path / name).array[0], values().transpose(2, 1, 0))
    data = next(path for path in tmp_path.iterdir() if path.suffix in (".raw", ".gz"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ScanError, match="header promises 6x5x4 values = 240 bytes of voxels, the file has 100"):
        read_volume(tmp_path / name)


def test_a_nrrd_in_ras_space_lies_where_it_says(tmp_path):
    path = tmp_path / "a.nrrd"
    made = image(values())
    SimpleITK.WriteImage(made, str(path))
    edited(path, b"left-posterior-superior", b"right-anterior-superior")
    volume = read_volume(path)
    np.testing.assert_allclose(
        (volume.affine @ [1, 4, 3, 1])[:3], made.TransformIndexToPhysicalPoint((1, 4, 3)), atol=1e-9
    )


def test_unknown_orientation_is_told(tmp_path):
    path = tmp_path / "a.nrrd"
    SimpleITK.WriteImage(image(values()), str(path))
    data = path.read_bytes().split(b"\n")
    kept = [line for line in data if not line.startswith((b"space", b"kinds"))]
    path.write_bytes(b"\n".join(kept))
    assert "orientation is unknown" in read_header(path).warnings[0]


def test_kind_is_unsupported_rather_than_damaged(tmp_path):
    SimpleITK.WriteImage(image(values()), str(tmp_path / "a.nrrd"))
    edited(tmp_path / "a.nrrd", b"encoding: raw", b"encoding: hex")
    with pytest.raises(UnsupportedScanError, match="convert it to"):
        read_volume(tmp_path / "a.nrrd")


def test_simpleitk_is_imported_only_when_such_a_file_comes():
    heavy = ("SimpleITK", "pydicom", "PIL", "torch", "monai")
    code = f"import sys, medseg.imaging; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
