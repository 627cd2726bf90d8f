"""PET to SUV: the QIBA formula worked out by hand, and a refusal by tag name wherever it can't be."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medseg.errors import ScanError
from medseg.imaging.dicom import read_dicom_volume
from tests.imaging import dicom_samples as samples

WEIGHT_KG, DOSE_BQ, HALF_LIFE_S = 70, 3.5e8, 6586.2
# One hour from 09:00:00 to 10:00:00; 70 kg and 350 MBq make 2e-4 g/Bq before decay.
ONE_HOUR = 70 * 1000 / (3.5e8 * 2 ** (-3600 / 6586.2))


def pet(tmp_path, change=None, **options):
    planes = samples.stored(3, dtype="uint16")
    return samples.write_series(tmp_path / "pet", planes, modality="PT", change=change, **options), planes


def tracer(**values):
    """A change of the radiopharmaceutical's item in every slice."""

    def change(ds, index):
        item = ds.RadiopharmaceuticalInformationSequence[0]
        samples.everywhere(**values)(item, index)

    return change


def both(*changes):
    return lambda ds, index: [change(ds, index) for change in changes]


def factor(folder, planes):
    """The factor that the reader applied, from the largest value."""
    volume = read_dicom_volume(folder, unit="SUV")
    plain = planes.transpose(2, 1, 0).astype(np.float32)
    ratio = float(volume.array.max() / plain.max())
    np.testing.assert_allclose(volume.array[0], plain * ratio, rtol=1e-6)
    return ratio


def refused(folder, match):
    with pytest.raises(ScanError, match=match) as caught:
        read_dicom_volume(folder, unit="SUV")
    assert samples.SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decay_from_injection_to_the_start_of_the_series(tmp_path):
    assert factor(*pet(tmp_path)) == pytest.approx(ONE_HOUR, rel=1e-6)
    assert pytest.approx(2.9214e-4, rel=1e-4) == ONE_HOUR


def test_values_stay_activity_where_no_unit_is_asked(tmp_path):
    folder, planes = pet(tmp_path)
    np.testing.assert_array_equal(read_dicom_volume(folder).array[0], planes.transpose(2, 1, 0).astype(np.float32))


def test_corrected_to_the_injection(tmp_path):
    assert factor(*pet(tmp_path, samples.everywhere(DecayCorrection="ADMIN"))) == pytest.approx(2e-4, rel=1e-6)


def test_one_product_in_float32(tmp_path):
    folder, planes = pet(tmp_path, samples.everywhere(RescaleSlope=0.37))
    volume = read_dicom_volume(folder, unit="SUV")
    expected = planes.astype(np.float32) * np.float32(0.37) * np.float32(ONE_HOUR)
    np.testing.assert_array_equal(volume.array[0], expected.transpose(2, 1, 0))


def test_grams_per_millilitre_are_suv(tmp_path):
    assert factor(*pet(tmp_path, samples.everywhere(Units="GML"))) == 1.0


def test_suv_by_lean_body_mass_is_refused(tmp_path):
    refused(pet(tmp_path, samples.everywhere(Units="GML", SUVType="LBM"))[0], r"^pet: SUVType is not BW")


@pytest.mark.parametrize(
    ("start", "seconds"),
    [
        ({"RadiopharmaceuticalStartDateTime": "19990101093000"}, 1800),
        ({"RadiopharmaceuticalStartDateTime": "19981231235959.500000"}, 36000.5),
        ({"RadiopharmaceuticalStartTime": "0950"}, 600),
        ({"RadiopharmaceuticalStartTime": "095959.5"}, 0.5),
    ],
)
def test_start_of_the_injection(tmp_path, start, seconds):
    expected = 2e-4 * 2 ** (seconds / HALF_LIFE_S)
    assert factor(*pet(tmp_path, tracer(**start))) == pytest.approx(expected, rel=1e-6)


def test_offsets_from_utc(tmp_path):
    """Injected 08:30 UTC, scanned 10:00 at UTC+1: half an hour."""
    change = both(
        tracer(RadiopharmaceuticalStartDateTime="19990101083000+0000"),
        samples.everywhere(TimezoneOffsetFromUTC="+0100"),
    )
    assert factor(*pet(tmp_path, change)) == pytest.approx(2e-4 * 2 ** (1800 / HALF_LIFE_S), rel=1e-6)


def test_over_midnight(tmp_path):
    times = {"SeriesTime": "001000", "AcquisitionTime": "001000"}
    change = both(samples.everywhere(**times), tracer(RadiopharmaceuticalStartTime="235000"))
    assert factor(*pet(tmp_path, change)) == pytest.approx(2e-4 * 2 ** (1200 / HALF_LIFE_S), rel=1e-6)


def test_series_stamped_later_takes_the_earliest_acquisition(tmp_path):
    def change(ds, index):
        ds.SeriesTime = "170000"
        ds.AcquisitionTime = f"10{index:02d}00"

    folder, planes = pet(tmp_path, change)
    assert factor(folder, planes) == pytest.approx(ONE_HOUR, rel=1e-6)
    warnings = read_dicom_volume(folder, unit="SUV").header.warnings
    assert any("earliest acquisition" in warning for warning in warnings)


def test_series_stamped_later_by_ge(tmp_path):
    def change(ds, index):
        ds.SeriesTime = "170000"
        block = ds.private_block(0x0009, "GEMS_PETD_01", create=True)
        block.add_new(0x0D, "DT", "19990101093000.00")

    assert factor(*pet(tmp_path, change)) == pytest.approx(2e-4 * 2 ** (1800 / HALF_LIFE_S), rel=1e-6)


def philips(**elements):
    def change(ds, index):
        ds.Units = "CNTS"
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        for name, value in elements.items():
            block.add_new(int(name[1:], 16), "DS", str(value))

    return change


def test_philips_factor(tmp_path):
    assert factor(*pet(tmp_path, philips(x00=0.00123))) == pytest.approx(0.00123, rel=1e-6)


def test_philips_activity_factor(tmp_path):
    assert factor(*pet(tmp_path, philips(x00=0, x09=2.5))) == pytest.approx(2.5 * ONE_HOUR, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (samples.everywhere(Units="CNTS"), r"Units are CNTS without Philips' factor \(7053,1000\)"),
        (philips(x00=0), r"\(7053,1000\) and \(7053,1009\) are missing"),
        (samples.everywhere(Units=None), "Units are missing, expected BQML, CNTS or GML"),
        (samples.everywhere(Units="PROPCNTS"), "Units are of another kind"),
        (samples.everywhere(PatientWeight=None), "PatientWeight is missing"),
        (samples.everywhere(PatientWeight=0), "PatientWeight is not above 0"),
        (samples.everywhere(DecayCorrection=None), "DecayCorrection is missing, expected START or ADMIN"),
        (samples.everywhere(DecayCorrection="NONE"), "DecayCorrection is neither"),
        (samples.everywhere(CorrectedImage=["DECY"]), "CorrectedImage lacks ATTN"),
        (samples.everywhere(CorrectedImage=["ATTN"]), "CorrectedImage lacks DECY"),
        (samples.everywhere(SeriesTime=None), "SeriesTime is missing, which SUV needs"),
        (samples.everywhere(SeriesDate=None), "SeriesDate is missing, which SUV needs"),
        (samples.everywhere(SeriesTime="25"), "SeriesDate or SeriesTime is malformed"),
        (samples.everywhere(AcquisitionTime=None), "AcquisitionTime is missing, which SUV needs"),
        (samples.everywhere(RadiopharmaceuticalInformationSequence=None), "Sequence is missing, expected one item"),
        (tracer(RadionuclideTotalDose=None), "RadionuclideTotalDose is missing"),
        (tracer(RadionuclideTotalDose=350), r"RadionuclideTotalDose is below 1e5 Bq, expected Bq"),
        (tracer(RadionuclideHalfLife=None), "RadionuclideHalfLife is missing"),
        (tracer(RadionuclideHalfLife=60), "60 half-lives after the injection, expected at most 10"),
        (tracer(RadiopharmaceuticalStartTime=None), "RadiopharmaceuticalStartTime are missing or malformed"),
        (tracer(RadiopharmaceuticalStartTime=samples.SECRET), "RadiopharmaceuticalStartTime are missing or malformed"),
        (tracer(RadiopharmaceuticalStartTime="110000"), "injection lies 3600 s after the scan's start"),
        (tracer(RadiopharmaceuticalStartDateTime="19990102090000"), "injection lies 82800 s after the scan's start"),
        (samples.at(1, PatientWeight=71), "PatientWeight has 2 values within one series"),
        (samples.at(1, Units="GML"), "Units has 2 values within one series"),
    ],
)
def test_refusals_name_the_tag(tmp_path, change, match):
    refused(pet(tmp_path, change)[0], match)


def test_suv_of_a_ct(tmp_path):
    refused(samples.write_series(tmp_path / "ct"), r"^ct: unit SUV asked of Modality CT, expected PT")


def test_unknown_unit(tmp_path):
    with pytest.raises(ScanError, match=r"unit asked for is not known to DICOM, expected SUV"):
        read_dicom_volume(samples.write_series(tmp_path / "ct"), unit="lbs")


def enhanced_pet(tmp_path, *, units="Bq/ml", **tags):
    def change(frame, index):
        mapping, code = Dataset(), Dataset()
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 1 + 0.5 * index, -7.0
        code.CodeValue = units
        mapping.MeasurementUnitsCodeSequence = Sequence([code])
        frame.RealWorldValueMappingSequence = Sequence([mapping])

    planes = samples.stored(3, dtype="uint16")
    ds = samples.enhanced_dataset(planes, modality="PT", change=change)
    item = Dataset()
    item.RadiopharmaceuticalStartDateTime = "19990101090000"
    item.RadionuclideTotalDose, item.RadionuclideHalfLife = DOSE_BQ, HALF_LIFE_S
    ds.RadiopharmaceuticalInformationSequence = Sequence([item])
    ds.PatientWeight, ds.AttenuationCorrected, ds.DecayCorrected = WEIGHT_KG, "YES", "YES"
    ds.DecayCorrectionDateTime = "19990101100000"
    samples.everywhere(**tags)(ds, 0)
    path = samples.save(ds, tmp_path / "pet.dcm")
    return path, planes * (1 + 0.5 * np.arange(3))[:, None, None] - 7.0


def test_enhanced_pet(tmp_path):
    path, activity = enhanced_pet(tmp_path)
    volume = read_dicom_volume(path, unit="SUV")
    np.testing.assert_allclose(volume.array[0], activity.transpose(2, 1, 0) * ONE_HOUR, rtol=1e-5, atol=1e-7)


def test_enhanced_pet_in_suv_already(tmp_path):
    path, activity = enhanced_pet(tmp_path, units="g/ml{SUVbw}")
    volume = read_dicom_volume(path, unit="SUV")
    np.testing.assert_array_equal(volume.array[0], activity.transpose(2, 1, 0).astype(np.float32))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"units": "kBq/ml"}, "units of RealWorldValueMappingSequence are missing or of another kind"),
        ({"DecayCorrected": "NO"}, "DecayCorrected is not YES"),
        ({"AttenuationCorrected": None}, "AttenuationCorrected is not YES"),
        ({"DecayCorrectionDateTime": None}, "DecayCorrectionDateTime is missing"),
        ({"PatientWeight": None}, "PatientWeight is missing"),
    ],
)
def test_enhanced_pet_refusals(tmp_path, options, match):
    refused(enhanced_pet(tmp_path, **options)[0], match)


@pytest.mark.real
def test_real_pet_is_in_suv_already(shared_data):
    folder = shared_data / "dicom" / "STS_002" / "PET" / "image"
    plain, suv = read_dicom_volume(folder), read_dicom_volume(folder, unit="SUV")
    np.testing.assert_array_equal(plain.array, suv.array)
