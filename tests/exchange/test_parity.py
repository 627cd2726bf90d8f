"""Certificates: figures worked out on paper, limits, and engines that are the same or not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection
from medseg.exchange.parity import (
    Certificate,
    Scan,
    compare_engines,
    compare_masks,
    compare_scores,
    given_scan,
    synthetic_scans,
)
from medseg.imaging import Volume
from medseg.inference.engine import Engine
from medseg.inference.model import load_model
from medseg.inference.scores import Features, score_channels
from tests.inference.stand_ins import plan_for, threshold_model, write_model
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


class Shell(torch.nn.Module):
    """A network that does not show its last layer, as one that another program runs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def test_scores_kept_as_features_are_compared_class_by_class(tmp_path):
    # Five classes of four features: infer keeps the features, an export has no such thing.
    labels = {"background": (0,)} | {f"organ_{k}": (k,) for k in range(1, 5)}
    model = load_model(write_model(tmp_path / "model", labels=labels))
    engines = [
        Engine([one], SECTION, device=CPU) for one in (model, replace(model, network=Shell(model.network).eval()))
    ]
    scans = list(synthetic_scans(model.plan, count=1))
    own, other = (engine.scores(engine.prepare(scans[0].volume)[0]) for engine in engines)
    assert isinstance(own, Features)
    assert isinstance(other, np.ndarray)
    largest, difference = compare_scores(own, other)
    assert largest == pytest.approx(np.abs(other).max(), rel=1e-5)
    assert difference < 1e-5 * largest
    assert compare_engines(*engines, scans[0]).same
    np.testing.assert_allclose(np.stack(list(score_channels(own))), other, atol=1e-5 * largest)


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
