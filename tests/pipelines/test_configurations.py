"""nnU-Net's other configurations of volumes through all four stages: slice by slice (2d), and at a low resolution."""

import json

import nibabel as nib
import numpy as np
import pytest
from medseg.pipelines import evaluate, infer, prepare, train

from medseg.imaging import read_volume, spacing_xyz_mm
from medseg.preparation.store import PreparedData
from tests.synthetic import LABELS, affine_of, scan_on, write_scan

CASES = 6
STEPS = 40
# Where the patient's axes lie in the file: RAS, and the three turned round, so that slices must be found after turning.
PERMUTED = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    monkeypatch.setenv("MEDSEG_TRACKING", "off")
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def write_volumes(folder, thick_axis, *, slices=12, across=26):
    """Scans whose voxels are 2 to 3 mm thick along one axis of the patient, half of them stored in another axis order."""
    training = []
    for number in range(CASES):
        case_id = f"case_{number:02d}"
        thickness = 2.0 + number / CASES
        spacing = [thickness if axis == thick_axis else 1.0 + 0.1 * number for axis in range(3)]
        shape = [slices if axis == thick_axis else across - number for axis in range(3)]
        axes = np.eye(3)
        if number % 2:  # file axis k runs along the patient's axis of row k's 1
            order = [int(np.argmax(column)) for column in PERMUTED.T]
            shape, spacing, axes = [shape[o] for o in order], [spacing[o] for o in order], PERMUTED
        made = scan_on(tuple(shape), affine_of(spacing, axes, (5.0 * number, -3, 2)), seed=number)
        image, label = write_scan(made, folder, case_id=case_id)
        names = {"image": image.relative_to(folder).as_posix(), "label": label.relative_to(folder).as_posix()}
        training.append({"id": case_id, "patient": case_id, "fold": number % 3, **names})
    manifest = {
        "format": 1,
        "name": "volumes",
        "licence": "CC0-1.0",
        "channels": ["MR"],
        "labels": {name: values[0] for name, values in LABELS.items()},
        "training": training,
        "testing": [],
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))


def write_config(folder, prepare_section, network, infer_section=None):
    content = {
        "format": 1,
        "name": "volumes",
        "data": {"manifest": "dataset.json", "fold": 0},
        "prepare": prepare_section,
        "network": {"kind": "unet", "features": [8, 16], **network},
        "train": {
            "budget": {"steps": STEPS, "steps_per_epoch": STEPS},
            "optimiser": {"learning_rate": 0.01, "ema_decay": 0},
            "validation": {"cases": 1},
            "precision": "float32",
        },
        "infer": {"precision": "float32"} | (infer_section or {}),
    }
    path = folder / "volumes.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def run_all(config):
    flags = ["--config", str(config), "--work", str(config.parent / "work"), "--device", "cpu"]
    assert prepare.main([*flags, "--processes", "1"]) == 0
    assert train.main(flags) == 0
    assert infer.main(flags) == 0
    assert evaluate.main([*flags, "--processes", "1"]) == 0
    return config.parent / "work"


def masks_lie_on_their_scans(work, data):
    found = sorted((work / "predictions" / "fold_0").glob("*.nii.gz"))
    assert [path.name for path in found] == ["case_00.nii.gz", "case_03.nii.gz"]
    for path in found:
        mask, scan = nib.load(path), nib.load(data / "images" / path.name)
        assert mask.shape == scan.shape
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


def mean_dice(work):
    metrics = json.loads((work / "scores" / "fold_0" / "metrics.json").read_text())
    return metrics["mean_of_classes"]["dice"]["mean"]


@pytest.mark.parametrize("axis", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)])
def test_volumes_slice_by_slice(tmp_path, axis):
    write_volumes(tmp_path, axis)
    in_plane = [1 if a == axis else 16 for a in range(3)]
    stride, kernel = [1 if a == axis else 2 for a in range(3)], [1 if a == axis else 3 for a in range(3)]
    config = write_config(
        tmp_path,
        {"configuration": "2d", "patch_size_xyz": in_plane, "batch_size": 8},
        {"strides": [[1, 1, 1], stride], "kernel_sizes": [kernel, kernel]},
    )
    work = run_all(config)
    prepared = PreparedData.open(work / "prepared")
    assert (prepared.plan.dimensions, prepared.plan.through_plane_axis) == (2, axis)
    for case_id, case in prepared.cases.items():
        assert case.shape_xyz[axis] == 12
        thickness = max(spacing_xyz_mm(read_volume(tmp_path / "images" / f"{case_id}.nii.gz").affine))
        assert case.grid.prepared_spacing_xyz_mm[axis] == pytest.approx(thickness)
    model = json.loads((work / "runs" / "fold_0" / "model" / "model.json").read_text())
    assert model["architecture"]["dimensions"] == 2
    assert model["architecture"]["strides"] == [[1, 1, 1], [2, 2, 1]]
    mirrored = [a for a in range(3) if a != axis and "xyz"[a] in prepared.plan.mirror_axes]
    assert model["mirror_axes_xyz"] == mirrored
    masks_lie_on_their_scans(work, tmp_path)
    assert mean_dice(work) > 0.5


def test_volumes_at_a_low_resolution(tmp_path):
    write_volumes(tmp_path, 2, slices=24, across=48)
    config = write_config(
        tmp_path,
        {"configuration": "3d_lowres", "memory_gb": 0.02, "patch_size_xyz": [16, 16, 8], "batch_size": 2},
        {"strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 3]] * 2},
        {"mirror": False},
    )
    work = run_all(config)
    prepared = PreparedData.open(work / "prepared")
    assert (prepared.plan.configuration, prepared.plan.dimensions, prepared.plan.cascade) == ("3d_lowres", 3, True)
    full = prepared.plan.alternatives["3d_fullres"]
    for axis, spacing in enumerate(prepared.plan.spacing_xyz_mm):
        assert spacing > full.spacing_xyz_mm[axis]
    assert {case.grid.prepared_spacing_xyz_mm for case in prepared.cases.values()} == {prepared.plan.spacing_xyz_mm}
    masks_lie_on_their_scans(work, tmp_path)
    assert mean_dice(work) > 0.5
