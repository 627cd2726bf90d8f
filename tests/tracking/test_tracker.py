import contextlib
import json
import logging
import os

import numpy as np
import pytest

from medseg.config.sections import TrackingSection
from medseg.durable import read_json
from medseg.tracking import tracker as tracker_module
from medseg.tracking.spool import read_records, spool_folders
from medseg.tracking.tracker import open_tracker


class Stopped(BaseException):
    pass


def _open(work, **section):
    return open_tracker(TrackingSection(**section), work=work, experiment="demo", config={"a": {"b": 1}})


def _records(work, kind=None):
    (folder,) = spool_folders(work / "tracking")
    return [r for r in read_records(folder) if kind is None or r.kind == kind]


def test_a_run_leaves_start_metrics_and_end(tmp_path):
    with _open(tmp_path) as tracker, tracker.run("train", "train fold 0", params={"p": 2}, tags={"fold": "0"}) as run:
        run.log_metrics({"train/loss": np.float32(0.5), "validation/dice": float("nan")}, step=np.int64(7))
        run.log_metrics({}, step=8)
    start, metrics, end = _records(tmp_path)
    assert start.fields["params"] == {"a.b": "1", "p": "2"}
    assert start.fields["parent"]["name"] == "demo"
    assert start.fields["tags"]["fold"] == "0"
    assert metrics.fields["values"] == {"train/loss": 0.5, "validation/dice": "nan"}
    assert metrics.fields["step"] == 7
    assert end.fields["status"] == "FINISHED"


def test_a_run_with_pictures_has_only_its_own_section_as_params(tmp_path):
    config = {"train": {"seed": 1}, "evaluate": {"empty": "standard"}}
    with (
        open_tracker(TrackingSection(), work=tmp_path, experiment="demo", config=config) as tracker,
        tracker.run("evaluate", "evaluate testing") as run,
    ):
        run.begin()
    start = _records(tmp_path, "start")[0]
    assert start.fields["params"] == {"evaluate.empty": "standard"}
    assert start.fields["parent"]["params"] == {"train.seed": "1", "evaluate.empty": "standard"}


def test_a_stage_with_nothing_to_do_leaves_its_record_alone(tmp_path):
    for _ in range(3):
        with _open(tmp_path) as tracker, tracker.run("infer", "infer", resume_file=tmp_path / "tracking.json") as run:
            if not run.finished_before:
                run.log_metrics({"cases": 1.0}, step=0)
    assert [record.kind for record in _records(tmp_path)] == ["start", "metrics", "end"]


def test_a_refused_start_leaves_a_finished_run_finished(tmp_path):
    def start(error=None):
        with _open(tmp_path) as tracker, tracker.run("train", "train", resume_file=tmp_path / "tracking.json") as run:
            if error is not None:
                raise error
            run.log_metrics({"loss": 1.0}, step=0)

    start()
    with pytest.raises(ValueError, match="other config"):
        start(ValueError("other config"))
    assert [record.fields["status"] for record in _records(tmp_path, "end")] == ["FINISHED"]


def test_a_run_that_was_left_open_is_ended_by_the_next_start(tmp_path):
    tracker = _open(tmp_path, enabled=False)
    run = tracker.run("infer", "infer", resume_file=tmp_path / "tracking.json")
    run.log_metrics({"cases": 1.0}, step=0)
    run._writer.close()  # as a kill would
    with _open(tmp_path) as tracker, tracker.run("infer", "infer", resume_file=tmp_path / "tracking.json") as run:
        assert not run.finished_before
    assert [record.kind for record in _records(tmp_path)] == ["start", "metrics", "start", "end"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("/scans/Doe"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Stopped(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (SystemExit(1), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_how_a_run_ends(tmp_path, error, status):
    with contextlib.suppress(type(error)), _open(tmp_path) as tracker, tracker.run("train", "x"):
        raise error
    (end,) = _records(tmp_path, "end")
    assert end.fields["status"] == status
    assert "Doe" not in end.fields["reason"]


def test_a_finished_run_takes_no_more(tmp_path):
    with _open(tmp_path) as tracker, tracker.run("train", "x") as run:
        run.finish("KILLED", "SIGTERM")
        run.log_metrics({"a": 1}, step=0)
    assert [r.kind for r in _records(tmp_path)] == ["start", "end"]
    assert _records(tmp_path)[-1].fields["status"] == "KILLED"


def test_the_same_stage_goes_on_with_its_run(tmp_path):
    resume_file = tmp_path / "runs" / "fold_0" / "tracking.json"
    for _ in range(2):
        with _open(tmp_path) as tracker, tracker.run("train", "train fold 0", resume_file=resume_file) as run:
            run.begin()
    assert [r.kind for r in _records(tmp_path)] == ["start", "end", "start", "end"]
    first, second = _records(tmp_path, "start")
    assert first.fields["key"] == second.fields["key"] == read_json(resume_file)["key"]
    assert first.fields["parent"]["key"] == second.fields["parent"]["key"]


def test_a_stage_folder_in_use_gets_a_run_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_module, "_LOCK_ATTEMPTS", 2)
    resume_file = tmp_path / "tracking.json"
    with _open(tmp_path) as tracker:
        one, two = (tracker.run("train", "x", resume_file=resume_file) for _ in range(2))
        assert one.key != two.key
        one.finish("FINISHED")
        two.finish("FINISHED")


def test_a_known_id_is_told_again(tmp_path):
    resume_file = tmp_path / "tracking.json"
    resume_file.write_text(json.dumps({"format": 1, "key": "k-1", "runs": {"local": "abc"}}))
    with _open(tmp_path) as tracker, tracker.run("train", "x", resume_file=resume_file) as run:
        assert run.key == "k-1"
    assert _records(tmp_path, "start")[0].fields["known"] == {"local": "abc"}


def test_a_run_below_another_run(tmp_path):
    with _open(tmp_path) as tracker, tracker.run("train", "all folds") as parent:
        child = tracker.run("train", "fold 0", parent=parent)
        child.finish("FINISHED")
    starts = {f.name: next(read_records(f)).fields["parent"] for f in spool_folders(tmp_path / "tracking")}
    assert starts[child.key] == {"key": parent.key, "spooled": True}


def test_pictures_are_left_out_unless_allowed(tmp_path):
    picture = np.zeros((4, 5, 3), dtype=np.uint8)
    for images in (False, True):
        work = tmp_path / str(images)
        with _open(work, images=images) as tracker, tracker.run("train", "x") as run:
            run.log_image(picture, "overlay", step=1)
        assert bool(_records(work, "image")) is images


def test_tables_hold_null_for_what_is_missing(tmp_path):
    rows = [{"case": "a", "dice": np.float64(0.5), "n": np.int64(3)}, {"case": "b", "dice": float("nan")}]
    with _open(tmp_path) as tracker, tracker.run("evaluate", "x") as run:
        run.log_table(rows, "scores/cases")
    (table,) = _records(tmp_path, "table")
    (folder,) = spool_folders(tmp_path / "tracking")
    content = json.loads((folder / "blobs" / table.fields["blob"]).read_text())
    assert content == {"columns": ["case", "dice", "n"], "data": [["a", 0.5, 3], ["b", None, None]]}


def test_faults_are_said_once_and_stop_nothing(tmp_path, caplog):
    with _open(tmp_path, images=True) as tracker, tracker.run("train", "x") as run:
        run.log_metrics({"a": "no number"}, step=0)
        run.log_image(np.zeros((4, 4)), "float", step=0)
        run.log_folder(tmp_path.parent, "outside")
        run.log_file(tmp_path / "missing.json")
        run.log_file(tmp_path / "scan.nii")
        run.log_figure_png(b"no png", "x")
        run.log_metrics({"a": 1}, step=1)
    assert [r.kind for r in _records(tmp_path)] == ["start", "metrics", "end"]
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_what_is_only_made_to_be_recorded_stops_nothing(tmp_path, caplog):
    with _open(tmp_path) as tracker, tracker.run("train", "x") as run:
        with run.best_effort("the pictures"):
            raise ValueError("no picture")
        with pytest.raises(Stopped, match="now"), run.best_effort("the pictures"):
            raise Stopped("now")  # a signal is none of its business
        run.log_metrics({"a": 1.0}, step=0)
    assert "the pictures was not recorded (ValueError: no picture); the run goes on" in caplog.text
    assert _records(tmp_path, "end")[0].fields["status"] == "FINISHED"


def test_a_work_folder_that_cant_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "tracking").write_text("a file where the folder should be")
    with _open(tmp_path) as tracker, tracker.run("train", "x") as run:
        run.log_metrics({"a": 1}, step=1)
    assert "run x is not recorded" in caplog.text


def test_a_disk_that_fills_up_stops_nothing(tmp_path, caplog, monkeypatch):
    with _open(tmp_path) as tracker, tracker.run("train", "x") as run, monkeypatch.context() as context:
        context.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        run.log_metrics({"a": 1}, step=0)
        run.log_metrics({"a": 1}, step=1)
    assert [r.kind for r in _records(tmp_path)] == ["start", "end"]
    assert caplog.text.count("was not recorded") == 1


def test_without_mlflow_the_spool_is_the_log(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("MEDSEG_TRACKING")
    monkeypatch.setattr(tracker_module, "mlflow_is_installed", lambda: False)
    caplog.set_level(logging.INFO)
    with _open(tmp_path) as tracker, tracker.run("train", "x") as run:
        run.log_metrics({"a": 1}, step=0)
    assert len(_records(tmp_path)) == 3
    assert caplog.text.count("mlflow is not installed") == 1


def test_switched_off_starts_no_sender(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDSEG_TRACKING")
    monkeypatch.setattr(tracker_module.SenderProcess, "start", lambda work: pytest.fail("a sender was started"))
    with _open(tmp_path, enabled=False) as tracker, tracker.run("train", "x"):
        pass
    assert len(_records(tmp_path)) == 2


def test_nothing_private_reaches_the_spool(tmp_path):
    config = {"data": {"manifest": "/scans/MARKER/x.json"}}
    tracker = open_tracker(TrackingSection(), work=tmp_path, experiment="demo", config=config)
    with (
        tracker,
        tracker.run("train", "/scans/MARKER", params={"/scans/MARKER": "x"}, tags={"t": "/scans/MARKER"}) as run,
    ):
        run.log_metrics({"/scans/MARKER/dice": 1}, step=0)
        run.log_table([{"/scans/MARKER": "/scans/MARKER"}], "/scans/MARKER")
        run.log_dataset("/scans/MARKER", "0" * 64, [{"case": "/scans/MARKER"}])
    for path in (tmp_path / "tracking").rglob("*"):
        assert "MARKER" not in path.name
        assert not path.is_file() or b"MARKER" not in path.read_bytes()
