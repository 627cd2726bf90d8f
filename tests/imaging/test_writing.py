import dataclasses
import errno
import gzip
import itertools
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medseg.errors import EnvironmentFault, GeometryError, InputError, LabelError, UnsupportedScanError
from medseg.imaging import (
    Header,
    LabelMap,
    Volume,
    apply_axes,
    grid_difference,
    ras_change,
    read_header,
    read_label_map,
    read_volume,
    undo_axes,
    write_label_map,
    write_volume,
)
from medseg.imaging import nifti as nifti_module
from tests import synthetic

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("grid", synthetic.GRIDS)
def test_round_trip_on_every_grid(tmp_path, grid, suffix):
    made = synthetic.scan(grid)
    image, labels = synthetic.write_scan(made, tmp_path, suffix=suffix)
    volume = read_volume(image)
    np.testing.assert_array_equal(volume.array[0], made.image)
    assert grid_difference(volume.shape, volume.affine, made.shape, made.affine) is None
    found = read_label_map(labels)
    np.testing.assert_array_equal(found.array, made.labels)
    assert found.array.dtype == np.uint8
    assert grid_difference(found.shape, found.affine, made.shape, made.affine) is None
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == [f"case{suffix}"]


@pytest.mark.parametrize("grid", synthetic.GRIDS)
def test_other_readers_find_the_same_grid(tmp_path, grid):
    made = synthetic.scan(grid)
    _, path = synthetic.write_scan(made, tmp_path)
    image = nib.load(path)
    assert image.ndim == (2 if made.planar else 3)
    np.testing.assert_allclose(image.affine, made.affine, atol=1e-4)
    if not made.planar:
        np.testing.assert_allclose(image.header.get_qform(), made.affine, atol=1e-4)
        itk = SimpleITK.ReadImage(str(path))
        corner = [size - 1 for size in made.shape]
        lps = itk.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(np.array(lps) * [-1, -1, 1], (made.affine @ [*corner, 1])[:3], atol=1e-3)


def test_48_orientations_give_the_same_mask_in_the_world(tmp_path):
    made = synthetic.scan("oblique_left_handed")

    def segment(array):
        # something that cares for axis order: a threshold above a ramp along the second array axis
        return (array > 300 + 3 * np.arange(array.shape[1])[:, None]).astype(np.uint8)

    world = None
    for permutation in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            stored = synthetic.reoriented(made, permutation, flips)
            nib.save(nib.Nifti1Image(stored.image, stored.affine), tmp_path / "scan.nii")
            volume = read_volume(tmp_path / "scan.nii")
            change = ras_change(volume.affine)
            mask = undo_axes(segment(apply_axes(volume.array[0], change)), change)
            write_label_map(LabelMap(mask, volume.affine), tmp_path / "mask.nii.gz", like=volume.header)
            found = read_label_map(tmp_path / "mask.nii.gz")
            points = np.argwhere(found.array) @ found.affine[:3, :3].T + found.affine[:3, 3]
            rounded = sorted(map(tuple, np.round(points, 2).tolist()))
            world = world or rounded
            np.testing.assert_allclose(rounded, world, atol=0.02)
    assert world is not None
    assert len(world) > 100


@pytest.mark.parametrize(("qform_code", "sform_code"), [(0, 1), (1, 0), (1, 2), (3, 4), (2, 2)])
def test_codes_and_unit_of_the_scan_are_kept(tmp_path, qform_code, sform_code):
    made = synthetic.scan("oblique")
    like = dataclasses.replace(made.header, qform_code=qform_code, sform_code=sform_code, zooms_unit=3)
    write_label_map(made.label_map, tmp_path / "mask.nii.gz", like=like)
    header = read_header(tmp_path / "mask.nii.gz")
    assert (header.qform_code, header.sform_code, header.zooms_unit) == (qform_code, sform_code, 3)
    np.testing.assert_allclose(header.affine, made.affine, atol=1e-4)


def test_a_scan_without_codes_keeps_its_grid(tmp_path):
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), None)
    image.header.set_zooms((2, 3, 4))
    image.header["qform_code"] = image.header["sform_code"] = 0
    nib.save(image, tmp_path / "scan.nii.gz")
    header = read_header(tmp_path / "scan.nii.gz")
    write_label_map(LabelMap(np.ones((5, 6, 7), np.uint8), header.affine), tmp_path / "mask.nii.gz", like=header)
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    assert (written.header["qform_code"], written.header["sform_code"]) == (0, 0)


def test_nothing_but_the_grid_is_written(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    image.header["descrip"] = b"MARKER descrip"
    image.header["aux_file"] = b"MARKER aux"
    image.header["intent_name"] = b"MARKER intent"
    image.header["db_name"] = b"MARKER db"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"MARKER extension"))
    nib.save(image, tmp_path / "scan.nii")
    header = read_header(tmp_path / "scan.nii")
    write_label_map(LabelMap(np.ones((4, 4, 4), np.uint8), header.affine), tmp_path / "mask.nii", like=header)
    assert b"MARKER" not in (tmp_path / "mask.nii").read_bytes()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha", "a.nii"])
def test_equal_masks_give_equal_bytes(tmp_path, name):
    made = synthetic.scan("oblique")
    (tmp_path / "b").mkdir()
    write_label_map(made.label_map, tmp_path / name, like=made.header)
    other = LabelMap(np.asfortranarray(made.labels).astype(np.int64), made.affine)
    write_label_map(other, tmp_path / "b" / f"x{name}", like=made.header)
    assert (tmp_path / name).read_bytes() == (tmp_path / "b" / f"x{name}").read_bytes()


def test_gzip_header_holds_no_time_and_no_name(tmp_path):
    made = synthetic.scan("ras")
    write_label_map(made.label_map, tmp_path / "patient_name.nii.gz", like=None)
    data = (tmp_path / "patient_name.nii.gz").read_bytes()
    assert data[3] == 0  # no flags, so no name
    assert data[4:8] == b"\0\0\0\0"
    assert len(gzip.decompress(data)) == 352 + made.labels.size


@pytest.mark.parametrize(
    ("highest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (70000, "uint32"), (-3, "int8")]
)
def test_smallest_type(tmp_path, highest, dtype):
    array = np.zeros((3, 4, 5), np.int64)
    array[1, 2, 3] = highest
    write_label_map(LabelMap(array, np.eye(4)), tmp_path / "a.nii.gz", like=None)
    assert read_header(tmp_path / "a.nii.gz").dtype == dtype
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.nii.gz").array, array)


def test_refusals_leave_nothing_behind(tmp_path):
    made = synthetic.scan("ras")
    moved = dataclasses.replace(made.header, affine=made.affine + np.eye(4)[:, [3, 0, 1, 2]] * 0.5)
    with pytest.raises(GeometryError, match=r"^a\.nii\.gz: its .* of its scan"):
        write_label_map(made.label_map, tmp_path / "a.nii.gz", like=moved)
    with pytest.raises(LabelError, match="expected 3-D whole numbers"):
        write_label_map(LabelMap(made.image, made.affine), tmp_path / "a.nii.gz", like=None)
    with pytest.raises(UnsupportedScanError, match=r"not written as \.jpg"):
        write_label_map(made.label_map, tmp_path / "a.jpg", like=None)
    with pytest.raises(InputError, match=r"^a\.png: has a 3D grid, which a picture can't hold"):
        write_label_map(made.label_map, tmp_path / "a.png", like=None)
    assert not list(tmp_path.iterdir())


def test_a_writer_that_cuts_its_file_is_caught_and_the_old_file_stays(tmp_path, monkeypatch):
    made = synthetic.scan("ras")
    path = tmp_path / "a.nii.gz"
    write_label_map(made.label_map, path, like=None)
    before = path.read_bytes()
    whole = nifti_module.write_nifti

    def cut(array, affine, target, *, like):
        whole(array, affine, target, like=like)
        target.write_bytes(target.read_bytes()[:-100])

    monkeypatch.setattr(nifti_module, "write_nifti", cut)
    with pytest.raises(EnvironmentFault, match=r"^a\.nii\.gz: written file can't be read back .*check the disk"):
        write_label_map(LabelMap(made.labels * 2, made.affine), path, like=None)
    assert path.read_bytes() == before

    def other_voxels(array, affine, target, *, like):
        whole(array * 0, affine, target, like=like)

    monkeypatch.setattr(nifti_module, "write_nifti", other_voxels)
    with pytest.raises(EnvironmentFault, match=r"reads back wrong .voxels differ.; check the disk"):
        write_label_map(made.label_map, path, like=None)

    def no_space(array, affine, target, *, like):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nifti_module, "write_nifti", no_space)
    with pytest.raises(EnvironmentFault, match="no space left"):
        write_label_map(made.label_map, path, like=None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii.gz"]
    assert path.read_bytes() == before


def test_dicom_like_header_gives_scanner_codes(tmp_path):
    made = synthetic.scan("oblique")
    like = Header(shape=made.shape, affine=made.affine, format="dicom", modality="CT")
    write_label_map(made.label_map, tmp_path / "a.nii.gz", like=like)
    header = read_header(tmp_path / "a.nii.gz")
    assert (header.qform_code, header.sform_code, header.zooms_unit) == (1, 1, 2)


def test_volumes_of_several_channels(tmp_path):
    array = np.random.default_rng(0).integers(0, 200, (3, 6, 5, 4)).astype(np.float32)
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        write_volume(Volume(array, np.eye(4)), tmp_path / name, dtype="int16")
        np.testing.assert_array_equal(read_volume(tmp_path / name, channels=3).array, array)
    with pytest.raises(InputError, match="do not fit uint8 unchanged"):
        write_volume(Volume(array + 0.5, np.eye(4)), tmp_path / "b.nii.gz", dtype="uint8")
    with pytest.raises(InputError, match="not finite"):
        write_volume(Volume(array * np.nan, np.eye(4)), tmp_path / "b.nii.gz")


def test_wide_grids_become_nifti2(tmp_path):
    labels = np.zeros((40000, 2, 1), np.uint8)
    write_label_map(LabelMap(labels, np.eye(4)), tmp_path / "a.nii.gz", like=None)
    assert read_label_map(tmp_path / "a.nii.gz").shape == (40000, 2, 1)
