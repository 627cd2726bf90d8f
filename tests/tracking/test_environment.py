import importlib.metadata
import re

from medseg.config.sections import TrackingSection
from medseg.tracking.environment import add_environment, environment_text
from medseg.tracking.spool import read_records, spool_folders
from medseg.tracking.tracker import open_tracker


def test_packages_are_listed_by_version_without_a_path():
    text = environment_text()
    assert f"numpy=={importlib.metadata.version('numpy')}\n" in text
    assert re.search(r"^# medseg code sha256 [0-9a-f]{64}$", text, re.MULTILINE)
    assert "/" not in text
    assert "@" not in text


def test_what_an_interrupted_removal_left_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "gone-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    text = environment_text()
    assert "None" not in text
    assert "gone" not in text
    assert f"numpy=={importlib.metadata.version('numpy')}\n" in text


def test_it_is_added_once_while_the_environment_is_the_same(tmp_path):
    with open_tracker(TrackingSection(), work=tmp_path, experiment="demo") as tracker, tracker.run("train", "x") as run:
        run.begin()
        (folder,) = spool_folders(tmp_path / "tracking")
        add_environment(folder)
        add_environment(folder)
    records = [record for record in read_records(folder) if record.kind == "file"]
    assert [record.fields["name"] for record in records] == ["environment.txt"]
    assert (folder / "blobs" / records[0].fields["blob"]).read_text() == environment_text()
