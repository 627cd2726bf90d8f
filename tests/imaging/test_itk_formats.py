import gzip
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import SimpleITK

from medseg.errors import LabelError, ScanError, UnsupportedScanError
from medseg.imaging import LabelMap, Limits, read_header, read_label_map, read_volume, write_label_map
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


def raw_nrrd(path, lines, data=None):
    """A NRRD of ``values()``, x fastest, with a header of the given lines."""
    data = values().tobytes() if data is None else data
    path.write_bytes("\n".join(["NRRD0004", *lines, "", ""]).encode() + data)
    return path


PLAIN_NRRD = ("type: short", "dimension: 3", "sizes: 6 5 4", "encoding: raw", "endian: little")
PLACED = ("space: LPS", "space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)")
PLAIN_MHA = ("NDims = 3", "DimSize = 6 5 4", "ElementType = MET_SHORT", "BinaryData = True")
PLACED_MHA = ("ElementSpacing = 1 1 1", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0")


def raw_mha(path, lines, data=None):
    data = values().tobytes() if data is None else data
    path.write_bytes("\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode() + data)
    return path


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (PLACED, []),
        (PLACED[:2], ["place is unknown (no space origin)"]),
        (PLACED[:1], ["orientation is unknown (no space directions)", "voxel size is unknown"]),
        (("spacings: 2 3 4",), ["orientation is unknown (no space)"]),
        ((), ["orientation is unknown (no space)", "voxel size is unknown"]),
    ],
)
def test_what_a_nrrd_does_not_say_of_its_grid_is_told(tmp_path, lines, told):
    header = read_header(raw_nrrd(tmp_path / "a.nrrd", (*PLAIN_NRRD, *lines)))
    assert [one.startswith(start) for one, start in zip(header.warnings, told, strict=True)] == [True] * len(told)
    assert header.oriented == (PLACED[1] in lines)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (PLACED_MHA, []),
        (PLACED_MHA[:2], ["place is unknown (no Offset)"]),
        (PLACED_MHA[:1], ["orientation is unknown (no TransformMatrix)"]),
        (PLACED_MHA[1:], ["voxel size is unknown (no ElementSpacing)"]),
    ],
)
def test_what_a_metaimage_does_not_say_of_its_grid_is_told(tmp_path, lines, told):
    header = read_header(raw_mha(tmp_path / "a.mha", (*PLAIN_MHA, *lines)))
    assert [one.startswith(start) for one, start in zip(header.warnings, told, strict=True)] == [True] * len(told)
    assert header.oriented == (PLACED_MHA[1] in lines)


@pytest.mark.parametrize("said", ["", "CompressedDataSize = 9\n", "CompressedDataSize = 99999\n"])
@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_compressed_metaimages_are_read_whatever_they_say_of_their_length(tmp_path, said, pack):
    # MetaIO believes the length, and where it is wrong hands out memory that nobody has written to.
    lines = (*PLAIN_MHA, *PLACED_MHA, f"CompressedData = True\n{said}".rstrip())
    path = raw_mha(tmp_path / "a.mha", lines, pack(values().tobytes()))
    np.testing.assert_array_equal(read_volume(path).array[0], values().transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("order", "dtype"),
    [("BinaryDataByteOrderMSB = True", ">i2"), ("ElementByteOrderMSB = True", ">i2"), ("HeaderSize = -1", "<i2")],
)
def test_byte_orders_of_metaimages(tmp_path, order, dtype):
    path = raw_mha(tmp_path / "a.mha", (*PLAIN_MHA, *PLACED_MHA, order), values().astype(dtype).tobytes())
    np.testing.assert_array_equal(read_volume(path).array[0], values().transpose(2, 1, 0))


@pytest.mark.parametrize("first", [True, False])
def test_an_axis_of_one_channel_is_no_axis(tmp_path, first):
    sizes = "sizes: 1 6 5 4" if first else "sizes: 6 5 4 1"
    space = PLACED[1].removeprefix("space directions: ")
    directions = f"space directions: none {space}" if first else f"space directions: {space} none"
    kinds = "kinds: vector domain domain domain" if first else "kinds: domain domain domain list"
    lines = ("type: short", "dimension: 4", sizes, *PLAIN_NRRD[3:], PLACED[0], directions, kinds, PLACED[2])
    volume = read_volume(raw_nrrd(tmp_path / "a.nrrd", lines))
    np.testing.assert_array_equal(volume.array[0], values().transpose(2, 1, 0))


def test_channels_may_lie_on_the_last_axis(tmp_path):
    planes = values(shape=(3, 4, 5, 6))
    lines = ("type: short", "dimension: 4", "sizes: 6 5 4 3", *PLAIN_NRRD[3:], PLACED[0])
    lines += (f"{PLACED[1]} none", "kinds: domain domain domain list", PLACED[2])
    volume = read_volume(raw_nrrd(tmp_path / "a.nrrd", lines, planes.tobytes()), channels=3)
    np.testing.assert_array_equal(volume.array, planes.transpose(0, 3, 2, 1))


def test_bytes_after_the_voxels_are_told(tmp_path):
    path = raw_nrrd(tmp_path / "a.nrrd", (*PLAIN_NRRD, *PLACED), values().tobytes() + bytes(7))
    assert read_volume(path).header.warnings == ("7 bytes after the voxels were ignored",)


SHORT_FAULTS = {
    "no endian": ("a.nrrd", (*PLAIN_NRRD[:4], *PLACED), "endian is missing, expected little or big"),
    "zero vector": (
        "a.nrrd",
        (*PLAIN_NRRD, PLACED[0], "space directions: (1,0,0) (0,0,0) (0,0,1)"),
        "voxel size is 0 along an axis",
    ),
    "nan spacing": ("a.nrrd", (*PLAIN_NRRD, "spacings: 1 nan 1"), "voxel size is nan along an axis"),
    "two ranges": (
        "a.nrrd",
        (*PLAIN_NRRD, PLACED[0], "space directions: none none (1,0,0)"),
        "has 2 axes without direction",
    ),
    "zero spacing": ("a.mha", (*PLAIN_MHA, "ElementSpacing = 1 0 1", *PLACED_MHA[1:]), "voxel size is 0 along an axis"),
    "two orders": (
        "a.mha",
        (*PLAIN_MHA, *PLACED_MHA, "BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = True"),
        "BinaryDataByteOrderMSB and ElementByteOrderMSB disagree",
    ),
}


@pytest.mark.parametrize("fault", SHORT_FAULTS)
def test_headers_that_leave_a_choice_are_refused(tmp_path, fault):
    name, lines, words = SHORT_FAULTS[fault]
    (raw_nrrd if name.endswith("nrrd") else raw_mha)(tmp_path / name, lines)
    for read in (read_header, read_volume):
        with pytest.raises(ScanError, match=words):
            read(tmp_path / name)


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


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz", "a.png"])
def test_names_that_are_no_utf8(tmp_path, name):
    # SimpleITK brings the process down on such a name, as folders from Latin-1 disks have it.
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    folder.mkdir()
    labels = LabelMap(values("uint8", (4, 3, 1)), np.eye(4))
    write_label_map(labels, folder / name, like=None)
    np.testing.assert_array_equal(read_label_map(folder / name).array, labels.array)
    assert read_header(folder / name).shape == (4, 3, 1)
