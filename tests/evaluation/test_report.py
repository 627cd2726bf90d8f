import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from medseg.durable import sha256_file
from medseg.evaluation import case_table, flat_metrics, match_folders, run_evaluate, score_lines, terminal_table
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.protocol import make_protocol
from medseg.evaluation.registry import METRICS, metric_names


@pytest.fixture
def report(tmp_path, save_mask):
    reference = np.zeros((6, 6, 6), np.uint8)
    reference[1:5, 1:5, 1:5] = 1
    prediction = reference.copy()
    prediction[4] = 0
    prediction[0, 0, 0] = 2
    for side, array in (("p", prediction), ("r", reference)):
        save_mask(tmp_path / side / "a.nii.gz", array)
    save_mask(tmp_path / "p" / "b.nii.gz", reference * 0)
    save_mask(tmp_path / "r" / "b.nii.gz", reference)
    protocol = make_protocol(labels={"background": (0,), "liver": (1,), "tumour": (2,)}, tolerance_mm=1.0)
    pairs = match_folders(tmp_path / "p", tmp_path / "r")
    cases = CaseSet(name="fold_0", pairs=pairs, protocol=protocol, notes=("a note",))
    return run_evaluate(cases, output=tmp_path / "s", processes=1)


def test_metrics_json(report, tmp_path):
    content = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert list(content) == [
        "format", "name", "cases", "labels", "ignore", "tolerance_mm", "classes", "mean_of_classes", "all_classes",
        "groups", "raters", "notes", "definitions", "identity",
    ]  # fmt: skip
    assert content["format"] == 2
    liver, tumour = content["classes"]["liver"], content["classes"]["tumour"]
    assert liver["counts"] == {"cases": 2, "present": 1, "missed": 1, "spurious": 0, "both_empty": 0}
    assert tumour["counts"] == {"cases": 2, "present": 0, "missed": 0, "spurious": 1, "both_empty": 1}
    dice = 2 * 48 / (48 + 64)
    assert liver["metrics"]["dice"]["mean"] == dice / 2
    assert liver["metrics"]["hd_mm"]["mean"] == pytest.approx((1.0 + 75**0.5) / 2)
    assert liver["metrics"]["hd_mm"]["mean_defined"] == 1.0
    assert liver["metrics"]["hd_mm"]["n_imputed"] == 1
    assert tumour["metrics"]["dice"]["n"] == 1
    # Of 216 voxels 1 and 16 are wrong in the first case, 64 in the second.
    assert content["all_classes"]["pixel_accuracy"]["mean"] == pytest.approx((199 / 216 + 152 / 216) / 2, rel=1e-12)
    assert content["notes"] == ["a note"]
    assert content["identity"]["cases_csv_sha256"] == sha256_file(tmp_path / "s" / "cases.csv")
    assert content["identity"]["references"] == {case: sha256_file(tmp_path / "r" / f"{case}.nii.gz") for case in "ab"}
    assert content["cases"]["patients"] == 2
    assert set(content["definitions"]["metrics"]) == set(metric_names())
    assert content["definitions"]["empty_masks"]["policy"] == "standard"


def test_nothing_in_the_files_depends_on_time_or_place(report, tmp_path):
    for name in ("metrics.json", "cases.csv"):
        assert str(tmp_path) not in (tmp_path / "s" / name).read_text()


def test_rows_and_flat_metrics_for_a_tracker(report):
    assert [(row["case"], row["class"]) for row in case_table(report.scores)] == [
        ("a", "liver"), ("a", "tumour"), ("b", "liver"), ("b", "tumour")
    ]  # fmt: skip
    flat = flat_metrics(report.scores)
    assert flat["cases/scored"] == 2
    assert flat["liver/dice"] == 48 / 112
    assert flat["mean/dice"] == 48 / 112 / 2
    assert flat["all_classes/pixel_accuracy"] == pytest.approx((199 + 152) / 432)


def test_terminal_table(report):
    stream = io.StringIO()
    Console(file=stream, width=80).print(terminal_table(report.scores))
    text = stream.getvalue()
    assert "fold_0: 2 of 2 cases scored" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["liver", "0.4286±0.61", "0.5000±0.71", "4.83±5.4*", "4.43±6*", "2"] in lines
    assert ["1", "missed"] in lines
    assert ["1", "absent"] in lines
    assert "NSD within 1 mm; empty masks: standard" in " ".join(text.split())
    assert "* counts the worst value" in " ".join(text.split())


def test_lines_under_the_table(report):
    assert score_lines(report.scores) == ["Dice, 95 % interval of the mean over 2 patients: liver none.", *[
        "liver: fewer than two patients where nothing failed."
    ]]  # fmt: skip
    groups = {"site": {"a": "A", "b": "B"}}
    assert score_lines(replace(report.scores, groups=groups)) == score_lines(report.scores)  # too few to be named


def test_chosen_metrics_appear_everywhere(tmp_path, save_mask):
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[1:3, 1:5, 1:5] = 1
    for side in ("p", "r"):
        save_mask(tmp_path / side / "a.nii.gz", mask)
    protocol = make_protocol(labels={"background": (0,), "liver": (1,)}, metrics=("instances", "hd99_mm"))
    cases = CaseSet(name="set", pairs=match_folders(tmp_path / "p", tmp_path / "r"), protocol=protocol)
    report = run_evaluate(cases, output=tmp_path / "s", processes=1)
    content = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert set(content["definitions"]["metrics"]) == set(protocol.metrics) > set(metric_names())
    assert content["classes"]["liver"]["metrics"]["lesion_pq"]["mean"] == 1.0
    assert content["mean_of_classes"]["hd99_mm"]["mean"] == 0.0
    assert content["lesions"]["classes"]["liver"]["iou_above_0.5"]["rq"] == 1.0
    assert case_table(report.scores)[0]["lesion_dice"] == 1.0
    assert flat_metrics(report.scores)["liver/lesion_rq"] == 1.0
    assert (tmp_path / "s" / "cases.csv").read_text().splitlines()[0].endswith("lesion_f1_any,hd99_mm")


def test_every_metric_says_what_it_is():
    assert len(set(metric_names())) == len(METRICS)
    assert all(metric.definition for metric in METRICS)
