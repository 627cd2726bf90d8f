"""One line per case, whatever happens to the run."""

import csv
import io
import json

import pytest

from medseg.inference.quality import CaseQuality
from medseg.inference.report import CaseReport, ReportFile, exit_code, summary


def ok(case_id, sha256="a", **values):
    return CaseReport(id=case_id, status="ok", output=f"{case_id}.nii.gz", sha256=sha256, **values)


def lines(folder):
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def test_lines_are_there_at_once_and_sorted_at_the_end(tmp_path):
    with ReportFile(tmp_path, ["a", "b"]) as report:
        report.add(ok("b"))
        assert [line["id"] for line in lines(tmp_path)] == ["b"]
        report.add(CaseReport(id="a", status="refused", reason="a: is empty"))
    assert [(line["id"], line["status"]) for line in lines(tmp_path)] == [("a", "refused"), ("b", "ok")]


def test_a_cut_line_is_dropped(tmp_path):
    with ReportFile(tmp_path, ["a"]) as report:
        report.add(ok("a"))
    with (tmp_path / "report.jsonl").open("a") as stream:
        stream.write('{"id": "b", "stat')
    with ReportFile(tmp_path, ["a", "b"]):
        assert [line["id"] for line in lines(tmp_path)] == ["a"]


def test_a_kept_case_keeps_its_line(tmp_path):
    with ReportFile(tmp_path, ["a"]) as report:
        report.add(ok("a", seconds={"read": 1.5}))
    with ReportFile(tmp_path, ["a"]) as report:
        report.add(CaseReport(id="a", status="kept", output="a.nii.gz", sha256="a"))
    assert lines(tmp_path)[0]["seconds"] == {"read": 1.5}


@pytest.mark.parametrize("before", [None, ok("a", sha256="other", seconds={"read": 1.5})])
def test_a_kept_case_without_its_line_gets_one(tmp_path, before):
    with ReportFile(tmp_path, ["a"]) as report:
        if before:
            report.add(before)
    with ReportFile(tmp_path, ["a"]) as report:
        report.add(CaseReport(id="a", status="kept", output="a.nii.gz", sha256="a", voxels={"organ": 3}))
    (line,) = lines(tmp_path)
    assert (line["status"], line["seconds"], line["voxels"]) == ("ok", {}, {"organ": 3})


def test_a_later_line_replaces_an_earlier_one_and_others_stay(tmp_path):
    with ReportFile(tmp_path, ["z", "a"]) as report:
        report.add(CaseReport(id="a", status="refused", reason="no"))
        report.add(ok("z"))
    with ReportFile(tmp_path, ["a"]) as report:
        report.add(ok("a"))
    assert [(line["id"], line["status"]) for line in lines(tmp_path)] == [("a", "ok"), ("z", "ok")]


def test_the_file_is_whole_after_an_error(tmp_path):
    def interrupted():
        with ReportFile(tmp_path, ["a", "b"]) as report:
            report.add(ok("b"))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert [line["id"] for line in lines(tmp_path)] == ["b"]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [("ok ok", 0), ("kept", 0), ("ok refused", 4), ("kept failed", 4), ("refused refused", 3), ("refused failed", 1)],
)
def test_exit_codes(statuses, code):
    assert exit_code([CaseReport(id="a", status=status) for status in statuses.split()]) == code


def test_a_row_is_flat():
    row = ok("a", seconds={"read": 1.0}, voxels={"organ": 2}, volume_ml={"organ": 0.5}).row()
    assert row == {
        "case": "a",
        "status": "ok",
        "reason": "",
        "output": "a.nii.gz",
        "read_seconds": 1.0,
        "organ_voxels": 2,
        "organ_ml": 0.5,
    }


def test_the_table_has_a_column_for_whatever_a_case_has(tmp_path):
    quality = CaseQuality(expected_dice={"organ": 0.9, "duct": None}, flags=("organ: is tiny",))
    report = ok("a", quality=quality, flags=quality.flags, contract="warn", peak_memory_bytes={"host": 2_500_000})
    with ReportFile(tmp_path, ["a", "b"]) as lines_of:
        lines_of.add(report)
        lines_of.add(CaseReport(id="b", status="refused", reason='=HYPERLINK("x"): is empty, expected a scan'))
    a, b = csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text()))
    assert (a["host_peak_mb"], a["organ_expected_dice"], a["contract"], a["flags"]) == (
        "2.5",
        "0.9",
        "warn",
        "organ: is tiny",
    )
    assert "duct_expected_dice" not in a
    with ReportFile(tmp_path, ["c"]) as lines_of:
        lines_of.add(ok("c", voxels={'=HYPERLINK("x")': 2}))
    header = next(csv.reader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert '\'=HYPERLINK("x")_voxels' in header
    assert b["reason"].startswith("'=HYPERLINK")
    assert b["output"] == ""


def test_the_summary_counts_what_is_to_be_looked_at():
    reports = [ok("a"), ok("b", flags=("organ: is empty",)), ok("c", contract="warn")]
    reports += [
        CaseReport(id="d", status="refused", contract="refuse"),
        CaseReport(id="e", status="kept", contract="ok"),
    ]
    assert summary(reports) == "3 ok, 1 kept, 1 refused of 5 cases (2 with flags)"
    assert summary(reports[:1]) == "1 ok of 1 cases"
