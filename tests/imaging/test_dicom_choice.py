import numpy as np
import pytest

from medseg.config.series import SeriesSection
from medseg.errors import ScanError
from medseg.imaging import read_header, read_volume
from medseg.imaging.dicom_series import series_code
from tests.imaging import dicom_samples as samples


def add_series(folder, number, *, count=3, modality="CT", description="", patient="P1", study="1", **tags):
    """A series of its own among others in a folder, with these tags in every slice."""

    def change(ds, index):
        ds.SOPInstanceUID = f"{samples.SECRET_UID}.{patient}.{number}.{index}".replace("P", "9")
        ds.SeriesInstanceUID = uid(number)
        ds.StudyInstanceUID = f"{samples.SECRET_UID}.3.{study}"
        ds.PatientID, ds.SeriesDescription = patient, f"{samples.SECRET} {description}"
        for keyword, value in tags.items():
            setattr(ds, keyword, value)

    planes = samples.stored(count, seed=number) if modality != "PT" else samples.stored(count, dtype="uint16")
    samples.write_series(folder, planes, modality=modality, change=change, names=f"S{number}_{{:04d}}.dcm")
    return planes


def uid(number):
    return f"{samples.SERIES}.{number}"


@pytest.fixture
def export(tmp_path):
    """A scout, a thin and a thick CT and a PET in one folder."""
    add_series(tmp_path, 1, count=1, description="Scout")
    add_series(tmp_path, 2, count=6, description="Thorax 1.0 B30f")
    add_series(tmp_path, 3, count=4, description="Thorax 5.0 B70f")
    add_series(tmp_path, 4, count=5, modality="PT", description="PET AC")
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "number", "count"),
    [
        ({"modality": "PT"}, 4, 5),
        ({"modality": "CT", "most_slices": True}, 2, 6),
        ({"description": "thorax.*b70"}, 3, 4),
        ({"description": "^.*(PET|scout)", "most_slices": True}, 4, 5),
        ({"code": series_code(uid(3))}, 3, 4),
    ],
)
def test_the_rule_takes_one_and_the_choice_is_told(export, rule, number, count):
    header = read_header(export, series=SeriesSection(**rule))
    assert header.shape[2] == count
    assert header.series == series_code(uid(number))
    modality = "PT" if number == 4 else "CT"
    assert header.warnings[0] == f"series {header.series} ({modality}, {count} slices) was chosen of 4"
    assert read_volume(export, series=SeriesSection(**rule)).shape == header.shape


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"modality": "MR"}, r"none of its 4 series is as series asks \(modality MR\): it has .*\(CT, 1 slice\)"),
        ({"modality": "CT"}, r"3 series are as series asks \(modality CT\), expected 1: .*; say more in the rule"),
        ({}, r"4 series are as series asks \(nothing\)"),
    ],
)
def test_no_series_or_several_are_refused_without_header_text(export, rule, message):
    with pytest.raises(ScanError, match=message) as caught:
        read_header(export, series=SeriesSection(**rule))
    assert samples.SECRET not in str(caught.value)
    assert uid(1) not in str(caught.value)


def test_equally_many_slices_are_no_choice(tmp_path):
    add_series(tmp_path, 1)
    add_series(tmp_path, 2)
    with pytest.raises(ScanError, match="2 series are as series asks"):
        read_header(tmp_path, series=SeriesSection(most_slices=True))


def test_a_folder_of_one_series_must_fit_too(tmp_path):
    planes = add_series(tmp_path, 1)
    volume = read_volume(tmp_path, series=SeriesSection(modality="CT"))
    np.testing.assert_array_equal(volume.array[0, :, :, 0].T, planes[0] - 1024.0)
    assert volume.header.series == ""
    assert not any("chosen" in warning for warning in volume.header.warnings)
    with pytest.raises(ScanError, match="none of its 1 series"):
        read_volume(tmp_path, series=SeriesSection(modality="PT"))


def test_a_description_that_is_no_expression_is_a_fault_of_the_config():
    with pytest.raises(ValueError, match="description is no regular expression"):
        SeriesSection(description="(")
