import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from medseg.cli import report as report_verb
from medseg.errors import InputError, UsageError
from medseg.evaluation import run_evaluate
from medseg.evaluation.experiment import folder_set
from medseg.imaging import LabelMap, write_label_map
from medseg.imaging.nifti import write_nifti
from medseg.report.atlas import bytes_of
from medseg.report.content import Content, ReportInputs, gather
from medseg.report.experiment import folder_inputs, scans_of, scored_folders
from medseg.report.facts import Facts
from medseg.report.failures import Failure
from medseg.report.judged import Judged
from medseg.report.markdown import markdown
from medseg.report.page import page
from medseg.report.scores import Row, ScoreTable, read_scores
from medseg.report.shown import shown_cases
from medseg.report.stage import make_report
from tests.report.scored_cases import AFFINE


def inputs_of(folder, *, scans=True):
    cases = scored_folders(folder / "scores", predictions=folder / "p", references=folder / "r")
    return folder_inputs(folder / "scores", cases, scans=folder / "scans" if scans else None)


class Page(HTMLParser):
    """What a test asks of a page: its elements in order, and the text of its data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.data, self._inside = [], [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self._inside = found.get("id") == "cases-data"

    def handle_data(self, data):
        if self._inside:
            self.data, self._inside = json.loads(data), False


def test_a_report_says_everything_and_fetches_nothing(reported):
    text = (reported / "scores" / "report.html").read_text()
    parsed = Page(text)
    policy = next(a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert not re.findall(r"https?://(?!www\.w3\.org)", text)
    assert len(set(parsed.ids)) == len(parsed.ids)
    for section in (
        "summary",
        "distributions",
        "volumes",
        "cases",
        "failures",
        "rows",
        "definitions",
        "identity",
        "left-out",
    ):
        assert section in parsed.ids
    assert str(reported) not in text
    assert [case["id"] for case in parsed.data["cases"]] == ["none", "bad", "good"]
    assert all(plane["scan"] for case in parsed.data["cases"] for plane in case["planes"])
    assert parsed.data["cases"][0]["planes"][0]["letters"] == ["R", "L", "A", "P"]
    assert (
        text.count("lies 6 mm left of the reference") == 2 * 2
    )  # on disk x runs to the left; card and list, both classes


def test_equal_inputs_give_equal_bytes_wherever_they_lie(scored, reported):
    found = make_report(inputs_of(scored))
    assert found.html.read_bytes() == (reported / "scores" / "report.html").read_bytes()
    assert found.markdown.read_bytes() == (reported / "scores" / "report.md").read_bytes()


def test_a_report_is_made_once_of_the_same(scored, monkeypatch):
    monkeypatch.setattr("medseg.report.stage.page", lambda _: "a page")
    first = make_report(inputs_of(scored))
    assert first.made
    assert not make_report(inputs_of(scored)).made
    assert make_report(inputs_of(scored), again=True).made
    assert make_report(inputs_of(scored, scans=False)).made
    first.html.write_text("cut")
    assert make_report(inputs_of(scored, scans=False)).made


def test_scans_appear_only_where_they_may(scored):
    found = gather(inputs_of(scored, scans=False))
    assert [one.has("scan") for one in found.shown] == [False, False, False]
    assert found.left_out == ["Slices of the scans: no folder of scans was given. Masks are shown on blank ground."]


def test_scores_alone_give_a_report_without_slices(scored):
    text = make_report(folder_inputs(scored / "scores", None)).html.read_text()
    assert Page(text).data is None
    assert "the masks were not given" in text


def test_markdown_has_the_scores_and_the_reasons(reported):
    text = (reported / "scores" / "report.md").read_text()
    assert "3 of 3 cases scored" in text
    assert "| none | organ | missed | 0.000 | the reference has 1.38 ml |" in text
    assert "| bad | organ | shifted |" in text


def content(rows, *, classes, left_out=(), failures=()):
    summary = {"n": 1, "n_imputed": 0, "mean": 0.5, "mean_low": 0.4, "mean_high": 0.6, "novel": 1}
    summary["intervals"] = {"mean": {"method": "t", "note": "too short below 5 patients"}}
    metrics = {
        "format": 2,
        "name": "<set>",
        "cases": {"expected": 3, "scored": 1, "missing": ["<b>"], "extra": [], "failed": {"c": "c: <i>broken</i>"}},
        "labels": {"background": [0]},
        "classes": {
            name: {
                "counts": {"cases": 1, "present": 1, "missed": 0, "spurious": 0, "both_empty": 0},
                "metrics": {"dice": summary, "new_metric": summary, "odd": None},
            }
            for name in classes
        },
        "groups": {
            "scanner": {
                "values": {
                    "Ax": {
                        "cases": 9,
                        "patients": 8,
                        "classes": {name: {"metrics": {"dice": summary}} for name in classes},
                    }
                },
                "small": {"groups": 1, "cases": 2},
                "without": 3,
                "worst": {},
            }
        },
        "raters": {
            "cases": 4,
            "classes": {
                name: {"dice": {"human": {"mean": 0.8, "low": 0.7, "high": 0.9}, "model": None}} for name in classes
            },
        },
        "all_classes": {"macro_dice": summary},
    }
    return Content(
        table=ScoreTable(metrics=metrics, rows=rows, columns=("dice",)), failures=failures, suspects=(0, 0), judged=Judged(),
        facts=Facts(), shown=(), index_names=(), left_out=left_out,
    )  # fmt: skip


EVIL = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "name", ["` ![x](http://a.b/c.png)", "\\\\[x](javascript:alert(1))", "[x](javascript:alert(1)) `"]
)
def test_no_name_becomes_markdown(name):
    row = Row(case=name, class_name=name, situation="present", values={"dice": 0.5})
    failure = Failure(case=name, class_name=name, kind="missed", reason=name, dice=0.0)
    text = markdown(content([row], classes=[name], left_out=[name], failures=[failure]))
    assert "\\](" in text
    assert not re.search(r"(?<!\\)(\\\\)*\]\(", text)  # no bracket that could end a link's text


def test_names_from_outside_stay_text():
    rows = [Row(case=EVIL, class_name=EVIL, situation=EVIL, values={"dice": 0.5, "volume_reference_ml": 3.0})]
    failure = Failure(case=EVIL, class_name=EVIL, kind="missed", reason=EVIL, dice=0.0)
    made = content(rows, classes=[EVIL, "$x$", "\u4e2d\u6587"], left_out=[EVIL], failures=[failure])
    text = page(made)
    assert "<script>alert" not in text
    assert EVIL not in markdown(made)
    assert "$x$" in text
    assert "<i>broken" not in text


def test_new_metrics_groups_and_readers_are_shown():
    text = page(content([], classes=["organ"]))
    assert "new_metric" in text
    assert "macro_dice" in text
    assert "Ax<small>9 cases, 8 patients</small>" in text
    assert "1 group of too few patients (2 cases) stay unnamed. 3 cases without a value." in text
    assert "4 cases with several references" in text
    assert "0.800<small>[0.700, 0.900]</small>" in text
    assert "too short below 5 patients" in text


def test_a_report_of_no_scores():
    made = content([], classes=["organ"])
    assert "<h1>Scores of &lt;set&gt;</h1>" in page(made)
    assert "| class |" in markdown(made)


def test_the_file_stays_under_its_limit(scored):
    found = gather(inputs_of(scored))
    assert all(one.thinned is None for one in found.shown)
    found = replace(found, table=replace(found.table, rows=()))  # no figures
    whole = page(found)
    small = page(found, most_bytes=len(whole) - 2000)
    assert len(small.encode()) <= len(whole) - 2000
    assert "Slices of good: they would have made the file too large." in small
    assert Page(page(found, most_bytes=1000)).data is None


def test_probability_maps_give_the_calibration_of_voxels(scored):
    (scored / "p" / "maps").mkdir()
    maps = np.zeros((30, 28, 12, 2), np.uint8)
    maps[4:14, 8:18, 3:9, 0] = 255  # of the organ certain, also where the lesion is; of the lesion never
    write_nifti(maps, AFFINE, scored / "p" / "maps" / "good_probabilities.nii.gz", like=None, slope=1 / 255)
    judged = gather(inputs_of(scored)).judged
    assert judged.mapped == 1
    assert judged.curves["organ"][-1] == (1.0, pytest.approx(552 / 600), 600)
    ((given, share, count),) = judged.curves["lesion"]
    assert (given, share) == (0, pytest.approx(48 / count))


def test_overlapping_labels_are_shown_by_their_combinations(scored):
    cases = folder_set("set", predictions=scored / "p", references=scored / "r", labels="whole=1+2,core=2")
    run_evaluate(cases, output=scored / "regions", processes=1)
    again = scored_folders(scored / "regions", predictions=scored / "p", references=scored / "r")
    found = gather(folder_inputs(scored / "regions", again))
    assert list(found.index_names) == ["whole", "whole+core"]
    reasons = {(one.case, one.class_name): (one.kind, one.reason) for one in found.failures}
    assert reasons["none", "whole"] == ("missed", "the reference has 1.5 ml")
    assert reasons["none", "core"] == ("missed", "the reference has 0.12 ml")
    assert reasons["bad", "core"][0] == "shifted"
    assert found.shown[0].indices == [0, 1, 2]


def test_slices_share_their_room(scored):
    size = sum(bytes_of(one.data) for one in gather(inputs_of(scored)).shown)
    found = gather(inputs_of(scored), atlas_bytes=size * 8 // 10)
    assert sum(bytes_of(one.data) for one in found.shown) <= size * 8 // 10
    assert any(
        text.startswith("Slices, evenly, so that the file stays small; there are: none ") for text in found.left_out
    )
    assert gather(inputs_of(scored), atlas_bytes=10).left_out == [
        "Slices of none, bad, good: they would have made the file too large."
    ]


@pytest.mark.slow
def test_three_thousand_cases_of_a_hundred_classes_fit():
    rng = np.random.default_rng(0)
    names = [f"class {k}" for k in range(100)]
    values = rng.random((100, 3000))
    rows = [
        Row(
            case=f"c{i}",
            class_name=name,
            situation="present",
            values={"dice": float(values[k, i]), "volume_reference_ml": 1.0},
        )
        for k, name in enumerate(names)
        for i in range(3000)
    ]
    assert len(page(content(rows, classes=names)).encode()) < 20_000_000


def test_which_cases_are_shown():
    rows = [Row(case=f"c{i}", class_name="o", situation="present", values={"dice": i / 10}) for i in range(9)]
    table = ScoreTable(metrics={"classes": {"o": {}}}, rows=rows, columns=("dice",))
    kinds = {"c0": "missed", "c5": "merged", "c6": "merged"}
    failures = [Failure(case=case, class_name="o", kind=kind, reason="", dice=0.0) for case, kind in kinds.items()]
    assert shown_cases(table, failures) == {
        "c0": ("worst",), "c1": ("2nd worst",), "c2": ("3rd worst",), "c4": ("median",), "c8": ("best",),
        "c5": ("example: merged",),
    }  # fmt: skip


def test_a_mask_that_changed_is_told(scored, caplog):
    write_label_map(LabelMap(np.full((30, 28, 12), 9, np.uint8), np.eye(4)), scored / "p" / "bad.nii.gz", like=None)
    assert gather(inputs_of(scored)).left_out == ["Kinds of failure of 2 of 4 conspicuous structures.",
                                                  "Masks that could not be read again: bad."]  # fmt: skip
    assert "report: bad: the masks lie on different grids" in caplog.text


def test_scans_are_found_by_their_names(tmp_path):
    for name in ("a.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "note.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c").mkdir()
    pairs = [type("Pair", (), {"case_id": name})() for name in ("a", "b", "c", "d")]
    assert {case: path.name for case, path in scans_of(tmp_path, pairs).items()} == {
        "a": "a.nii.gz", "b": "b_0000.nii.gz", "c": "c"
    }  # fmt: skip
    with pytest.raises(UsageError, match="--scans: none is no folder"):
        scans_of(tmp_path / "none", pairs)


def test_scores_that_are_none_or_newer_are_refused(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="is none that evaluate wrote"):
        read_scores(tmp_path)
    (tmp_path / "metrics.json").write_text('{"format": 99, "name": "", "classes": {}, "cases": {}, "labels": {}}')
    with pytest.raises(InputError, match="has format 99, expected at most 2; use a newer medseg"):
        read_scores(tmp_path)
    with pytest.raises(InputError, match=r"metrics\.json: no such file"):
        make_report(ReportInputs(scores=tmp_path / "none"))


def test_the_verb_makes_it_again(scored, capsys, monkeypatch):
    monkeypatch.setattr("medseg.report.stage.page", lambda found: f"<p>{len(found.shown)}</p>")
    flags = [
        scored / "scores",
        "--predictions",
        scored / "p",
        "--references",
        scored / "r",
        "--scans",
        scored / "scans",
    ]
    assert report_verb.main([str(flag) for flag in flags]) == 0
    assert "report.html (0.0 MB), report.md" in capsys.readouterr().out
    assert (scored / "scores" / "report.html").read_text() == "<p>3</p>"
    assert report_verb.main([str(scored / "scores")]) == 0
    assert (scored / "scores" / "report.html").read_text() == "<p>0</p>"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected a folder of scores, or --config FILE"),
        (["s", "--predictions", "p"], "--predictions and --references belong together"),
        (["s", "--scans", "p"], "--scans needs --predictions and --references"),
        (["s", "--model", "none"], "--model: none is no model folder"),
    ],
)
def test_flags_that_make_no_sense(flags, message, capsys):
    assert report_verb.main(flags) == 2
    assert message in capsys.readouterr().err
