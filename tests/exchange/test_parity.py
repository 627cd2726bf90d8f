"""Certificates: figures worked out on paper, limits, and engines that are the same or not."""

import json

import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection
from medseg.exchange.parity import Certificate, Scan, compare_engines, compare_masks, given_scan, synthetic_scans
from medseg.imaging import Volume
from medseg.inference.engine import Engine
from tests.inference.stand_ins import plan_for, threshold_model
from tests.synthetic import scan, write_scan

CPU = torch.device("cpu")
SECTION = InferSection(mirror=False, precision="float32")
NAMES = ("background", "organ", "lesion")


def scan_of(shape, reference=None):
    return Scan(volume=Volume(np.zeros((1, *shape), np.float32), np.eye(4)), sha256="f" * 64, reference=reference)


def test_two_masks_and_a_reference_on_paper():
    infer, export, truth = np.zeros((3, 4, 1, 1), np.uint8)
    infer[:2], export[:3], truth[:2] = 1, 1, 1
    truth[2] = 255  # nobody labelled it: the export's extra voxel there costs nothing
    found = compare_masks(infer, export, scan_of((4, 1, 1), truth), class_names=NAMES, plan=plan_for())
    assert found.differing_voxels == 1
    assert found.dice == {"organ": 0.8, "lesion": 1.0}
    assert found.reference_dice["organ"] == (1.0, 1.0)
    assert found.dice_lost == 0.0
    truth[2] = 0
    found = compare_masks(infer, export, scan_of((4, 1, 1), truth), class_names=NAMES, plan=plan_for())
    assert found.reference_dice["organ"] == (1.0, 0.8)
    assert found.dice_lost == pytest.approx(0.1)


def test_regions_are_compared_as_regions():
    plan = plan_for(labels={"background": (0,), "whole": (1, 2), "core": (2,)})
    infer, export = np.array([[[0, 1, 2]]], np.uint8), np.array([[[0, 1, 1]]], np.uint8)
    found = compare_masks(infer, export, scan_of((1, 1, 3)), class_names=tuple(plan.labels), plan=plan)
    assert found.dice == {"whole": 1.0, "core": 0.0}
    assert found.reference_dice == {}
    assert found.dice_lost is None


def test_equal_engines_pass_and_others_do_not(tmp_path):
    made = scan("anisotropic")
    image, label = write_scan(made, tmp_path)
    plan = plan_for()
    one = given_scan(made.volume, label=label, plan=plan)
    infer = Engine([threshold_model()], SECTION, device=CPU)
    same = compare_engines(infer, Engine([threshold_model()], SECTION, device=CPU), one)
    assert same.same
    assert same.score_difference == 0.0
    assert same.differing_voxels == 0
    other = compare_engines(infer, Engine([threshold_model(low=260.0)], SECTION, device=CPU), one)
    assert not other.same
    assert other.dice_lost is not None
    assert other.score_difference == pytest.approx(60.0, abs=1e-3)

    Certificate(what="onnx", model_sha256="a" * 64, cases=(same, other), scans="given").write(tmp_path)
    written = json.loads((tmp_path / "parity.json").read_text())
    assert written["passed"] is False
    assert written["largest_score_difference"] == pytest.approx(60.0, abs=1e-3)
    assert image.name not in (tmp_path / "parity.json").read_text()
    light = Certificate(what="int8", model_sha256="a" * 64, cases=(other,), scans="given", limited=False)
    assert light.passed
    assert "1 given scans" in light.sentence()


@pytest.mark.parametrize(
    "plan",
    [
        plan_for(scheme="ct"),
        plan_for(dimensions=2, patch=(16, 16, 1), channels=2),
        plan_for(patch=(4, 8, 6), scheme="rgb"),
    ],
    ids=["volume", "pictures", "small"],
)
def test_synthetic_scans_are_the_same_every_time(plan):
    first, again = list(synthetic_scans(plan)), list(synthetic_scans(plan))
    assert [one.sha256 for one in first] == [one.sha256 for one in again]
    assert first[0].volume.array.shape[0] == len(plan.channels)
    assert np.isfinite(first[0].volume.array).all()
