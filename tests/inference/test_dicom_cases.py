import logging

import pytest

from medseg.config.series import SeriesSection
from medseg.errors import ConfigError
from medseg.imaging.dicom_series import series_code
from medseg.inference.cases import find_cases
from medseg.inference.inputs import InputFiles
from medseg.preparation.plan import ChannelPlan
from tests.imaging import dicom_samples as samples
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
    of_p3 = next(case for case in cases if case.series == (series_code(uid(5)),))
    assert of_p3.files == (tuple(f"S5_{number:04d}.dcm" for number in (1, 2, 3, 4)),)
    (channel,) = of_p3.channels(CT, RULE)
    assert channel.series == SeriesSection(code=series_code(uid(5)))


def test_only_the_files_of_the_chosen_series_are_hashed(tmp_path):
    add_series(tmp_path, 1, patient="P1", study="1")
    add_series(tmp_path, 2, patient="P2", study="2")
    first, _ = find_cases([tmp_path], channels=CT, series=RULE)
    before = InputFiles(first.images, first.files).sha256s()
    other = next(path for path in tmp_path.iterdir() if path.name not in first.files[0])
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
    assert case.series == ()
    assert case.channels(CT, None) == CT
    assert case.channels(CT, RULE)[0].series == RULE


def by_channel(**rules):
    return tuple(
        ChannelPlan(name=name, scheme="zscore", series=SeriesSection(modality="MR", description=description))
        for name, description in rules.items()
    )


MR = by_channel(T1="t1", FLAIR="flair")


def add_study(folder, patient, first, *, flair=("flair",), subfolders=False):
    """A T1, a scout and, with the descriptions that are given, FLAIRs of one patient."""
    for number, name in enumerate(("t1", "scout", *flair), start=first):
        place = folder / f"{name}_{number}" if subfolders else folder
        add_series(place, number, modality="MR", description=name, patient=patient, study=patient[1:])


def test_a_study_gives_a_series_per_channel_wherever_its_files_lie(tmp_path, caplog):
    # All of one patient in one folder; each series in a folder of its own; two patients in one folder; no MR at all.
    add_study(tmp_path / "one", "P1", 1)
    add_study(tmp_path / "parted", "P2", 11, subfolders=True)
    add_study(tmp_path / "two", "P3", 21)
    add_study(tmp_path / "two", "P4", 31)
    add_series(tmp_path / "ct", 41, patient="P5", study="5")
    with caplog.at_level(logging.WARNING):
        cases = find_cases([tmp_path], channels=MR)
    found = {case.id: case for case in cases}
    of_two = [f"two_{series_code(uid(number))}" for number in (21, 31)]
    assert list(found) == ["one", "parted", *sorted(of_two)]
    assert "1 of 5 studies have no series as the rule asks and are left out" in caplog.text
    assert all(case.fault is None for case in cases)
    for name, first in (("one", 1), ("parted", 11), (of_two[0], 21), (of_two[1], 31)):
        assert found[name].series == (series_code(uid(first)), series_code(uid(first + 2)))
        assert [channel.series.code for channel in found[name].channels(MR, None)] == list(found[name].series)
    assert found["one"].images == (tmp_path / "one",) * 2
    assert found["parted"].images == (tmp_path / "parted" / "t1_11", tmp_path / "parted" / "flair_13")
    assert found["one"].files[1] == tuple(f"S3_{number:04d}.dcm" for number in (1, 2, 3))
    hashes = InputFiles(found["one"].images, found["one"].files).sha256s()
    assert list(hashes) == ["image_0000", "image_0001"]
    assert len(set(hashes.values())) == 2


def test_series_of_several_studies_side_by_side_are_named_after_the_first_channels_folder(tmp_path):
    for patient, first in (("P1", 1), ("P2", 11)):
        add_study(tmp_path, patient, first, subfolders=True)
    assert [case.id for case in find_cases([tmp_path], channels=MR)] == ["t1_1", "t1_11"]
    assert [case.id for case in find_cases([tmp_path], channels=MR, patterns=["flair_13"])] == ["t1_11"]


def test_a_channel_without_its_one_series_is_refused_beside_the_good(tmp_path):
    add_study(tmp_path / "good", "P1", 1)
    add_study(tmp_path / "missing", "P2", 11, flair=())
    add_study(tmp_path / "several", "P3", 21, flair=("flair axial", "flair coronal"))
    good, missing, several = find_cases([tmp_path], channels=MR)
    assert good.fault is None
    listed = ", ".join(sorted(f"{series_code(uid(number))} (MR, 3 slices)" for number in (11, 12)))
    assert missing.fault == (
        "missing: none of the study's 2 series is as channel FLAIR's rule asks (modality MR, description flair): it has "
        f"{listed}; change the rule, or leave the study out"
    )
    assert missing.id == "missing"
    assert "several: 2 series of a study are as channel FLAIR's rule asks" in several.fault
    assert "say more in the rule, such as description or most_slices" in several.fault
    for case in (missing, several):
        assert samples.SECRET not in case.fault
        assert str(tmp_path) not in case.fault


def test_rules_that_mean_one_series_or_none_are_told(tmp_path):
    add_study(tmp_path, "P1", 1)
    (case,) = find_cases([tmp_path], channels=by_channel(T1="t1", T2="T1$"))
    assert "the rules of channels T1 and T2 take the same series" in case.fault
    channels = (MR[0], ChannelPlan(name="FLAIR", scheme="zscore"))
    (case,) = find_cases([tmp_path], channels=channels)
    assert "channel FLAIR has no rule, and the study has 3 series, expected 1" in case.fault
    (case,) = find_cases([tmp_path], channels=channels, series={"FLAIR": SeriesSection(description="flair")})
    assert case.fault is None
    with pytest.raises(ConfigError, match=r"infer.series: names the channels T2, expected of T1, FLAIR; correct"):
        find_cases([tmp_path], channels=channels, series={"T2": RULE})


def test_folders_named_by_channel_keep_their_chosen_series(tmp_path):
    """One rule for all channels, each in a folder ``NAME_0000 ...`` and study of its own."""
    for number in (1, 2):
        add_series(tmp_path / f"p_000{number - 1}", number, study=str(number))
        add_series(tmp_path / f"p_000{number - 1}", number + 2, count=1, study=str(number))
    channels = (CT[0], CT[0].model_copy(update={"name": "CT2"}))
    (case,) = find_cases([tmp_path], channels=channels, series=RULE)
    assert (case.id, case.series) == ("p", (series_code(uid(1)), series_code(uid(2))))
    assert [len(names) for names in case.files] == [3, 3]
