import nibabel as nib
import numpy as np
import pytest

from medseg.config.series import SeriesSection
from medseg.errors import ScanError
from medseg.imaging import read_volume, resample_to_grid
from medseg.imaging.dicom_headers import read_file_header
from medseg.imaging.dicom_series import headers_read_once, series_code
from medseg.manifest.cases import Channel
from medseg.preparation.case import align_channels, load_case
from medseg.preparation.loading import load_scan
from tests.imaging import dicom_samples as samples
from tests.imaging.test_dicom_choice import add_series, uid
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


RULES = {
    "T1": SeriesSection(modality="MR", description="t1"),
    "FLAIR": SeriesSection(modality="MR", description="flair"),
    "PET": SeriesSection(modality="PT"),
}


@pytest.fixture
def export(tmp_path):
    """T1, FLAIR on a grid of its own, a scout and PET of a patient, in one folder."""
    add_series(tmp_path / "p1", 1, count=4, modality="MR", description="T1 MPRAGE")
    add_series(tmp_path / "p1", 2, count=4, modality="MR", description="FLAIR", PixelSpacing=[1.0, 1.0])
    add_series(tmp_path / "p1", 3, count=1, modality="MR", description="scout")
    add_series(tmp_path / "p1", 4, count=4, modality="PT")
    return tmp_path / "p1"


def channels_of(rules):
    return [Channel(name=name, unit="SUV" if name == "PET" else None, series=rule) for name, rule in rules.items()]


@pytest.mark.parametrize("load", [load_case, load_scan])
@pytest.mark.parametrize("named", [1, 3])
def test_channels_of_one_dicom_folder(export, load, named):
    volume = load([export] * named, channels_of(RULES))
    alone = [read_volume(export, unit="SUV" if name == "PET" else None, series=rule) for name, rule in RULES.items()]
    # As for files: on the first one's grid, another's is resampled.
    flair = resample_to_grid(alone[1], alone[0].shape, alone[0].affine)
    assert not np.array_equal(flair.array, alone[1].array)
    np.testing.assert_array_equal(volume.array, np.concatenate([alone[0].array, flair.array, alone[2].array]))
    np.testing.assert_array_equal(volume.affine, alone[0].affine)
    codes = [series_code(uid(number)) for number in (1, 2, 4)]
    told = [warning for warning in volume.header.warnings if "was chosen" in warning]
    kinds = zip(RULES, codes, ("MR", "MR", "PT"), strict=True)
    assert told == [f"{name}: series {code} ({kind}, 4 slices) was chosen of 4" for name, code, kind in kinds]
    assert volume.header.series == codes[0]


@pytest.mark.parametrize("load", [load_case, load_scan])
def test_a_shared_folders_headers_are_parsed_once_a_case(export, monkeypatch, load):
    parsed = []

    def counted(path, label):
        parsed.append(path)
        return read_file_header(path, label)

    monkeypatch.setattr("medseg.imaging.dicom_series.read_file_header", counted)
    load([export], channels_of(RULES))
    files = sorted(export.iterdir())
    assert sorted(parsed) == files
    # A later case sees what is there by then.
    for path in export.glob("S2_*"):
        path.unlink()
    with pytest.raises(ScanError, match="channel FLAIR: p1: none of its 3 series"):
        load([export], channels_of(RULES))


def test_a_file_that_changes_after_its_header_was_parsed_is_refused(export):
    with headers_read_once():
        read_volume(export, series=RULES["T1"])
        path = export / "S2_0001.dcm"
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(ScanError, match="file changed while it was being read"):
            read_volume(export, series=RULES["FLAIR"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"FLAIR": "t2"},
            r"^channel FLAIR: p1: none of its 4 series is as series asks \(modality MR, description t2\): it",
        ),
        ({"FLAIR": "t1|flair"}, r"^channel FLAIR: p1: 2 series are as series asks .*say more in the rule"),
        (
            {"FLAIR": "mprage"},
            r"^channel FLAIR: its rule takes series \w+ of p1, which is channel T1 already, expected an",
        ),
    ],
)
def test_a_channel_that_has_not_one_series_of_its_own(export, changed, message):
    rules = RULES | {name: SeriesSection(modality="MR", description=text) for name, text in changed.items()}
    for load in (load_case, load_scan):
        with pytest.raises(ScanError, match=message) as caught:
            load([export] * 3, channels_of(rules))
        assert samples.SECRET not in str(caught.value)


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


@pytest.mark.real
def test_pet_ct_and_mr_of_one_folder_are_their_series(shared_data, tmp_path):
    study = shared_data / "dicom" / "STS_002"
    for name in ("CT", "PET", "MR_T1"):
        for number, path in enumerate(sorted((study / name / "image").iterdir())):
            (tmp_path / f"{name}_{number}.dcm").symlink_to(path)
    units = {"PT": "SUV"}
    channels = [
        Channel(name=kind, unit=units.get(kind), series=SeriesSection(modality=kind)) for kind in ("CT", "PT", "MR")
    ]
    together = load_case([tmp_path], channels)
    alone = [
        load_case([study / name / "image"], [Channel(name=kind, unit=units.get(kind))])
        for name, kind in (("CT", "CT"), ("PET", "PT"), ("MR_T1", "MR"))
    ]
    expected = align_channels(alone, ["CT", "PT", "MR"])
    np.testing.assert_array_equal(together.array, expected.array)
    np.testing.assert_array_equal(together.affine, expected.affine)
    assert [warning[:3] for warning in together.header.warnings if "was chosen of 3" in warning] == [
        "CT:",
        "PT:",
        "MR:",
    ]
