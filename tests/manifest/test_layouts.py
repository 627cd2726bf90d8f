"""Guessing a layout from names alone."""

import pytest

from medseg.errors import InputError
from medseg.manifest.layouts import FolderGuess, detect_layout, guess_channel, guess_patterns


@pytest.mark.parametrize(
    ("scans", "wanted"),
    [
        (["images/a.png", "images/b.png", "labels/a.png"], FolderGuess("images/{id}.png", "labels/{id}.png")),
        (["a.nrrd", "a_seg.nrrd", "b.nrrd", "b_seg.nrrd"], FolderGuess("{id}.nrrd", "{id}_seg.nrrd")),
        (
            [f"train/{k}/{p}{i}.png" for i in "abc" for k, p in (("image", ""), ("mask", "mask_"))],
            FolderGuess("train/image/{id}.png", "train/mask/mask_{id}.png"),
        ),
        (
            [f"B-{i}/B-{i}-{c}.nii.gz" for i in "12" for c in ("t1n", "t1c", "t2w", "seg")],
            FolderGuess("{id}/{id}-{channel}.nii.gz", "{id}/{id}-seg.nii.gz", ("t1c", "t1n", "t2w")),
        ),
        (
            [f"S{i}/{k}_{r}.nii" for i in "12" for k in ("PET", "CT")[: int(i)] for r in ("image", "mask")],
            FolderGuess(
                "{id}/PET_image.nii", "{id}/PET_mask.nii", (), ("{id}/CT_image.nii (1)", "{id}/CT_mask.nii (1)")
            ),
        ),
        (["a.nii.gz", "b.nii.gz"], FolderGuess("{id}.nii.gz", None)),
    ],
)
def test_patterns(scans, wanted):
    assert guess_patterns(scans) == wanted


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("{id}/PET_image.nii", "PET"), ("{id}/MR_T1_image.nii", "MR"), ("ct/{id}.nii", "CT"), ("{id}.nii", None)],
)
def test_channel_by_name(pattern, name):
    assert guess_channel(pattern) == name


def test_layouts(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        detect_layout(tmp_path / "none")
    with pytest.raises(InputError, match="holds no scan"):
        detect_layout(tmp_path)
    (tmp_path / "1").write_bytes(bytes(128) + b"DICM")
    assert detect_layout(tmp_path) == "dicom"
    (tmp_path / "a.nii").touch()
    assert detect_layout(tmp_path) == "folders"
    (tmp_path / "sub-1").mkdir()
    (tmp_path / "sub-1" / "sub-1_T1w.nii.gz").touch()
    assert detect_layout(tmp_path) == "bids"
    (tmp_path / "dataset.json").write_text('{"training": []}')
    assert detect_layout(tmp_path) == "decathlon"
    (tmp_path / "dataset.json").write_text('{"channel_names": {}}')
    assert detect_layout(tmp_path) == "nnunet"
