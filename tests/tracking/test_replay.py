import numpy as np
import pytest

from medseg.config.sections import TrackingSection
from medseg.durable import sha256_bytes, sha256_file
from medseg.tracking.address import StoreAddress, read_sent
from medseg.tracking.pending import count_pending
from medseg.tracking.replay import Replay
from medseg.tracking.spool import SPOOL_NAME, SpoolWriter, spool_folders
from medseg.tracking.store import DatasetNote, StoreAwayError
from medseg.tracking.tracker import open_tracker

MODEL_SHA256 = sha256_bytes(b"{}")
ADDRESS = StoreAddress("fake:", "fake", embedded=False)


def _open(work, config=None):
    return open_tracker(TrackingSection(images=True), work=work, experiment="demo", config=config or {"a": 1})


def _log_all(work, *, resume=False):
    """A run with a record of every kind."""
    model = work / "model"
    model.mkdir(exist_ok=True)
    (model / "model.json").write_text("{}")
    (model / "LICENSE").write_text("Mine.")
    (model / "scan.nii.gz").write_text("a scan")
    resume_file = work / "tracking.json" if resume else None
    with _open(work) as tracker, tracker.run("train", "fold 0", tags={"fold": "0"}, resume_file=resume_file) as run:
        run.log_dataset("demo", "d" * 64, [{"case": "a"}])
        for step in range(3):
            run.log_metrics({"train/loss": 1 / (step + 1), "nan": float("nan")}, step=step)
        run.log_params({"steps": 100})
        run.set_tags({"precision": "bf16"})
        run.log_image(np.zeros((8, 8, 3), dtype=np.uint8), "overlay/a", step=2)
        run.log_figure_png(b"\x89PNG...", "curves")
        run.log_table([{"case": "a", "dice": 0.5}], "scores/cases")
        run.log_file(model / "model.json", "notes/model.json")
        run.log_folder(model, "folder")
        run.log_note("Scores of **demo**.\n\n| class |")
        run.log_model(model, registered_as="liver", tags={"fold": "0"}, description="A model.")
        run.log_headline({"testing/dice": 0.5}, note="All of it.")
        for name in ("cases.csv", "metrics.json"):
            (work / name).write_text(name)
        run.log_scores(work, model_sha256=sha256_file(model / "model.json"), of="testing", tags={"testing.dice": "0.5"})
    (folder,) = spool_folders(work / "tracking")
    return folder


def _replay(store, work, folder):
    return Replay(store, ADDRESS, work=work, folder=folder)


def test_everything_arrives(tmp_path, store):
    folder = _log_all(tmp_path)
    assert _replay(store, tmp_path, folder).send() == 20
    run, parent = store.run("fold 0"), store.run("demo")
    assert {(name, value, step) for name, value, _, step in run["metrics"]} == {
        ("train/loss", "1.0", 0), ("train/loss", "0.5", 1), ("train/loss", repr(1 / 3), 2),
        ("nan", "nan", 0), ("nan", "nan", 1), ("nan", "nan", 2),
    }  # fmt: skip
    assert run["params"] == {"a": "1", "steps": "100"}
    assert parent["params"] == {"a": "1"}
    assert run["tags"] | {"precision": "bf16", "fold": "0"} == run["tags"]
    assert store.runs[run["tags"]["mlflow.parentRunId"]] is parent
    assert run["inputs"] == {DatasetNote("demo", "d" * 32, "training", 1)}
    assert run["tables"] == {"datasets/demo.json", "scores/cases.json"}
    picture, preview = sorted(name for name in run["files"] if name.startswith("images/overlay~a+step+2+"))[::-1]
    assert picture.endswith(".png")
    assert preview.endswith("+compressed.webp")
    named = {name for name in run["files"] if not name.startswith("images/")}
    assert named == {
        "datasets/demo.json",
        "figures/curves.png",
        "scores/cases.json",
        "notes/model.json",
        "folder/model.json",
        "model/model.json",
        "model/MLmodel",
        "folder/LICENSE",
        "model/LICENSE",
        f"scores/{MODEL_SHA256[:16]}/cases.csv",
        f"scores/{MODEL_SHA256[:16]}/metrics.json",
    }
    assert run["tags"]["mlflow.note.content"] == "Scores of **demo**.\n\n| class |"
    assert run["tags"][f"medseg.scores.{MODEL_SHA256[:16]}"] == "testing"
    assert parent["tags"]["mlflow.note.content"] == "All of it."
    assert parent["tags"]["medseg.stage"] == "experiment"
    assert {(name, value) for name, value, _, _ in parent["metrics"]} == {("testing/dice", "0.5")}
    assert list(store.columns) == [("e0", "testing/dice")]
    assert (run["status"], parent["status"]) == ("FINISHED", "FINISHED")


def test_a_model_becomes_one_version_with_its_scores(tmp_path, store):
    folder = _log_all(tmp_path)
    for _ in range(2):
        _replay(store, tmp_path, folder).send()
        (folder / "sent-fake.json").unlink()
    ((name, version),) = store.versions.items()
    assert name == ("liver", MODEL_SHA256)
    assert version["tags"] == {"fold": "0", "testing.dice": "0.5", "medseg.scores_run": version["run"]}
    assert store.aliases == {("liver", "candidate"): 1}


def test_a_model_folder_that_holds_another_model_by_then_is_passed_over(tmp_path, store, caplog):
    folder = _log_all(tmp_path)
    (tmp_path / "model" / "model.json").write_text('{"trained": "further"}')
    _replay(store, tmp_path, folder).send()
    assert store.versions == {}
    assert "model/model.json" not in store.run("fold 0")["files"]
    assert "the folder holds another model now" in caplog.text
    assert read_sent(folder, ADDRESS).refused == 1


def test_login_name_and_script_are_overwritten(tmp_path, store):
    _replay(store, tmp_path, _log_all(tmp_path)).send()
    for run in store.runs.values():
        assert run["tags"]["mlflow.user"] == "medseg"
        assert run["tags"]["mlflow.source.name"].startswith("medseg ")


def test_nothing_is_sent_twice(tmp_path, store):
    folder = _log_all(tmp_path)
    replay = _replay(store, tmp_path, folder)
    replay.send()
    calls = len(store.calls)
    assert replay.send() == 0
    assert _replay(store, tmp_path, folder).send() == 0
    assert len(store.calls) == calls


@pytest.mark.parametrize("torn", [False, True])
def test_a_failure_at_any_call_changes_nothing_in_the_end(tmp_path, new_store, torn):
    """Fails the n-th call for every n, before or after its effect, with a new sender afterwards, as after a kill."""
    work = tmp_path / "work"
    work.mkdir()
    folder = _log_all(work)
    whole = new_store()
    _replay(whole, work, folder).send()
    for n in range(1, len(whole.calls) + 1):
        (folder / "sent-fake.json").unlink()
        store = new_store()
        store.fail_at, store.torn = n, torn
        with pytest.raises(StoreAwayError, match="away"):
            _replay(store, work, folder).send()
        _replay(store, work, folder).send()
        assert store.content() == whole.content(), n


def test_a_lost_note_sends_again_without_effect(tmp_path, store):
    folder = _log_all(tmp_path)
    _replay(store, tmp_path, folder).send()
    before = store.content()
    (folder / "sent-fake.json").unlink()
    _replay(store, tmp_path, folder).send()
    assert store.content() == before


def test_a_store_made_anew_gets_everything(tmp_path, store, new_store):
    folder = _log_all(tmp_path)
    _replay(store, tmp_path, folder).send()
    with _open(tmp_path) as tracker, tracker.run("train", "other"):
        pass
    writer = SpoolWriter(folder)
    writer.append("metrics", values={"late": 1.0}, step=9)
    writer.close()
    fresh = new_store()
    _replay(fresh, tmp_path, folder).send()
    assert len(fresh.run("fold 0")["metrics"]) == 7


def test_another_store_gets_everything_too(tmp_path, store, new_store):
    folder = _log_all(tmp_path)
    _replay(store, tmp_path, folder).send()
    other = new_store()
    Replay(other, StoreAddress("other:", "other", embedded=False), work=tmp_path, folder=folder).send()
    assert other.content() == store.content()


def test_a_resumed_run_is_reopened_and_its_parent_not_made_twice(tmp_path, store):
    folder = _log_all(tmp_path, resume=True)
    _replay(store, tmp_path, folder).send()
    _log_all(tmp_path, resume=True)
    _replay(store, tmp_path, folder).send()
    assert len(store.runs) == 2
    assert store.run("fold 0")["statuses"] == ["RUNNING", "FINISHED", "RUNNING", "FINISHED"]
    assert store.run("demo")["status"] == "FINISHED"


def test_the_parent_runs_as_long_as_a_run_below_it(tmp_path, store):
    with _open(tmp_path) as tracker:
        one, two = tracker.run("train", "one"), tracker.run("train", "two")
        one.finish("FINISHED")
        folders = {folder.name: folder for folder in spool_folders(tmp_path / "tracking")}
        for run in (one, two):
            _replay(store, tmp_path, folders[run.key]).send()
        assert store.run("demo")["status"] == "RUNNING"
        two.finish("FAILED", "ValueError")
        _replay(store, tmp_path, folders[two.key]).send()
    assert store.run("demo")["status"] == "FAILED"
    assert store.run("two")["tags"]["medseg.ended_by"] == "ValueError"


def test_a_changed_param_becomes_a_tag(tmp_path, store):
    for value in (1, 2):
        tracker = _open(tmp_path, {"a": value})
        with tracker, tracker.run("train", "x", resume_file=tmp_path / "tracking.json") as run:
            run.begin()
    (folder,) = spool_folders(tmp_path / "tracking")
    _replay(store, tmp_path, folder).send()
    assert store.run("x")["params"] == {"a": "1"}
    assert store.run("x")["tags"]["changed.a"] == "2"


def test_a_refused_metric_takes_no_other_with_it(tmp_path, store):
    store.refused_names = {"bad"}
    with _open(tmp_path) as tracker, tracker.run("train", "x") as run:
        for step in range(5):
            run.log_metrics({"bad" if step == 2 else "good": step}, step=step)
    (folder,) = spool_folders(tmp_path / "tracking")
    _replay(store, tmp_path, folder).send()
    assert {step for name, _, _, step in store.run("x")["metrics"]} == {0, 1, 3, 4}
    assert read_sent(folder, ADDRESS).refused == 1
    assert count_pending(tmp_path, ADDRESS).records == 0
    assert store.run("x")["status"] == "FINISHED"


def test_metrics_go_in_batches_of_a_thousand(tmp_path, store):
    with _open(tmp_path) as tracker, tracker.run("train", "x") as run:
        for step in range(2500):
            run.log_metrics({"a": step}, step=step)
        run.log_metrics({f"m{k}": k for k in range(1500)}, step=0)
    (folder,) = spool_folders(tmp_path / "tracking")
    _replay(store, tmp_path, folder).send()
    assert len(store.run("x")["metrics"]) == 4000
    assert store.calls.count("log_metrics") == 5


def test_damaged_lines_and_blobs_are_passed_over(tmp_path, store):
    with _open(tmp_path) as tracker, tracker.run("evaluate", "x") as run:
        run.log_table([{"a": 1}], "damaged")
        (folder,) = spool_folders(tmp_path / "tracking")
        with (folder / SPOOL_NAME).open("a") as stream:
            stream.write("no record\n" + '{"kind": "metrics", "values": 3}\n' + '{"kind": "new in version 9"}\n')
        run.log_metrics({"a": 1}, step=0)
    for blob in (folder / "blobs").iterdir():
        blob.write_bytes(b"other bytes")
    _replay(store, tmp_path, folder).send()
    assert store.run("x")["files"] == {}
    assert len(store.run("x")["metrics"]) == 1
    assert read_sent(folder, ADDRESS).refused == 4


def test_a_deleted_run_is_left_alone(tmp_path, store):
    folder = _log_all(tmp_path)
    _replay(store, tmp_path, folder).send()
    store.run("fold 0")["active"] = False
    before = store.content()
    writer = SpoolWriter(folder)
    writer.append("metrics", values={"late": 1.0}, step=9)
    writer.close()
    _replay(store, tmp_path, folder).send()
    assert store.content() == before
    assert count_pending(tmp_path, ADDRESS).records == 0


def test_a_stage_whose_run_was_deleted_gets_a_new_one(tmp_path, store):
    folder = _log_all(tmp_path, resume=True)
    _replay(store, tmp_path, folder).send()
    store.run("fold 0")["active"] = False
    _log_all(tmp_path, resume=True)
    _replay(store, tmp_path, folder).send()
    assert [(r["active"], r["status"]) for r in store.runs.values() if r["name"] == "fold 0"] == [
        (False, "FINISHED"),
        (True, "FINISHED"),
    ]


def test_a_spool_shorter_than_the_note_begins_anew(tmp_path, store):
    folder = _log_all(tmp_path)
    _replay(store, tmp_path, folder).send()
    before = store.content()
    lines = (folder / SPOOL_NAME).read_bytes().splitlines(keepends=True)
    (folder / SPOOL_NAME).write_bytes(b"".join(lines[:4]))
    _replay(store, tmp_path, folder).send()
    assert store.content()[0]["r1"]["metrics"] == before[0]["r1"]["metrics"]
    assert read_sent(folder, ADDRESS).offset == sum(map(len, lines[:4]))


def test_a_folder_outside_the_work_folder_is_refused(tmp_path, store):
    work = tmp_path / "work"
    work.mkdir()
    folder = _log_all(work)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "x.json").write_text("{}")
    writer = SpoolWriter(folder)
    writer.append("folder", name="x", path="../secret")
    writer.close()
    _replay(store, work, folder).send()
    assert "x/x.json" not in store.run("fold 0")["files"]
