import json
import math
from dataclasses import replace

import numpy as np
import pytest

from medseg.config.sections import EvaluateSection
from medseg.evaluation import manifest_set, run_evaluate
from medseg.evaluation.case import ClassScores
from medseg.evaluation.experiment import as_scored
from medseg.evaluation.policy import POLICIES
from medseg.evaluation.raters import mean_rows
from medseg.evaluation.registry import metric_names
from medseg.imaging import read_label_map
from medseg.manifest import Case, Channel, Manifest

LABELS = {"background": (0,), "liver": (1,)}


def box(first, last):
    mask = np.zeros((8, 4, 4), np.uint8)
    mask[first:last] = 1
    return mask


@pytest.fixture
def manifest(tmp_path, save_mask):
    """Case a has three references (2 of 3 agree on x below 4), b one; both predictions are x below 4."""
    for name, last in (("a1", 3), ("a2", 4), ("a3", 4), ("b1", 4)):
        save_mask(tmp_path / "data" / f"{name}.nii.gz", box(0, last))
    for name in ("a", "b"):
        save_mask(tmp_path / "predictions" / f"{name}.nii.gz", box(0, 4))
    cases = (
        Case(id="a", patient="p", images=("gone.nii.gz",), labels=("a1.nii.gz", "a2.nii.gz", "a3.nii.gz")),
        Case(id="b", patient="b", images=("gone.nii.gz",), labels=("b1.nii.gz",)),
    )
    return Manifest(
        name="set",
        licence="none",
        channels=(Channel(name="CT"),),
        labels=LABELS,
        training=cases,
        path=tmp_path / "data" / "set.json",
        sha256="ab",
    )


def evaluate(manifest, tmp_path, raters, output="s", metrics=()):
    section = EvaluateSection(raters=raters, metrics=metrics)
    folder = tmp_path / "predictions"
    cases = manifest_set("fold_0", manifest, "ab", section, predictions=folder, data_root=tmp_path / "data")
    return run_evaluate(cases, output=tmp_path / output, processes=1)


@pytest.mark.parametrize(("raters", "dice"), [("first", 6 / 7), ("majority", 1.0), ("each", (6 / 7 + 1 + 1) / 3)])
def test_what_a_case_is_scored_against(manifest, tmp_path, raters, dice):
    report = evaluate(manifest, tmp_path, raters)
    assert report.exit_code == 0
    assert report.scores.rows["a"][0].values["dice"] == pytest.approx(dice)
    assert report.scores.rows["b"][0].values["dice"] == 1.0


def test_the_human_band_stands_beside_the_model(manifest, tmp_path):
    evaluate(manifest, tmp_path, "first")
    found = json.loads((tmp_path / "s" / "metrics.json").read_text())["raters"]
    assert (found["policy"], found["cases"], found["comparisons"], found["failed"]) == ("first", 1, 6, 0)
    dice = found["classes"]["liver"]["dice"]
    assert dice["human"]["mean"] == pytest.approx((6 / 7 + 6 / 7 + 1) / 3)
    assert dice["model"]["mean"] == pytest.approx((6 / 7 + 1 + 1) / 3)
    assert dice["difference"]["mean"] == pytest.approx(1 / 3 - 6 / 7 / 3)
    assert (dice["difference"]["n"], dice["difference"]["low"], dice["human"]["low"]) == (1, None, None)
    assert "volume_reference_ml" not in found["classes"]["liver"]


def test_staple_is_written_once_and_says_who_was_how_good(manifest, tmp_path):
    evaluate(manifest, tmp_path, "staple")
    consensus = tmp_path / "s" / "references" / "a.nii.gz"
    assert read_label_map(consensus).array.sum() == 4 * 16
    told = json.loads((tmp_path / "s" / "references" / "a.staple.json").read_text())["liver"]
    assert told["converged"]
    assert told["sensitivity"] == pytest.approx([3 / 4, 1, 1], abs=1e-3)
    stamp, before = consensus.stat().st_mtime_ns, (tmp_path / "s" / "metrics.json").read_bytes()
    assert evaluate(manifest, tmp_path, "staple").scored == 0
    assert consensus.stat().st_mtime_ns == stamp
    assert (tmp_path / "s" / "metrics.json").read_bytes() == before


def test_a_reference_on_another_grid_is_that_case_s_fault(manifest, tmp_path, save_mask):
    save_mask(tmp_path / "data" / "a3.nii.gz", box(0, 4)[:, :3])
    report = evaluate(manifest, tmp_path, "majority")
    assert report.exit_code == 4
    assert sorted(report.scores.rows) == ["b"]
    assert report.scores.failed["a"].startswith("a: references 1 and 3 lie on different grids")


def test_the_first_reference_is_enough_where_only_it_is_asked_for(manifest, tmp_path):
    (tmp_path / "data" / "a3.nii.gz").unlink()
    report = evaluate(manifest, tmp_path, "first")
    assert (report.exit_code, sorted(report.scores.rows)) == (0, ["a", "b"])
    assert report.scores.raters["comparisons"] == 3
    assert report.scores.notes[1].startswith("1 references beside the first can't be reached")
    (tmp_path / "data" / "a2.nii.gz").unlink()
    report = evaluate(manifest, tmp_path, "first")
    assert (report.exit_code, report.scores.raters) == (0, {})
    report = evaluate(manifest, tmp_path, "each", "e")
    assert report.exit_code == 4
    assert report.scores.failed["a"].startswith("a: label 'a2.nii.gz' is missing")
    (tmp_path / "data" / "a1.nii.gz").unlink()
    assert "a1.nii.gz" in evaluate(manifest, tmp_path, "first").scores.failed["a"]


def test_ignored_voxels_of_either_rater_count_for_nothing(manifest, tmp_path, save_mask):
    with_ignored = box(0, 3)
    with_ignored[7] = 9
    save_mask(tmp_path / "data" / "a1.nii.gz", with_ignored)
    found = evaluate(replace(manifest, ignore=9), tmp_path, "first").scores.raters
    assert (found["comparisons"], found["failed"]) == (6, 0)


def test_a_case_that_one_reference_can_t_judge_has_no_mean_over_them(manifest, tmp_path, save_mask):
    evaluate(manifest, tmp_path, "each")
    save_mask(tmp_path / "data" / "a3.nii.gz", box(0, 4)[:, :3])
    report = evaluate(manifest, tmp_path, "each")
    assert (report.exit_code, sorted(report.scores.rows), report.kept) == (4, ["b"], 1)
    assert report.scores.failed["a"].startswith("a: can't be scored against every reference (a.mask-3: prediction and")


def test_every_reference_decides_the_identity_of_a_mean_over_them(manifest, tmp_path, save_mask):
    def reference():
        return json.loads((tmp_path / "s" / "metrics.json").read_text())["identity"]["references"]

    evaluate(manifest, tmp_path, "each")
    before = reference()
    save_mask(tmp_path / "data" / "a3.nii.gz", box(0, 5))
    evaluate(manifest, tmp_path, "each")
    assert (reference()["a"] != before["a"], reference()["b"] == before["b"]) == (True, True)


def test_a_mean_over_raters_has_all_that_was_asked_for(manifest, tmp_path):
    chance = np.where(box(0, 4), np.float32(0.75), np.float32(0.25))
    for name in "ab":
        path = tmp_path / "predictions" / "maps" / f"{name}_probabilities.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, probabilities=chance[..., None], affine=np.eye(4), class_names=["liver"])
    scores = evaluate(manifest, tmp_path, "each", metrics=("all",)).scores
    # Two of three references are the mask, and a plane of eight is wrong in the other.
    wrong = (3 * 0.25**2 + 4 * 0.25**2 + 0.75**2) / 8
    assert scores.rows["a"][0].values["brier"] == pytest.approx((0.25**2 * 2 + wrong) / 3)
    assert scores.whole["a"]["pixel_accuracy"] == pytest.approx((7 / 8 + 1 + 1) / 3)
    found = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert found["lesions"]["classes"]["liver"]["cases"] == 2
    assert found["raters"]["classes"]["liver"]["lesion_dice"]["human"]["n"] == 1
    assert "brier" not in found["raters"]["classes"]["liver"]


def test_raters_of_no_class_at_all_make_no_band(manifest, tmp_path):
    cases = tuple(replace(case, labelled=()) if case.id == "a" else case for case in manifest.training)
    assert evaluate(replace(manifest, training=cases), tmp_path, "first").scores.raters == {}


def test_pictures_are_of_the_reference_that_was_scored_against(manifest, tmp_path):
    place = {"predictions": tmp_path / "predictions", "data_root": tmp_path / "data"}
    evaluate(manifest, tmp_path, "majority")
    for raters, names in (("majority", ["a.nii.gz", "b1.nii.gz"]), ("first", ["a1.nii.gz", "b1.nii.gz"])):
        cases = manifest_set("fold_0", manifest, "ab", EvaluateSection(raters=raters), **place)
        assert [pair.reference.name for pair in as_scored(cases, tmp_path / "s").pairs] == names


def row(situation, **values):
    return ClassScores(
        class_name="liver",
        situation=situation,
        true_positive=3,
        false_positive=0,
        false_negative=0,
        diagonal_mm=100.0,
        values={name: values.get(name) for name in metric_names()},
    )


def test_a_mean_over_raters_counts_a_miss():
    several = [[row("missed", dice=0.0)], [row("both_empty")]]
    (found,) = mean_rows(several, POLICIES["standard"])
    assert (found.situation, found.values["dice"], found.values["hd95_mm"]) == ("missed", 0.0, 100.0)
    (found,) = mean_rows([[row("present", dice=0.8, hd95_mm=4.0)], [row("spurious", dice=0.0)]], POLICIES["exclude"])
    assert (found.situation, found.values["dice"], found.values["hd95_mm"]) == ("present", 0.4, 4.0)
    assert math.isclose(found.true_positive, 3)
