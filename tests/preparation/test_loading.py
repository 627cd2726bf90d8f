import nibabel as nib
import numpy as np
import pytest

from medseg.errors import ScanError
from medseg.manifest.cases import Channel
from medseg.preparation.case import load_case
from medseg.preparation.loading import load_scan
from tests.synthetic import scan, write_scan


def same(a, b) -> bool:
    return (
        np.array_equal(a.array, b.array) and np.array_equal(a.affine, b.affine) and a.header.planar == b.header.planar
    )


@pytest.mark.parametrize(
    ("grid", "suffix"), [("oblique_flipped", ".nii.gz"), ("permuted", ".mha"), ("lps", ".nrrd"), ("picture", ".png")]
)
def test_monai_gives_the_voxels_that_inference_reads(tmp_path, grid, suffix):
    image, _ = write_scan(scan(grid), tmp_path, suffix=suffix)
    channels = [Channel(name="MR")]
    assert same(load_scan([image], channels), load_case([image], channels))


def test_several_files_and_grids(tmp_path):
    first, _ = write_scan(scan("ras", seed=1), tmp_path, case_id="first")
    second, _ = write_scan(scan("lps", seed=2), tmp_path, case_id="second")
    channels = [Channel(name="T1"), Channel(name="T2")]
    assert same(load_scan([first, second], channels), load_case([first, second], channels))


def test_a_refusal_comes_through_as_it_is(tmp_path):
    image, _ = write_scan(scan("ras"), tmp_path)
    image.write_bytes(image.read_bytes()[:3000])
    with pytest.raises(ScanError, match=r"^case\.nii\.gz: "):
        load_scan([image], [Channel(name="MR")])


@pytest.mark.real
@pytest.mark.parametrize(("series", "unit"), [("CT", None), ("PET", None), ("MR_T1", None)])
def test_the_dicom_series_are_bit_identical_to_their_nifti_twins(shared_data, series, unit):
    folder = shared_data / "dicom" / "STS_002"
    loaded = load_scan([folder / series / "image"], [Channel(name=series, unit=unit)])
    twin = nib.load(folder / "expected" / f"{series}_image.nii.gz")
    turned = nib.as_closest_canonical(nib.Nifti1Image(loaded.array[0], loaded.affine))
    expected = nib.as_closest_canonical(twin)
    assert np.array_equal(turned.get_fdata(dtype=np.float32), expected.get_fdata(dtype=np.float32))
    assert np.allclose(turned.affine, expected.affine, atol=1e-3)
