import argparse
from pathlib import Path

import pytest

from medseg.cli.entry import Context
from medseg.cli.review import evaluate_note, log_case_table, log_scores, predicted_by, shows_scans
from medseg.config.sections import Config, DataSection, TrackingSection
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.protocol import make_protocol
from medseg.tracking.record import write_stage_record
from tests.evaluation.test_review import _row, _scores

SCORES = {"a": (_row("organ", 0.9), _row("tumour", 0.5)), "b": (_row("organ", 0.3), _row("tumour", None))}


class Recorded:
    """Keeps the arguments of every call."""

    def __init__(self):
        self.calls = {}

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.setdefault(name, []).append((args, kwargs))


@pytest.fixture
def context():
    args = argparse.Namespace(config=Path("/somewhere/demo.yaml"), overrides=["evaluate.empty=standard"])
    return Context(args=args, config=Config(name="demo", data=DataSection(manifest="m.json")))


def test_a_description_begins_with_the_scores_and_names_the_worst_case(context):
    text = evaluate_note(context, _scores(SCORES), pictures=["b", "a"]).replace("&nbsp;&nbsp;", "")
    assert text.startswith(
        "Scores of **demo** on `testing`. Mean Dice **0.5500** over classes; worst case `b` with 0.3000."
    )
    assert "| organ | 0.6000 |" in text
    assert "| b | 0.3000 | 0.3000 | - |" in text
    assert "a slider from the worst case (step 0)" in text
    assert "medseg evaluate --config demo.yaml --data-root DATA --set evaluate.empty=standard" in text
    assert "/somewhere" not in text


def test_the_run_above_gets_the_headline_under_the_name_of_the_set(context, tmp_path):
    run = Recorded()
    log_scores(run, context, _scores(SCORES), tmp_path, "note", name="crossvalidation")
    ((numbers,), fields) = run.calls["log_headline"][0]
    assert numbers["crossvalidation/dice"] == pytest.approx(0.55)
    assert numbers["crossvalidation/dice/organ"] == pytest.approx(0.6)
    assert fields == {"note": "note"}
    assert "log_file" not in run.calls


@pytest.mark.parametrize(
    ("html", "images", "logged"),
    [
        ("<svg/>", False, True),
        ('{"scan":null,"masks":"data:image/png;base64,"}', False, True),
        ('{"scan":"data:image/png;base64,"}', False, False),
        ('{"scan":"data:image/png;base64,"}', True, True),
    ],
)
def test_a_report_with_slices_of_scans_needs_leave(context, tmp_path, html, images, logged):
    (tmp_path / "report.html").write_text(html)
    config = context.config.model_copy(update={"tracking": TrackingSection(images=images)})
    run = Recorded()
    log_scores(run, Context(args=context.args, config=config), _scores(SCORES), tmp_path, "note")
    assert ("log_file" in run.calls) is logged
    late = Recorded()
    log_scores(late, Context(args=context.args, config=config), _scores(SCORES), tmp_path, "note", report=False)
    assert "log_file" not in late.calls  # one that earlier scores left
    assert shows_scans(tmp_path / "report.html") is ('"scan":"data' in html)


def test_the_table_has_the_worst_first_and_the_telling_columns_first():
    run = Recorded()
    log_case_table(run, _scores(SCORES))
    ((rows, name), _) = run.calls["log_table"][0]
    assert name == "cases"
    assert list(rows[0])[:5] == ["case", "class", "dice", "nsd", "hd95_mm"]
    assert [(row["case"], row["class"], row["dice"]) for row in rows] == [
        ("b", "organ", 0.3), ("a", "tumour", 0.5), ("a", "organ", 0.9), ("b", "tumour", None),
    ]  # fmt: skip


def _set(folder):
    pairs = [CasePaths(case_id=name, prediction=folder / f"{name}.nii.gz", reference=None) for name in "ab"]
    return CaseSet(name="testing", pairs=pairs, protocol=make_protocol(labels={"background": (0,), "organ": (1,)}))


def test_which_model_drew_the_masks_is_in_the_record_beside_them(tmp_path):
    def record(shas):
        extra = {"model_folders": shas}
        write_stage_record(tmp_path, stage="infer", config={}, inputs={}, seconds=1.0, extra=extra)

    assert predicted_by(_set(tmp_path)) is None
    record(["a" * 64])
    assert predicted_by(_set(tmp_path)) == "a" * 64
    record(["a" * 64, "b" * 64])  # averaged: the scores are of neither
    assert predicted_by(_set(tmp_path)) is None
