"""Builders: each known layout, made small, gives the cases it holds."""

import json

import pytest

from medseg.errors import InputError, ManifestError, UsageError
from medseg.manifest import Channel
from medseg.manifest.builders import (
    build_from_bids,
    build_from_decathlon,
    build_from_dicom,
    build_from_folders,
    build_from_nnunet,
)
from tests.imaging.test_dicom_choice import add_series

LESION = {"lesion": (1,)}


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def decathlon(root, **changes):
    cases = [{"image": f"./imagesTr/c_{i}.nii.gz", "label": f"./labelsTr/c_{i}.nii.gz"} for i in (1, 2)]
    raw = {
        "name": "Brain",
        "licence": "CC-BY-SA 4.0",
        "modality": {"0": "FLAIR", "1": "T1w", "10": "x", "2": "MRI"},
        "labels": {"0": "background", "1": "edema", "2": "core"},
        "training": cases,
        "test": ["./imagesTs/c_3.nii.gz"],
    }
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(raw | changes))
    touch(root, *(case[key] for case in cases for key in case), "imagesTs/c_3.nii.gz")


def test_decathlon(tmp_path):
    decathlon(tmp_path)
    manifest = build_from_decathlon(tmp_path).manifest
    assert [c.name for c in manifest.channels] == ["FLAIR", "T1w", "MR", "x"]
    assert manifest.labels == {"background": (0,), "edema": (1,), "core": (2,)}
    assert (manifest.name, manifest.licence) == ("Brain", "CC-BY-SA 4.0")
    assert manifest.training[0].images == ("imagesTr/c_1.nii.gz",)
    assert [case.id for case in manifest.testing] == ["c_3"]


def test_decathlon_tells_all_missing_files_or_leaves_their_cases_out(tmp_path):
    decathlon(tmp_path)
    (tmp_path / "imagesTr/c_1.nii.gz").unlink()
    (tmp_path / "imagesTs/c_3.nii.gz").unlink()
    with pytest.raises(ManifestError, match="is missing") as caught:
        build_from_decathlon(tmp_path)
    assert len(caught.value.faults) == 2
    built = build_from_decathlon(tmp_path, skip_missing=True)
    assert [case.id for case in built.manifest.training] == ["c_2"]
    assert "left out 1 case of training with 1 missing file" in built.notes


def test_decathlon_without_its_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.json: no such file"):
        build_from_decathlon(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ManifestError, match="no list 'training'"):
        build_from_decathlon(tmp_path)


def nnunet(root, cases=("a_1", "b"), channels=2, **changes):
    raw = {
        "channel_names": {str(i): name for i, name in enumerate(("CT", "PET")[:channels])},
        "labels": {"background": 0, "liver": 1, "tumour": 2, "ignore": 3},
        "file_ending": ".nrrd",
        "numTraining": len(cases),
    }
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(raw | changes))
    for case in cases:
        touch(root, *(f"imagesTr/{case}_{i:04d}.nrrd" for i in range(channels)), f"labelsTr/{case}.nrrd")


def test_nnunet(tmp_path):
    root = tmp_path / "Dataset004_Liver"
    nnunet(root)
    touch(root, "imagesTs/t_0000.nrrd", "imagesTs/t_0001.nrrd", "imagesTr/.hidden.nrrd")
    manifest = build_from_nnunet(root).manifest
    assert manifest.name == "Liver"
    assert manifest.channels == (Channel(name="CT"), Channel(name="PET"))
    assert (manifest.labels, manifest.ignore) == ({"background": (0,), "liver": (1,), "tumour": (2,)}, 3)
    assert manifest.training[0].id == "a_1"
    assert manifest.training[0].images == ("imagesTr/a_1_0000.nrrd", "imagesTr/a_1_0001.nrrd")
    assert manifest.training[0].labels == ("labelsTr/a_1.nrrd",)
    assert [case.id for case in manifest.testing] == ["t"]


def test_nnunet_takes_the_split_that_lies_there_and_the_one_that_is_named(tmp_path):
    nnunet(tmp_path)
    (tmp_path / "other.json").write_text(
        json.dumps([{"train": ["b"], "val": ["a_1"]}, {"train": ["a_1"], "val": ["b"]}])
    )
    (tmp_path / "splits_final.json").write_text(json.dumps([{"val": ["b"]}, {"val": ["a_1"]}]))
    assert [case.fold for case in build_from_nnunet(tmp_path).manifest.training] == [1, 0]
    named = build_from_nnunet(tmp_path, splits=tmp_path / "other.json")
    assert [case.fold for case in named.manifest.training] == [0, 1]
    (tmp_path / "other.json").write_text("3")
    with pytest.raises(ManifestError, match="no list of train and val"):
        build_from_nnunet(tmp_path, splits=tmp_path / "other.json")


def test_nnunet_refuses_overlapping_regions_until_values_are_named(tmp_path):
    nnunet(tmp_path, labels={"background": 0, "whole": [1, 2], "core": [2]})
    with pytest.raises(ManifestError, match="regions"):
        build_from_nnunet(tmp_path)
    assert build_from_nnunet(tmp_path, labels={"a": (1,), "b": (2,)}).manifest.labels["b"] == (2,)


def test_nnunet_tells_missing_channels_and_numbers(tmp_path):
    nnunet(tmp_path)
    (tmp_path / "imagesTr/b_0001.nrrd").unlink()
    touch(tmp_path, "imagesTr/x.nrrd", "imagesTr/y.nrrd")
    with pytest.raises(ManifestError, match=r"b: imagesTr has channels \[0\]") as caught:
        build_from_nnunet(tmp_path)
    assert "'x.nrrd' and 1 others have no channel number" in str(caught.value)


def test_nnunet_with_cases_listed_in_dataset_json(tmp_path):
    listed = {"k": {"images": ["raw/1.nrrd", "raw/2.nrrd"], "label": "raw/3.nrrd"}}
    nnunet(tmp_path, cases=(), dataset=listed)
    touch(tmp_path, "raw/1.nrrd", "raw/2.nrrd", "raw/3.nrrd")
    assert build_from_nnunet(tmp_path).manifest.training[0].images == ("raw/1.nrrd", "raw/2.nrrd")


def test_folders_with_patients_channels_and_a_further_column(tmp_path):
    for site, patient, case in (("A", "p1", "p1_x"), ("A", "p1", "p1_y"), ("B", "p2", "p2_x")):
        touch(tmp_path, *(f"{site}/{patient}/{case}_{c}.nii.gz" for c in ("T1", "T1_post", "mask")))
    manifest = build_from_folders(
        tmp_path,
        images="{site}/{patient}/{id}_{channel}.nii.gz",
        labels="{site}/{patient}/{id}_mask.nii.gz",
        channels=("T1_post", "T1"),
        label_values=LESION,
    ).manifest
    assert [(c.id, c.patient, c.extra["site"]) for c in manifest.training] == [
        ("p1_x", "p1", "A"),
        ("p1_y", "p1", "A"),
        ("p2_x", "p2", "B"),
    ]
    assert manifest.training[0].images == ("A/p1/p1_x_T1_post.nii.gz", "A/p1/p1_x_T1.nii.gz")


def test_folders_with_raters_and_cases_without_label(tmp_path):
    touch(tmp_path, "i/a b.png", "i/c.png", "l/ann/a b.png", "l/bob/a b.png")
    built = build_from_folders(
        tmp_path, images="i/{id}.png", labels="l/{rater}/{id}.png", channels=["RGB"], label_values=LESION
    )
    assert built.manifest.training[0].id == "a-b"
    assert built.manifest.training[0].labels == ("l/ann/a b.png", "l/bob/a b.png")
    assert [case.id for case in built.manifest.testing] == ["c"]
    assert "1 case without label went to testing" in built.notes


def test_folders_labels_beside_images_are_no_images(tmp_path):
    touch(tmp_path, "a.nrrd", "a_seg.nrrd", "b.nrrd", "b_seg.nrrd")
    manifest = build_from_folders(
        tmp_path, images="{id}.nrrd", labels="{id}_seg.nrrd", channels=["MR"], label_values=LESION
    ).manifest
    assert [(case.id, case.labels) for case in manifest.training] == [("a", ("a_seg.nrrd",)), ("b", ("b_seg.nrrd",))]
    assert manifest.testing == ()


def test_folders_tell_what_does_not_fit(tmp_path):
    touch(tmp_path, "i/a_T1.nii", "i/a_T2.nii", "i/b_T1.nii", "l/z.nii")
    arguments = {
        "images": "i/{id}_{channel}.nii",
        "labels": "l/{id}.nii",
        "channels": ("T1", "T2"),
        "label_values": LESION,
    }
    with pytest.raises(ManifestError, match="b: has no image for T2") as caught:
        build_from_folders(tmp_path, **arguments)
    assert "z: label 'l/z.nii' has no image" in str(caught.value)
    assert [c.id for c in build_from_folders(tmp_path, **arguments, skip_missing=True).manifest.testing] == ["a"]
    with pytest.raises(UsageError, match=r"expected \{id\} or \{patient\}"):
        build_from_folders(tmp_path, **arguments | {"images": "i/*.nii"})
    with pytest.raises(ManifestError, match="no file matches"):
        build_from_folders(tmp_path, **arguments | {"images": "j/{id}.nii"})
    with pytest.raises(ManifestError, match="same channel of it"):
        build_from_folders(tmp_path, **arguments | {"images": "i/{id}_*.nii"})


def bids(root):
    for subject in ("01", "02"):
        for session in ("pre", "post"):
            name = f"sub-{subject}_ses-{session}"
            touch(root, *(f"sub-{subject}/ses-{session}/anat/{name}_{s}.nii.gz" for s in ("T1w", "FLAIR")))
            touch(root, f"derivatives/expert/sub-{subject}/ses-{session}/anat/{name}_desc-ms_dseg.nii.gz")
    touch(root, "sub-01/ses-pre/anat/sub-01_ses-pre_T2w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "MS", "License": "CC0"}')
    (root / "participants.tsv").write_text("participant_id\tsex\tage\nsub-01\tF\t44\nsub-02\tn/a\t31\n")
    (root / "derivatives/expert/dseg.tsv").write_text("index\tname\n0\tnothing\n1\tlesion\n")


def test_bids(tmp_path):
    bids(tmp_path)
    built = build_from_bids(tmp_path)
    manifest = built.manifest
    assert (manifest.name, manifest.licence) == ("MS", "CC0")
    assert [c.name for c in manifest.channels] == ["FLAIR", "T1w"]
    assert manifest.labels == {"background": (0,), "lesion": (1,)}
    assert [(c.id, c.patient) for c in manifest.training][:2] == [
        ("sub-01_ses-post", "sub-01"),
        ("sub-01_ses-pre", "sub-01"),
    ]
    assert manifest.training[0].extra == {"sex": "F", "age": "44"}
    assert manifest.training[2].extra == {"age": "31"}
    assert manifest.training[0].labels[0].endswith("sub-01_ses-post_desc-ms_dseg.nii.gz")


def test_bids_tells_what_is_not_one(tmp_path):
    bids(tmp_path)
    with pytest.raises(ManifestError, match="sub-02_ses-pre: has no T2w"):
        build_from_bids(tmp_path, channels=["T2w"])
    touch(
        tmp_path, "derivatives/other/sub-01_ses-pre_mask.nii.gz", "sub-01/ses-pre/anat/sub-01_ses-pre_acq-x_T1w.nii.gz"
    )
    with pytest.raises(ManifestError, match="sub-01_ses-pre: has several T1w"):
        build_from_bids(tmp_path)
    with pytest.raises(ManifestError, match="sub-01_ses-pre: has 2 masks"):
        build_from_bids(tmp_path, channels=["FLAIR"])
    assert len(build_from_bids(tmp_path, channels=["FLAIR"], label_only="expert").manifest.training) == 4
    (tmp_path / "derivatives/expert/dseg.tsv").unlink()
    with pytest.raises(UsageError, match="labels are named nowhere"):
        build_from_bids(tmp_path, label_only="expert")


@pytest.mark.real
def test_dicom_series_become_cases(shared_data):
    built = build_from_dicom(
        shared_data / "dicom",
        label_values=LESION,
        modality="PT",
        labels="{patient}/expected/PET_mask.nii.gz",
    )
    (case,) = built.manifest.training
    assert built.manifest.channels == (Channel(name="PET", unit="SUV"),)
    assert (case.id, case.patient) == ("STS_002_PET_image", "STS_002")
    assert case.images == ("STS_002/PET/image",)
    commonest = build_from_dicom(shared_data / "dicom", label_values=LESION)
    assert [c.id for c in commonest.manifest.testing] == ["STS_002_CT_image", "dcmqi_ct-3slice"]
    assert any("--modality takes another" in note for note in commonest.notes)


def test_a_tree_without_dicom_is_refused(tmp_path):
    touch(tmp_path, "a/b.dcm")
    with pytest.raises(ManifestError, match="no DICOM series was found"):
        build_from_dicom(tmp_path, label_values=LESION)


def test_a_folder_of_several_series_is_told_with_the_rules_it_needs(tmp_path):
    for number, name in enumerate(("t1", "flair"), start=1):
        add_series(tmp_path / "p1", number, modality="MR", description=name)
    built = build_from_dicom(tmp_path, label_values=LESION)
    assert [(case.id, case.images) for case in built.manifest.testing] == [("p1", ("p1",))]
    (note,) = [note for note in built.notes if "data.series" in note]
    assert note.startswith(
        "1 folders hold several series of a patient; set data.series in the config, such as {modality: MR"
    )
    assert note.endswith("give each a rule, such as {T1: {description: t1}, FLAIR: {description: flair}}")
