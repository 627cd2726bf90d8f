import pytest

from medseg.cli import sync
from medseg.config.sections import TrackingSection
from medseg.tracking import address, process
from medseg.tracking.address import Sent, store_address, write_sent
from medseg.tracking.pending import spool_ends
from medseg.tracking.tracker import open_tracker


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MEDSEG_TRACKING", "off")
    tracker = open_tracker(TrackingSection(), work=tmp_path / "w", experiment="demo")
    with tracker, tracker.run("train", "x") as run:
        run.log_metrics({"a": 1}, step=0)
    return tmp_path / "w"


def test_what_was_sent_is_said(work, capsys, monkeypatch):
    def send(folder, *, wait_seconds):
        for spool, end in spool_ends(folder).items():
            write_sent(spool, store_address(folder), Sent(end, "r", 1))
        return ""

    monkeypatch.setattr(process, "send_now", send)
    assert sync.main(["--work", str(work)]) == 0
    out = capsys.readouterr().out
    assert "3 records of 1 run sent to the embedded sqlite" in out
    assert "1 of them were refused" in out


def test_a_tracker_that_is_away_ends_with_5(work, capsys, monkeypatch):
    monkeypatch.setattr(process, "send_now", lambda *_, wait_seconds: "the tracker refuses the connection")
    assert sync.main(["--work", str(work)]) == 5
    assert "3 records of 1 run still wait (the tracker refuses the connection)" in capsys.readouterr().err


def test_a_folder_without_records_is_refused(tmp_path, capsys):
    assert sync.main(["--work", str(tmp_path)]) == 3
    assert "has no tracking records" in capsys.readouterr().err


def test_without_mlflow_it_says_so(work, capsys, monkeypatch):
    monkeypatch.setattr(address, "mlflow_is_installed", lambda: False)
    assert sync.main(["--work", str(work)]) == 5
    assert "mlflow is not installed" in capsys.readouterr().err
