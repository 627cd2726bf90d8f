import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from medseg.durable import FolderLock
from medseg.errors import LockedError
from medseg.evaluation import match_folders, reading, run_evaluate
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.protocol import make_protocol

LABELS = {"background": (0,), "liver": (1,), "tumour": (2,)}
PROTOCOL = make_protocol(labels=LABELS)


@pytest.fixture
def folders(tmp_path, save_mask):
    rng = np.random.default_rng(4)
    for k in range(4):
        for side in ("p", "r"):
            save_mask(tmp_path / side / f"case_{k}.nii.gz", rng.choice(3, (9, 8, 7)), spacing=(0.8, 0.8, 2.0))
    return tmp_path / "p", tmp_path / "r"


@pytest.fixture
def reads(monkeypatch):
    """The label maps that are decoded from now on."""
    found = []
    original = reading.read_label_map
    monkeypatch.setattr(reading, "read_label_map", lambda path: found.append(path.name) or original(path))
    return found


def evaluate(folders, output, *, protocol=PROTOCOL, processes=1):
    cases = CaseSet(name="set", pairs=match_folders(*folders), protocol=protocol)
    return run_evaluate(cases, output=output, processes=processes)


def written(output):
    return {
        path.relative_to(output).as_posix(): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()
    }


def test_all_cases(folders, tmp_path):
    report = evaluate(folders, tmp_path / "s")
    assert (report.scored, report.kept, report.exit_code, report.faults) == (4, 0, 0, ())
    assert sorted(written(tmp_path / "s")) == sorted(
        [*(f"cases/case_{k}.json" for k in range(4)), "cases.csv", "metrics.json"]
    )


def test_second_run_reads_nothing_and_writes_the_same(folders, tmp_path, reads):
    evaluate(folders, tmp_path / "s")
    before = written(tmp_path / "s")
    assert len(reads) == 8
    report = evaluate(folders, tmp_path / "s")
    assert len(reads) == 8
    assert (report.scored, report.kept) == (0, 4)
    assert written(tmp_path / "s") == before


def test_bytes_depend_neither_on_processes_nor_on_interruptions(folders, tmp_path):
    evaluate(folders, tmp_path / "one")
    evaluate(folders, tmp_path / "two", processes=2)
    (tmp_path / "one" / "cases" / "case_2.json").unlink()
    (tmp_path / "one" / "metrics.json").unlink()
    (tmp_path / "one" / "cases" / ".tmp-elsewhere-1-x").touch()
    evaluate(folders, tmp_path / "one")
    (tmp_path / "one" / "cases" / ".tmp-elsewhere-1-x").unlink()
    assert written(tmp_path / "one") == written(tmp_path / "two")


def test_only_what_changed_is_scored_again(folders, tmp_path, save_mask, reads):
    evaluate(folders, tmp_path / "s")
    reads.clear()
    save_mask(folders[0] / "case_1.nii.gz", np.ones((9, 8, 7)), spacing=(0.8, 0.8, 2.0))
    assert evaluate(folders, tmp_path / "s").scored == 1
    assert reads == ["case_1.nii.gz"] * 2
    assert evaluate(folders, tmp_path / "s", protocol=make_protocol(labels=LABELS, tolerance_mm=3.0)).scored == 4
    assert (
        evaluate(
            folders, tmp_path / "s", protocol=make_protocol(labels=LABELS, tolerance_mm=3.0, empty="exclude")
        ).scored
        == 0
    )


@pytest.mark.parametrize(
    "damage", [lambda text: text[:50], lambda text: text.replace('"liver"', '"lever"'), lambda text: ""]
)
def test_damaged_rows_are_made_again(folders, tmp_path, damage):
    evaluate(folders, tmp_path / "s")
    before = written(tmp_path / "s")
    path = tmp_path / "s" / "cases" / "case_0.json"
    path.write_text(damage(path.read_text()))
    assert evaluate(folders, tmp_path / "s").scored == 1
    assert written(tmp_path / "s") == before


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_cases_are_named_and_the_good_ones_done(folders, tmp_path, save_mask, processes):
    good = evaluate(folders, tmp_path / "good").scores.rows
    predictions = folders[0]
    save_mask(predictions / "case_8.nii.gz", np.zeros((2, 2, 2)))
    (predictions / "case_0.nii.gz").unlink()
    (predictions / "case_1.nii.gz").write_bytes(b"no scan")
    save_mask(predictions / "case_2.nii.gz", np.zeros((9, 8, 6)), spacing=(0.8, 0.8, 2.0))
    report = evaluate(folders, tmp_path / "s", processes=processes)
    assert report.exit_code == 4
    assert dict(report.scores.rows) == {"case_3": good["case_3"]}
    assert (report.scores.missing, report.scores.extra, sorted(report.scores.failed)) == (
        ("case_0",),
        ("case_8",),
        ["case_1", "case_2"],
    )
    missing, extra, unreadable, other_grid = report.faults
    assert missing == "case_0: has no prediction, expected one for every reference"
    assert extra == "case_8: has a prediction but no reference, expected both"
    assert unreadable.startswith("case_1")
    assert other_grid.startswith("case_2: prediction and reference lie on different grids")
    assert str(tmp_path) not in "".join(report.faults)
    told = json.loads((tmp_path / "s" / "metrics.json").read_text())["cases"]
    assert (told["expected"], told["scored"], told["missing"], told["extra"]) == (4, 1, ["case_0"], ["case_8"])
    assert sorted(told["failed"]) == ["case_1", "case_2"]


def test_nothing_scored_is_refused(folders, tmp_path):
    for path in folders[0].iterdir():
        path.write_bytes(b"no scan")
    report = evaluate(folders, tmp_path / "s")
    assert report.exit_code == 3
    assert (
        json.loads((tmp_path / "s" / "metrics.json").read_text())["classes"]["liver"]["metrics"]["dice"]["mean"] is None
    )


def test_one_writer_at_a_time(folders, tmp_path):
    with FolderLock(tmp_path / "s"), pytest.raises(LockedError, match="is being written by process"):
        evaluate(folders, tmp_path / "s")


def test_table_of_cases(folders, tmp_path):
    report = evaluate(folders, tmp_path / "s")
    with (tmp_path / "s" / "cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["class"]) for row in rows] == [
        (f"case_{k}", c) for k in range(4) for c in ("liver", "tumour")
    ]
    first = report.scores.rows["case_0"][0]
    assert float(rows[0]["dice"]) == first.values["dice"]
    assert float(rows[0]["image_diagonal_mm"]) == first.diagonal_mm
    assert int(rows[0]["true_positive"]) == first.true_positive


def test_a_case_is_scored_on_the_classes_it_was_labelled_for(folders, tmp_path, reads):
    def run(*labelled):
        pairs = [replace(pair, labelled=own) for pair, own in zip(match_folders(*folders), labelled, strict=True)]
        report = run_evaluate(CaseSet(name="set", pairs=pairs, protocol=PROTOCOL), output=tmp_path / "s", processes=1)
        return report, [(case, [row.class_name for row in rows]) for case, rows in sorted(report.scores.rows.items())]

    report, rows = run(None, ("tumour",), None, None)
    assert rows[:2] == [("case_0", ["liver", "tumour"]), ("case_1", ["tumour"])]
    assert [summary.counts["cases"] for summary in report.scores.classes] == [3, 4]
    assert len(reads) == 8
    assert run(None, ("tumour",), None, None)[0].kept == 4
    report, rows = run(None, ("tumour",), ("liver",), None)
    assert (report.scored, rows[2]) == (1, ("case_2", ["liver"]))


def test_a_class_that_no_mask_has_is_named(folders, tmp_path):
    protocol = make_protocol(labels={**PROTOCOL.labels, "spleen": (9,)})
    assert evaluate(folders, tmp_path / "s").scores.notes == ()
    (note,) = evaluate(folders, tmp_path / "s", protocol=protocol).scores.notes
    assert note.startswith("spleen: no prediction and no reference has a voxel of it")
