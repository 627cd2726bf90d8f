import gzip
import logging
import os
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import LabelError, ScanError, UnsupportedScanError
from medseg.imaging import LabelMap, Limits, read_header, read_label_map, read_volume, write_label_map

SHAPE = (12, 10, 8)
DIM, DATATYPE, BITPIX, PIXDIM, OFFSET, SLOPE, INTER = 40, 70, 72, 76, 108, 112, 116
UNITS, QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = 123, 252, 254, 256, 280, 344


def values(dtype="int16", shape=SHAPE):
    return np.asfortranarray(np.random.default_rng(3).integers(0, 100, shape)).astype(dtype)


def nifti(path: Path, array=None, affine=None, *, kind=nib.Nifti1Image, codes=(1, 1), slope=None) -> Path:
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    array = values() if array is None else array
    image = kind(array, np.diag([0.8, 0.9, 2.5, 1]) if affine is None else affine, dtype=array.dtype)
    image.set_sform(image.affine, codes[1])
    image.set_qform(image.affine, codes[0])
    if slope:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return path


def patched(path: Path, changes: dict[int, bytes], *, cut: int | None = None) -> Path:
    """The same file with header bytes replaced (behind gzip where there is one)."""
    packed = path.suffix == ".gz"
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for place, new in changes.items():
        data[place : place + len(new)] = new
    data = data[:cut]
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    return path


def f32(*numbers):
    return struct.pack(f"<{len(numbers)}f", *numbers)


def i16(*numbers):
    return struct.pack(f"<{len(numbers)}h", *numbers)


# --- what must be read ---


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_equals_nibabel(tmp_path, name, dtype):
    path = nifti(tmp_path / name, values(dtype))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], nib.load(path).get_fdata(dtype=np.float32))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    assert volume.header is not None
    assert volume.header.dtype == dtype
    assert volume.header.warnings == ()
    assert read_header(path).shape == SHAPE


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_64_bit_integers_are_read_and_rounding_is_told(tmp_path, dtype):
    array = values(dtype)
    path = nifti(tmp_path / "a.nii.gz", array)
    assert read_volume(path).header.warnings == ()
    array[0, 0, 0] = 2**60
    volume = read_volume(nifti(tmp_path / "b.nii.gz", array))
    assert any("float32 rounds whole numbers" in sentence for sentence in volume.header.warnings)
    labels = read_label_map(tmp_path / "b.nii.gz")
    assert labels.array.dtype == dtype
    assert labels.array[0, 0, 0] == 2**60


def test_big_endian_and_nifti2_and_several_gzip_members(tmp_path):
    image = nib.Nifti1Image(values(), np.eye(4))
    header = image.header.as_byteswapped(">")
    nib.save(nib.Nifti1Image(values(), np.eye(4), header), tmp_path / "big.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "big.nii").array[0], values())
    labels = read_label_map(tmp_path / "big.nii")
    np.testing.assert_array_equal(labels.array, values())
    assert labels.array.dtype.isnative
    nifti(tmp_path / "two.nii.gz", kind=nib.Nifti2Image)
    np.testing.assert_array_equal(read_volume(tmp_path / "two.nii.gz").array[0], values())
    data = gzip.decompress((tmp_path / "two.nii.gz").read_bytes())
    (tmp_path / "members.nii.gz").write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]) + b"\0" * 512)
    np.testing.assert_array_equal(read_volume(tmp_path / "members.nii.gz").array[0], values())


def test_scaling_is_applied_like_nibabel_and_not_where_slope_is_zero(tmp_path):
    path = nifti(tmp_path / "a.nii", slope=(0.1, 7.3))
    np.testing.assert_array_equal(read_volume(path).array[0], nib.load(path).get_fdata(dtype=np.float32))
    patched(path, {SLOPE: f32(0, 7)})
    np.testing.assert_array_equal(read_volume(path).array[0], values())
    patched(path, {SLOPE: f32(np.inf, 0)})
    assert "scl_slope is not finite" in read_volume(path).header.warnings[0]
    patched(path, {SLOPE: f32(1, np.nan)})
    with pytest.raises(ScanError, match=r"a\.nii: scl_inter is nan, expected a finite number"):
        read_volume(path)


def test_rank_2_is_planar(tmp_path):
    header = read_header(nifti(tmp_path / "flat.nii.gz", values(shape=(7, 9))))
    assert header.planar
    assert header.shape == (7, 9, 1)
    assert read_volume(tmp_path / "flat.nii.gz").array.shape == (1, 7, 9, 1)


def test_4d_follows_the_declared_channels(tmp_path):
    array = values(shape=(*SHAPE, 3))
    path = nifti(tmp_path / "four.nii.gz", array)
    volume = read_volume(path, channels=3)
    assert volume.array.shape == (3, *SHAPE)
    np.testing.assert_array_equal(volume.array[2], array[..., 2])
    with pytest.raises(ScanError, match=r"four\.nii\.gz: is 4-D with 3 volumes, expected one volume; declare"):
        read_volume(path)
    with pytest.raises(ScanError, match="is 4-D with 3 volumes, expected 2 channels"):
        read_volume(path, channels=2)
    with pytest.raises(ScanError, match="is 4-D with 3 volumes"):
        read_label_map(path)
    single = nifti(tmp_path / "single.nii.gz", values(shape=(*SHAPE, 1)))
    assert read_volume(single).array.shape == (1, *SHAPE)
    with pytest.raises(ScanError, match="has 1 channel, expected 3"):
        read_volume(single, channels=3)
    # NIfTI's own place for several values a voxel is the fifth axis, behind one of time.
    vectors = nifti(tmp_path / "vectors.nii.gz", values(shape=(*SHAPE, 1, 3)))
    np.testing.assert_array_equal(
        read_volume(vectors, channels=3).array, values(shape=(*SHAPE, 1, 3))[..., 0, :].transpose(3, 0, 1, 2)
    )
    with pytest.raises(UnsupportedScanError, match="is 5-D"):
        read_volume(nifti(tmp_path / "five.nii.gz", values(shape=(*SHAPE, 2, 3))), channels=3)


@pytest.mark.parametrize(
    ("unit", "factor", "word"), [(1, 1000.0, "metre"), (3, 0.001, "micron"), (2, 1.0, ""), (0, 1.0, "")]
)
def test_units_become_millimetres(tmp_path, unit, factor, word):
    path = nifti(tmp_path / "a.nii", affine=np.diag([0.5, 0.5, 0.75, 1]) * (4 if unit == 3 else 1))
    factor *= 4 if unit == 3 else 1
    patched(path, {UNITS: bytes([unit])})
    header = read_header(path)
    np.testing.assert_allclose(header.affine, np.diag([0.5 * factor, 0.5 * factor, 0.75 * factor, 1]))
    assert header.zooms_unit == unit
    assert bool(header.warnings) == bool(word)
    assert not word or f"spatial unit is {word}; converted to millimetres" in header.warnings


def test_disagreeing_forms_are_told(tmp_path):
    path = nifti(tmp_path / "a.nii", affine=np.eye(4))
    patched(path, {268: f32(30.0)})  # qoffset_x
    assert read_header(path).warnings == ("sform and qform differ by 30 mm; sform used",)
    np.testing.assert_array_equal(read_header(path).affine, np.eye(4))
    patched(path, {QUATERN_B: f32(0.9, 0.9, 0.9)})
    assert "qform quaternion has a norm above 1 and was ignored" in read_header(path).warnings[0]
    patched(path, {SFORM_CODE: i16(0)})
    with pytest.raises(ScanError, match="qform quaternion has a norm above 1, expected at most 1"):
        read_header(path)


def test_no_form_at_all_is_told(tmp_path):
    header = read_header(nifti(tmp_path / "a.nii.gz", codes=(0, 0)))
    assert header.warnings == ("orientation is unknown (no sform, no qform): taken from the voxel sizes alone",)
    np.testing.assert_allclose(header.affine, nib.load(tmp_path / "a.nii.gz").affine)


@pytest.mark.parametrize(("qform", "sform"), [(1, 9), (9, 1), (-3, 1), (0, -1), (5, 5)])
def test_masks_keep_codes_that_nifti_does_not_know(tmp_path, qform, sform):
    path = patched(nifti(tmp_path / "a.nii"), {QFORM_CODE: i16(qform), SFORM_CODE: i16(sform)})
    header = read_header(path)
    told = [warning.partition(", ")[0] for warning in header.warnings if "NIfTI does not know" in warning]
    codes = (("sform", sform), ("qform", qform))
    assert told == [f"{form}_code is {code}" for form, code in codes if not 0 <= code <= 5]
    mask = tmp_path / "mask.nii"
    write_label_map(LabelMap(np.ones(SHAPE, np.uint8), header.affine), mask, like=header)
    assert mask.read_bytes()[QFORM_CODE : SFORM_CODE + 2] == i16(qform, sform)
    np.testing.assert_allclose(read_header(mask).affine, header.affine, atol=1e-5)


def test_misnamed_compression_is_told(tmp_path):
    data = nifti(tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(data)
    (tmp_path / "c.nii").write_bytes(gzip.compress(data))
    for name, words in (("b.nii.gz", "content is not gzip"), ("c.nii", "content is gzip")):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array[0], values())
        assert words in volume.header.warnings[0]


def test_constant_image_and_trailing_bytes_are_told(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", np.full(SHAPE, 5, np.int16))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x" * 100))
    assert read_volume(path).header.warnings == (
        "image is constant: every voxel is 5",
        "100 bytes after the voxels were ignored",
    )
    with pytest.raises(ScanError, match="has more than 50 bytes after its voxels"):
        read_volume(path, limits=Limits(max_trailing_bytes=50))


def test_extensions_are_passed_over(tmp_path):
    image = nib.Nifti1Image(values(), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"secret words"))
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").array[0], values())
    patched(tmp_path / "a.nii", {352: struct.pack("<i", 2**31 - 16)})
    with pytest.raises(ScanError, match="header extension has 2,147,483,632 bytes, expected 8 to"):
        read_volume(tmp_path / "a.nii")


# --- what must be refused, from the header ---

HEADER_FAULTS = {
    "no size": ({DIM: i16(3, 0)}, "size along x is 0"),
    "negative size": ({DIM: i16(3, -5536)}, r"size along x is -5536 \(dim\[1\]\), expected at least 1"),
    "no rank": ({DIM: i16(0)}, "number of dimensions is 0"),
    "rank 9": ({DIM: i16(9)}, "number of dimensions is 9"),
    "huge": ({DIM: i16(3, 32767, 32767, 32767)}, r"declares 32767x32767x32767 = 3\.5e\+13 voxels, expected at most"),
    "complex": ({DATATYPE: i16(32)}, "voxel type is complex64"),
    "RGB": ({DATATYPE: i16(128)}, r"voxel type is RGB24 \(a colour picture\)"),
    "float128": ({DATATYPE: i16(1536)}, "voxel type is float128"),
    "unknown type": ({DATATYPE: i16(77)}, "voxel type is code 77"),
    "bitpix": ({BITPIX: i16(8)}, "bitpix is 8, expected 16 for int16"),
    "no spacing": ({PIXDIM + 12: f32(0)}, r"spacing z is 0 \(pixdim\[3\]\), expected a positive number"),
    "spacing NaN": ({PIXDIM + 4: f32(np.nan)}, "spacing x is nan"),
    "offset 0": ({OFFSET: f32(0)}, r"voxels begin at byte 0 \(vox_offset\), expected a whole number from 352"),
    "offset NaN": ({OFFSET: f32(np.nan)}, "voxels begin at byte nan"),
    "offset past the end": ({OFFSET: f32(100000)}, r"voxels begin at byte 100,000 \(vox_offset\), the file has 2,272"),
    "offset absurd": ({OFFSET: f32(1e12)}, "expected at most 67,108,864"),
    "affine NaN": ({SROW_X: f32(np.nan)}, "affine has entries that are not finite"),
    "affine zero": ({SROW_X: f32(*[0] * 12)}, "affine has no inverse"),
    "affine singular": ({SROW_X: f32(1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0)}, "affine has no inverse"),
    "sheared": ({SROW_X: f32(1, 0.3, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)}, "axes are 17 degrees off right angles"),
    "spacing 1e6": ({SROW_X: f32(1e6, 0, 0)}, r"spacing is 1e\+06 x 0\.9 x 2\.5 mm, expected 0\.001 to 1000 mm"),
    "spacing 1e-6": ({SROW_X: f32(1e-6, 0, 0)}, "spacing is 1e-06 x"),
    "Analyze": ({MAGIC: b"\0\0\0\0"}, "NIfTI magic is wrong"),
    "pair": ({MAGIC: b"ni1\0"}, "is a header whose voxels lie in another file"),
}


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_header_faults(tmp_path, name, fault, no_absolute_paths):
    changes, words = HEADER_FAULTS[fault]
    path = patched(nifti(tmp_path / name), changes)
    for read in (read_header, read_volume, read_label_map):
        with pytest.raises(ScanError, match=rf"^scan\.nii(\.gz)?: .*{words}.*; ") as caught:
            read(path)
        no_absolute_paths(str(caught.value))


def test_nifti2_size_beyond_64_bits(tmp_path):
    path = nifti(tmp_path / "a.nii", kind=nib.Nifti2Image)
    patched(path, {16: struct.pack("<4q", 3, 2**40, 2**40, 2**40)})
    with pytest.raises(ScanError, match=r"= 1\.3e\+36 voxels, expected at most 1,073,741,824"):
        read_volume(path)


# --- what must be refused, from the bytes ---


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.99])
def test_truncated(tmp_path, fraction):
    packed = nifti(tmp_path / "a.nii.gz")
    data = packed.read_bytes()
    packed.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ScanError, match=r"a\.nii\.gz: gzip stream ends early .*copy or download it again"):
        read_volume(packed)
    plain = nifti(tmp_path / "a.nii")
    data = plain.read_bytes()
    plain.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ScanError, match=r"a\.nii: header promises 12x10x8 int16 = 1,920 bytes of voxels, the file has"):
        read_header(plain)


def test_payload_shorter_than_header_inside_a_sound_gzip(tmp_path):
    path = patched(nifti(tmp_path / "a.nii.gz"), {}, cut=352 + 960)
    with pytest.raises(ScanError, match="header promises 12x10x8 int16 = 1,920 bytes of voxels, the file has 960"):
        read_volume(path)


def test_no_flipped_bit_of_a_gzip_gives_wrong_voxels(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", values(shape=(16, 16, 16)))
    data = path.read_bytes()
    expected = read_volume(path).array
    rng = np.random.default_rng(0)
    refused = []
    for place in rng.choice(len(data), 300, replace=False):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            # A flip in the gzip header's own name or time harms nothing.
            np.testing.assert_array_equal(read_volume(path).array, expected)
        except ScanError as error:
            refused.append(str(error))
    assert len(refused) > 290
    assert all(message.startswith("a.nii.gz: ") for message in refused)


def test_wrong_checksum_and_cut_trailer(tmp_path):
    path = nifti(tmp_path / "a.nii.gz")
    data = path.read_bytes()
    path.write_bytes(data[:-8] + b"\1\2\3\4" + data[-4:])
    with pytest.raises(ScanError, match=r"checksum mismatch, .*the file is damaged"):
        read_volume(path)
    path.write_bytes(data[:-8])
    with pytest.raises(ScanError, match="gzip stream ends early"):
        read_volume(path)


def test_bomb_is_refused_from_its_header(tmp_path):
    path = patched(nifti(tmp_path / "a.nii"), {DIM: i16(3, 2000, 2000, 2500)})
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(path.read_bytes()) + packer.compress(bytes(50_000_000)) + packer.flush()
    (tmp_path / "bomb.nii.gz").write_bytes(bomb)
    with pytest.raises(ScanError, match="2000x2000x2500 = 1e"):
        read_volume(tmp_path / "bomb.nii.gz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite(tmp_path, value):
    array = values("float64")
    array[2, 3, 4] = array[5, 6, 7] = value
    with pytest.raises(ScanError, match=r"a\.nii\.gz: 2 voxels are not finite in float32"):
        read_volume(nifti(tmp_path / "a.nii.gz", array))


CONTENTS = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "text": (b"Dear colleague, the scan is on the other disk. " * 20, "content is text"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>" * 20, r"content is HTML \(did a download fail\?\)"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "content is a Git LFS pointer"),
    "zip": (b"PK\x03\x04" + bytes(1000), "content is a zip archive"),
    "zeros": (bytes(1000), "content is zero bytes only"),
    "short": (b"\x5c\x01\0\0", "content is of unknown content"),
}


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("content", CONTENTS)
def test_other_content(tmp_path, name, content):
    data, words = CONTENTS[content]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ScanError, match=words):
        read_volume(tmp_path / name)


# --- what must be refused, from the file system ---


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    (tmp_path / "dangling.nii").symlink_to("nowhere.nii")
    (tmp_path / "device.nii").symlink_to("/dev/zero")
    reasons = {
        "pipe.nii.gz": "is a pipe, expected a regular file",
        "folder.nii.gz": "is a folder, expected a regular file",
        "device.nii": "is a device, expected a regular file",
        "loop.nii": "is a symbolic link that leads back to itself",
        "dangling.nii": "is a symbolic link to a file that is not there",
        "missing.nii": "there is no such file",
        "x" * 300 + ".nii": "has a name too long",
    }
    for name, words in reasons.items():
        with pytest.raises(ScanError, match=rf"^{name}: {words}"):
            read_header(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(tmp_path):
    path = nifti(tmp_path / "a.nii")
    path.chmod(0)
    with pytest.raises(ScanError, match=r"a\.nii: can't be read \(permission denied\)"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a b.nii", "Größe.nii.gz", "-rf.nii", "..a.nii", "$(id).nii", "x" * 240 + ".nii.gz"])
def test_odd_names_are_read(tmp_path, name):
    assert read_volume(nifti(tmp_path / name)).shape == SHAPE


def test_control_characters_of_a_name_are_escaped(tmp_path):
    path = tmp_path / "a\nb\x1b[31m.nii"
    path.write_bytes(b"")
    with pytest.raises(ScanError, match=r"^a\\nb\\x1b\[31m\.nii: is empty"):
        read_volume(path)


# --- labels ---


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32"])
def test_label_maps_keep_their_type(tmp_path, dtype):
    labels = read_label_map(nifti(tmp_path / "a.nii.gz", values(dtype)))
    np.testing.assert_array_equal(labels.array, values(dtype))
    assert labels.array.dtype == dtype
    assert labels.shape == SHAPE


def test_nearly_whole_labels_are_rounded(tmp_path):
    array = values("float32")
    array[array == 2] = 1.9999
    array[array == 1] = 1.0001
    labels = read_label_map(nifti(tmp_path / "a.nii.gz", array))
    np.testing.assert_array_equal(labels.array, values())
    assert labels.array.dtype == np.int32


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 2.0**40])
def test_labels_that_are_no_labels(tmp_path, value):
    array = values("float32")
    array[1, 2, 3] = value
    with pytest.raises(LabelError, match=r"a\.nii\.gz: 1 label voxels are no whole number"):
        read_label_map(nifti(tmp_path / "a.nii.gz", array))


def test_scaled_integer_labels(tmp_path):
    path = nifti(tmp_path / "a.nii", slope=(2.0, 1.0))
    labels = read_label_map(path)
    np.testing.assert_array_equal(labels.array, nib.load(path).get_fdata())


@pytest.mark.real
def test_real_scans_equal_nibabel(shared_data):
    for path in sorted((shared_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[:10]:
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array[0], nib.load(path).get_fdata(dtype=np.float32))
        np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
