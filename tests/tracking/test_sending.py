import pytest

from medseg.config.sections import TrackingSection
from medseg.tracking.abandoned import end_abandoned
from medseg.tracking.address import StoreAddress, lasting_key, read_sent, store_address, write_sent
from medseg.tracking.pending import Pending, count_pending, spool_ends
from medseg.tracking.sender import serve
from medseg.tracking.sending import Sender
from medseg.tracking.spool import SpoolWriter, read_records, spool_folders
from medseg.tracking.store import StoreAwayError
from medseg.tracking.tracker import open_tracker

ADDRESS = StoreAddress("fake:", "fake", embedded=False)


def _run(work, name="x", *, end=True, **kwargs):
    with open_tracker(TrackingSection(), work=work, experiment="demo") as tracker:
        run = tracker.run("train", name, **kwargs)
        run.log_metrics({"a": 1}, step=0)
        if end:
            run.finish("FINISHED")
        return run


def _sender(work, store):
    return Sender(work, ADDRESS, lambda: store)


class Told:
    """A control that says close at once."""

    closing = True
    orphaned = False

    def __init__(self):
        self.waits = 0

    def wait(self, seconds):
        self.waits += 1


def test_all_spools_are_sent_parents_first(tmp_path, store):
    tracker = open_tracker(TrackingSection(), work=tmp_path, experiment="demo")
    with tracker, tracker.run("train", "zz folds") as above, tracker.run("train", "aa fold", parent=above):
        pass
    sender = _sender(tmp_path, store)
    assert sender.acquire()
    assert sender.send() == 4
    assert store.runs[store.run("aa fold")["tags"]["mlflow.parentRunId"]] is store.run("zz folds")
    assert sender.has_sent(spool_ends(tmp_path))


def test_one_sender_at_a_time(tmp_path, store):
    _run(tmp_path)
    one, two = _sender(tmp_path, store), _sender(tmp_path, store)
    assert one.acquire()
    assert not two.acquire()
    one.release()
    assert two.acquire()


def test_nothing_to_send_makes_no_store(tmp_path):
    sender = Sender(tmp_path, ADDRESS, lambda: pytest.fail("connected"))
    assert sender.acquire()
    assert sender.send() == 0


def test_serving_ends_when_told_and_all_is_sent(tmp_path, store):
    _run(tmp_path)
    serve(_sender(tmp_path, store), Told(), tmp_path)
    assert count_pending(tmp_path, ADDRESS) == Pending(0, 0, 0)


def test_serving_gives_up_on_a_store_that_is_away(tmp_path):
    _run(tmp_path)

    def connect():
        raise StoreAwayError("the tracker refuses the connection")

    sender = Sender(tmp_path, ADDRESS, connect)
    serve(sender, Told(), tmp_path)
    assert count_pending(tmp_path, ADDRESS).records == 3
    assert sender.reason == "the tracker refuses the connection"


def test_a_failure_in_the_middle_is_made_good(tmp_path, store):
    _run(tmp_path)
    store.fail_at = 5
    told = Told()
    serve(_sender(tmp_path, store), told, tmp_path)
    assert told.waits == 1
    assert store.run("x")["status"] == "FINISHED"


def test_a_record_that_always_fails_is_passed_over_in_the_end(tmp_path, store, monkeypatch):
    _run(tmp_path)
    monkeypatch.setattr(store, "log_metrics", lambda *_: (_ for _ in ()).throw(StoreAwayError("answers 500")))
    sender = _sender(tmp_path, store)
    sender.acquire()
    for _ in range(5):
        with pytest.raises(StoreAwayError, match="answers 500"):
            sender.send()
    sender.send()
    assert store.run("x")["status"] == "FINISHED"
    assert count_pending(tmp_path, ADDRESS) == Pending(0, 0, 1)


def test_a_full_disk_under_the_sender_is_told_and_tried_again(tmp_path, store, monkeypatch):
    _run(tmp_path)
    sender = _sender(tmp_path, store)
    sender.acquire()
    with monkeypatch.context() as context:
        context.setattr("medseg.tracking.replay.write_sent", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        with pytest.raises(StoreAwayError, match="the work folder: No space"):
            sender.send()
    sender.send()
    assert store.run("x")["status"] == "FINISHED"


def test_runs_of_killed_processes_are_ended(tmp_path, store):
    run = _run(tmp_path, end=False)
    sender = _sender(tmp_path, store)
    assert sender.acquire()
    sender.send()
    assert store.run("x")["status"] == "RUNNING"  # its process (this one) lives
    sender.release()
    run._writer.close()  # as a kill does
    assert sender.acquire()
    sender.send()
    assert store.run("x")["status"] == "KILLED"
    assert store.run("demo")["status"] == "KILLED"
    assert end_abandoned(tmp_path / "tracking") == 0


def test_a_killed_run_that_began_again_is_left_alone(tmp_path):
    resume_file = tmp_path / "tracking.json"
    _run(tmp_path, end=False, resume_file=resume_file)._writer.close()
    again = _run(tmp_path, end=False, resume_file=resume_file)
    assert end_abandoned(tmp_path / "tracking") == 0
    again.finish("FINISHED")
    (folder,) = spool_folders(tmp_path / "tracking")
    assert [r.kind for r in read_records(folder)] == ["start", "metrics", "start", "metrics", "end"]


def test_notes_come_back(tmp_path):
    assert read_sent(tmp_path, ADDRESS).offset == 0
    sent = read_sent(tmp_path, ADDRESS).__class__(12, "r1", 2)
    write_sent(tmp_path, ADDRESS, sent)
    assert read_sent(tmp_path, ADDRESS) == sent
    assert read_sent(tmp_path, StoreAddress("other:", "other", embedded=False)).offset == 0
    (tmp_path / "sent-fake.json").write_text("{")
    assert read_sent(tmp_path, ADDRESS).offset == 0


def test_a_key_lasts(tmp_path):
    path = tmp_path / "a" / "tracking.json"
    key = lasting_key(path, "train")
    assert key.startswith("train-")
    assert lasting_key(path, "other") == key
    assert [p.name for p in path.parent.iterdir()] == ["tracking.json"]


def test_the_store_is_the_work_folders_own_or_the_environments(tmp_path):
    own = store_address(tmp_path, {})
    assert (own.code, own.embedded, own.kind) == ("local", True, "embedded sqlite")
    assert own.uri == f"sqlite:///{tmp_path}/mlflow.db"
    server = store_address(tmp_path, {"MLFLOW_TRACKING_URI": "http://me:secret@host:5000/"})
    assert (server.embedded, server.kind) == (False, "http server")
    assert server.code == store_address(tmp_path, {"MLFLOW_TRACKING_URI": "http://host:5000"}).code
    assert store_address(tmp_path, {"MLFLOW_TRACKING_URI": "postgresql+psycopg://x/y"}).kind == "postgresql"


def test_pending_counts(tmp_path):
    assert count_pending(tmp_path, ADDRESS) == Pending(0, 0, 0)
    _run(tmp_path)
    SpoolWriter(tmp_path / "tracking" / "empty").close()
    assert count_pending(tmp_path, ADDRESS) == Pending(3, 1, 0)
