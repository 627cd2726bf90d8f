"""The demo's data set is made once, and again only where it is not what was made."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.cli import demo_data
from medseg.manifest import load_manifest


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "TRAINING", 2)
    monkeypatch.setattr(demo_data, "TESTING", 1)


def stamps(folder: Path) -> dict[str, int]:
    return {path.name + path.parent.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("small")
def test_a_complete_set_is_left_alone(tmp_path: Path):
    manifest_path = demo_data.make_data(tmp_path)
    before = stamps(tmp_path)
    assert demo_data.make_data(tmp_path) == manifest_path
    assert stamps(tmp_path) == before


@pytest.mark.usefixtures("small")
def test_a_damaged_or_missing_scan_is_made_again_with_the_same_bytes(tmp_path: Path):
    demo_data.make_data(tmp_path)
    first, second = tmp_path / "images" / "demo_000.nii.gz", tmp_path / "labels" / "demo_001.nii.gz"
    wanted = first.read_bytes(), second.read_bytes()
    first.write_bytes(b"damaged")
    second.unlink()
    demo_data.make_data(tmp_path)
    assert (first.read_bytes(), second.read_bytes()) == wanted


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_damaged_record_makes_everything_again(tmp_path: Path):
    demo_data.make_data(tmp_path)
    record = tmp_path / "made.json"
    wanted = record.read_bytes()
    record.write_text("{}")
    demo_data.make_data(tmp_path)
    assert record.read_bytes() == wanted


@pytest.mark.usefixtures("small")
def test_manifest_names_what_is_there(tmp_path: Path):
    manifest = load_manifest(demo_data.make_data(tmp_path))
    assert [case.id for case in manifest.training] == ["demo_000", "demo_001"]
    assert [case.id for case in manifest.testing] == ["demo_002"]
    assert manifest.class_names == ("background", "organ", "duct")
    for case in (*manifest.training, *manifest.testing):
        image, label = nib.load(tmp_path / case.images[0]), nib.load(tmp_path / case.labels[0])
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.shape == label.shape
        assert np.abs(image.get_sform() - image.get_qform()).max() < 1e-4
