import logging

from medseg.config.sections import SeriesSection
from medseg.imaging.dicom_series import series_code
from medseg.inference.cases import find_cases
from medseg.inference.inputs import InputFiles
from medseg.preparation.plan import ChannelPlan
from tests.imaging.test_dicom_choice import add_series, uid

CT = (ChannelPlan(name="CT", scheme="ct"),)
RULE = SeriesSection(modality="CT", most_slices=True)


def test_an_export_of_many_patients_gives_a_case_a_study(tmp_path, caplog):
    # One patient's series in folders of their own, two patients' in one folder, and one without a CT.
    add_series(tmp_path / "a" / "scout", 1, count=1, patient="P1", study="1")
    add_series(tmp_path / "a" / "thin", 2, count=6, patient="P1", study="1")
    add_series(tmp_path / "flat", 3, count=3, patient="P2", study="2")
    add_series(tmp_path / "flat", 4, count=2, patient="P2", study="2")
    add_series(tmp_path / "flat", 5, count=4, patient="P3", study="3")
    add_series(tmp_path / "pet", 6, modality="PT", patient="P4", study="4")
    with caplog.at_level(logging.WARNING):
        cases = find_cases([tmp_path], channels=CT, series=RULE)
    flat = sorted(f"flat_{series_code(uid(number))}" for number in (3, 5))
    assert [case.id for case in cases] == ["a_thin", *flat]
    assert "1 of 4 studies have no series as the rule asks and are left out" in caplog.text
    of_p3 = next(case for case in cases if case.series == series_code(uid(5)))
    assert of_p3.files == tuple(f"S5_{number:04d}.dcm" for number in (1, 2, 3, 4))
    (channel,) = of_p3.channels(CT, RULE)
    assert channel.series == SeriesSection(code=of_p3.series)


def test_only_the_files_of_the_chosen_series_are_hashed(tmp_path):
    add_series(tmp_path, 1, patient="P1", study="1")
    add_series(tmp_path, 2, patient="P2", study="2")
    first, _ = find_cases([tmp_path], channels=CT, series=RULE)
    before = InputFiles(first.images, first.files).sha256s()
    other = next(path for path in tmp_path.iterdir() if path.name not in first.files)
    other.unlink()
    assert InputFiles(first.images, first.files).sha256s() == before
    assert InputFiles(first.images).sha256s() != before


def test_a_study_with_two_candidates_is_reported_and_passed_over(tmp_path):
    add_series(tmp_path, 1)
    add_series(tmp_path, 2)
    (case,) = find_cases([tmp_path], channels=CT, series=RULE)
    assert case.fault is not None
    assert "2 series of a study are as the rule asks, expected 1" in case.fault


def test_without_a_case_of_its_own_the_rule_takes_the_models_place(tmp_path):
    add_series(tmp_path, 1)
    (case,) = find_cases([tmp_path], channels=CT)
    assert case.series is None
    assert case.channels(CT, None) == CT
    assert case.channels(CT, RULE)[0].series == RULE
