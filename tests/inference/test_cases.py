"""Files, folders, lists and manifests become cases with names."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from medseg.errors import UsageError
from medseg.inference.cases import InferCase, find_cases, refuse_overwriting, refuse_same_names
from medseg.inference.outputs import OutputSpec
from medseg.preparation.plan import ChannelPlan

ONE = (ChannelPlan(name="MR", scheme="zscore"),)
TWO = (ChannelPlan(name="T1", scheme="zscore"), ChannelPlan(name="T2", scheme="zscore"))
COLOUR = tuple(ChannelPlan(name=name, scheme="rgb") for name in "RGB")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def dicom(folder, modality, count=2):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    for number in range(count):
        data = Dataset()
        data.Modality = modality
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        # Exports often have no suffix.
        data.save_as(folder / f"IM{number:04d}", enforce_file_format=True)


def ids(cases):
    return [case.id for case in cases]


def test_a_file_is_named_after_itself(tmp_path):
    touch(tmp_path, "Scan 1 (müde).NII.GZ", "b.mha", "c.png")
    paths = [tmp_path / name for name in ("Scan 1 (müde).NII.GZ", "b.mha", "c.png")]
    cases = find_cases(paths, channels=ONE)
    assert [case.output_name for case in cases] == ["Scan_1__mude_.nii.gz", "b.nii.gz", "c.png"]
    assert [case.images for case in cases] == [(path,) for path in paths]


def test_a_folder_is_searched_all_the_way_down(tmp_path):
    touch(tmp_path, "b.nii", "sub-1/ct.nii.gz", "sub-2/ct.nii.gz", "readme.md", ".hidden/x.nii", "z/.y.nii", "a.json")
    cases = find_cases([tmp_path], channels=ONE)
    assert ids(cases) == ["b", "sub-1_ct", "sub-2_ct"]


def test_patterns_choose_among_the_files_of_folders(tmp_path):
    touch(tmp_path, "a_ct.nii.gz", "a_pet.nii.gz", "sub/b_ct.nii.gz", "sub/c.nii.gz", "single.nii")
    assert ids(find_cases([tmp_path], channels=ONE, patterns=["*_ct.nii.gz"])) == ["a_ct", "sub_b_ct"]
    assert ids(find_cases([tmp_path], channels=ONE, patterns=["sub/*", "a_p*"])) == ["a_pet", "sub_b_ct", "sub_c"]
    assert ids(find_cases([tmp_path / "single.nii"], channels=ONE, patterns=["*_ct.nii.gz"])) == ["single"]
    with pytest.raises(UsageError, match="no scan was found in the input"):
        find_cases([tmp_path], channels=ONE, patterns=["*.mha"])


def test_nnunets_number_of_the_only_channel_is_no_part_of_the_name(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "c.nii.gz", "c_0000.nii.gz", "d/a_0000.nii.gz")
    assert ids(find_cases([tmp_path], channels=ONE)) == ["a", "b_0000", "b_0001", "c", "c_0000", "d_a"]
    assert ids(find_cases([tmp_path / "a_0000.nii.gz"], channels=ONE)) == ["a"]


def test_names_in_any_script_stay_different(tmp_path):
    touch(tmp_path, "Müller.nii", "Möller.nii", "患者甲.nii", "患者乙.nii", "Ω 1.nii", "Ω_1.mha")
    found = ids(find_cases([tmp_path], channels=ONE))
    assert found[:2] == ["Moller", "Muller"]
    assert len(set(found)) == 6
    assert all(name.isascii() for name in found)
    # Latin-1, as old disks have it: no UTF-8.
    latin = touch(tmp_path / "latin", *(os.fsdecode(f"M{letter}ller.nii".encode("latin-1")) for letter in "üö"))
    assert len(set(ids(find_cases([latin], channels=ONE)))) == 2
    # An accent is one character or two; the name says the same.
    both = [touch(tmp_path / form, unicodedata.normalize(form, "Bär Ω.nii")) for form in ("NFC", "NFD")]
    first, second = (ids(find_cases([folder], channels=ONE)) for folder in both)
    assert first == second


def test_a_dicom_file_without_suffix_may_be_named(tmp_path):
    dicom(tmp_path / "CT", "CT", 1)
    assert ids(find_cases([tmp_path / "CT" / "IM0000"], channels=ONE)) == ["IM0000"]
    (tmp_path / "l.txt").write_text("CT/IM0000\nCT\n")
    assert ids(find_cases([tmp_path / "l.txt"], channels=ONE)) == ["IM0000", "CT"]


def test_a_line_that_names_no_scan_is_that_cases_fault(tmp_path):
    touch(tmp_path, "a.nii", "notes.docx")
    (tmp_path / "l.txt").write_text(f"a.nii\nnotes.docx\n{'x' * 300}.nii\nb\0.nii\n")
    good, foreign, long, odd = find_cases([tmp_path / "l.txt"], channels=ONE)
    assert good.fault is None
    assert foreign.fault.startswith("l.txt:2: notes.docx: is of no known kind (is empty (0 bytes)), expected")
    assert long.fault.startswith("l.txt:3: xxx")
    assert odd.fault == "l.txt:4: b\\x00.nii: no such file; check the list"
    (tmp_path / "latin.txt").write_bytes("é.nii\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin.txt: is no UTF-8 text, expected a list"):
        find_cases([tmp_path / "latin.txt"], channels=ONE)


def test_masks_never_take_a_scans_place(tmp_path):
    touch(tmp_path, "scans/a.nii.gz", "scans/b.nrrd", "scans/c/d.nii.gz")
    dicom(tmp_path / "CT", "CT", 1)
    scans, spec = tmp_path / "scans", OutputSpec()
    with pytest.raises(UsageError, match="scans: holds the scans, expected a folder of its own for the masks"):
        find_cases([scans], channels=ONE, leave_out=tmp_path / "CT" / ".." / "scans")
    (single,) = find_cases([scans / "a.nii.gz"], channels=ONE)
    with pytest.raises(UsageError, match="is a scan of this run and would be a mask's file"):
        refuse_overwriting([single], scans, spec)
    with pytest.raises(UsageError, match="CT: holds the scans"):
        refuse_overwriting(find_cases([tmp_path / "CT"], channels=ONE), tmp_path / "CT", spec)
    refuse_overwriting(find_cases([scans / "b.nrrd"], channels=ONE), scans, spec)
    parts = OutputSpec(layout="per_structure", format="nii.gz")
    named = InferCase(id="c", images=(scans / "c" / "d.nii.gz",))
    with pytest.raises(UsageError, match=r"d.nii.gz: is a scan of this run"):
        refuse_overwriting([named], scans, parts, ("background", "d"))


def test_the_output_folder_is_no_input(tmp_path):
    touch(tmp_path, "a.nii.gz", "masks/a.nii.gz")
    assert ids(find_cases([tmp_path], channels=ONE, leave_out=tmp_path / "x" / ".." / "masks")) == ["a"]


def test_dicom_slices_of_one_folder_are_one_case_and_contours_none(tmp_path, caplog):
    dicom(tmp_path / "p1" / "CT", "CT")
    dicom(tmp_path / "p1" / "plan", "RTSTRUCT", 1)
    cases = find_cases([tmp_path], channels=ONE)
    assert cases == (InferCase(id="p1_CT", images=(tmp_path / "p1" / "CT",)),)
    assert "1 DICOM folders hold no images" in caplog.text
    assert ids(find_cases([tmp_path / "p1" / "CT"], channels=ONE)) == ["CT"]


def test_channel_files_are_one_case(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "c.nii.gz", "d/a_0000.nii.gz", "d/a_0001.nii.gz")
    whole, broken, single, deeper = find_cases([tmp_path], channels=TWO)
    assert (whole.id, whole.images) == ("a", (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"))
    assert broken.fault == "b: has the channel files b_0001.nii.gz, expected _0000 to _0001; add or rename files"
    assert (single.id, len(single.images)) == ("c", 1)
    assert (deeper.id, len(deeper.images)) == ("d_a", 2)


def test_colour_pictures_as_nnunet_names_them(tmp_path):
    # nnU-Net's own example for pictures: channels R, G, B with z-scores, all in NAME_0000.png.
    rgb = tuple(ChannelPlan(name=name, scheme="zscore") for name in ("red", "green", "blue"))
    touch(tmp_path, "a_0000.png", "b_0000.png", "c.png", "grey_0000.png", "grey_0001.png", "grey_0002.png")
    found = find_cases([tmp_path], channels=rgb)
    assert [(case.id, len(case.images), case.fault) for case in found] == [
        ("a", 1, None), ("b", 1, None), ("c", 1, None), ("grey", 3, None)
    ]  # fmt: skip
    infrared = (*rgb, ChannelPlan(name="infrared", scheme="zscore"))
    touch(tmp_path / "more", "d_0000.png", "d_0001.png", "e_0000.png")
    two, lacking = find_cases([tmp_path / "more"], channels=infrared)
    assert (two.id, len(two.images), two.fault) == ("d", 2, None)
    assert lacking.fault == "e: has the channel files e_0000.png, expected _0000 to _0003; add or rename files"


@pytest.mark.parametrize("channels", [ONE, COLOUR])
def test_numbered_files_are_cases_where_channels_lie_in_one_file(tmp_path, channels):
    touch(tmp_path, "a_0000.png", "a_0001.png", "a_0002.png")
    assert ids(find_cases([tmp_path], channels=channels)) == ["a_0000", "a_0001", "a_0002"]


def test_a_list_names_a_case_a_line(tmp_path):
    touch(tmp_path, "x/a.nii", "x/b_t1.nii", "x/b_t2.nii", "lists/l.txt")
    text = "# those of the morning\n../x/a.nii\n\n../x/b_t1.nii\t../x/b_t2.nii\n../x/gone.nii\n"
    (tmp_path / "lists" / "l.txt").write_text(text)
    one, two, gone = find_cases([tmp_path / "lists" / "l.txt"], channels=TWO)
    assert (one.id, len(one.images), two.id, len(two.images)) == ("a", 1, "b_t1", 2)
    assert gone.fault == "l.txt:5: gone.nii: no such file; check the list"


def test_a_manifest_names_its_cases(tmp_path):
    touch(tmp_path, "scans/a.nii.gz")
    manifest = {
        "format": 1,
        "name": "set",
        "licence": "CC0-1.0",
        "channels": ["MR"],
        "labels": {"background": 0, "organ": 1},
        "training": [],
        "testing": [{"id": "first", "image": "scans/a.nii.gz"}, {"id": "second", "image": "scans/gone.nii.gz"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(manifest))
    first, second = find_cases([tmp_path / "set.json"], channels=ONE)
    assert (first.id, first.fault, second.id) == ("first", None, "second")
    assert "gone.nii.gz" in second.fault
    assert str(tmp_path) not in second.fault


def test_long_names_are_cut_and_stay_different(tmp_path):
    names = [f"{'x' * 150}{end}.nii" for end in "ab"]
    cases = find_cases([touch(tmp_path, *names)], channels=ONE)
    assert len(set(ids(cases))) == 2
    assert all(len(case.id) == 100 for case in cases)


@pytest.mark.parametrize("names", [("a.nii", "a.nii.gz"), ("A.nii", "a.nii"), ("x y.nii", "x_y.nii")])
def test_two_scans_of_one_name_are_refused(tmp_path, names):
    with pytest.raises(UsageError, match=r"would be the mask of .* and of .*; rename one"):
        find_cases([touch(tmp_path, *names)], channels=ONE)


def test_a_scan_and_a_picture_of_one_name_get_along(tmp_path):
    assert len(find_cases([touch(tmp_path, "a.nii", "a.png")], channels=ONE)) == 2


def test_what_is_no_scan_is_refused(tmp_path):
    touch(tmp_path, "a.docx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"a.docx: is of no known kind"):
        find_cases([tmp_path / "a.docx"], channels=ONE)
    with pytest.raises(UsageError, match="no scan was found"):
        find_cases([tmp_path / "empty"], channels=ONE)
    with pytest.raises(UsageError, match="no such file or folder"):
        find_cases([tmp_path / "gone"], channels=ONE)


def test_refuse_same_names_needs_a_case():
    with pytest.raises(UsageError, match="no scan was found"):
        refuse_same_names([])
    assert refuse_same_names([InferCase(id="a", images=(Path("a.nii"),))])[0].id == "a"
