import json
import math
import os
import signal
import subprocess
import sys

import pytest

from medseg.tracking.process import sender_environment
from medseg.tracking.spool import SPOOL_NAME, SpoolWriter, number, read_records, spool_folders, writer_is_alive


def _kinds(folder, offset=0):
    return [record.kind for record in read_records(folder, offset)]


def test_records_come_back_in_order_with_their_ends(tmp_path):
    writer = SpoolWriter(tmp_path)
    writer.append("start", name="é")
    writer.append("metrics", values={"a": 1.5}, step=3)
    writer.close()
    first, second = read_records(tmp_path)
    assert (first.kind, first.fields["name"]) == ("start", "é")
    assert second.fields["values"] == {"a": 1.5}
    assert second.end == (tmp_path / SPOOL_NAME).stat().st_size
    assert _kinds(tmp_path, first.end) == ["metrics"]
    assert _kinds(tmp_path, second.end) == []


def test_a_missing_spool_has_no_records(tmp_path):
    assert _kinds(tmp_path / "none") == []
    assert spool_folders(tmp_path / "none") == ()


def test_a_line_being_written_is_left_for_later(tmp_path):
    (tmp_path / SPOOL_NAME).write_text('{"kind": "start"}\n{"kind": "met')
    assert _kinds(tmp_path) == ["start"]


@pytest.mark.parametrize("torn", ['{"kind": "met', "\x00\x00", "[1]", '"text"', "[" * 100_000])
def test_a_torn_line_is_closed_off_and_passed_as_damaged(tmp_path, torn):
    (tmp_path / SPOOL_NAME).write_text('{"kind": "start"}\n' + torn)
    writer = SpoolWriter(tmp_path)
    writer.append("end")
    writer.close()
    assert _kinds(tmp_path) == ["start", "damaged", "end"]


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    writer = SpoolWriter(tmp_path)
    assert writer_is_alive(tmp_path)
    with pytest.raises(BlockingIOError, match="unavailable"):
        SpoolWriter(tmp_path)
    writer.close()
    assert not writer_is_alive(tmp_path)
    SpoolWriter(tmp_path).close()


@pytest.mark.parametrize("value", [0.1, -3.0, math.inf, -math.inf])
def test_numbers_come_back(value):
    assert float(json.loads(json.dumps(number(value)))) == value


def test_nan_comes_back():
    assert math.isnan(float(json.loads(json.dumps(number(math.nan)))))


def test_a_full_disk_does_not_spoil_the_next_record(tmp_path, monkeypatch):
    writer = SpoolWriter(tmp_path)
    writer.append("start")
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    with pytest.raises(OSError, match="short write"):
        writer.append("metrics")
    monkeypatch.undo()
    writer.append("end")
    writer.close()
    assert _kinds(tmp_path) == ["start", "damaged", "end"]


def test_equal_blobs_are_kept_once(tmp_path):
    writer = SpoolWriter(tmp_path)
    names = {writer.put_blob(b"same", ".png"), writer.put_blob(b"same", ".png"), writer.put_blob(b"other", ".png")}
    writer.close()
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == names
    assert len(names) == 2


def test_a_kill_loses_nothing_that_was_logged(tmp_path):
    code = (
        "import sys, pathlib; from medseg.tracking.spool import SpoolWriter\n"
        "w = SpoolWriter(pathlib.Path(sys.argv[1]))\n"
        "for i in range(10**6):\n  w.append('metrics', i=i); print(i, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=sender_environment()
    )
    for line in process.stdout:
        if int(line) >= 200:
            break
    process.send_signal(signal.SIGKILL)
    said = [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    kept = [record.fields["i"] for record in read_records(tmp_path)]
    assert kept == list(range(len(kept)))
    assert len(kept) > max([200, *said])
    assert not writer_is_alive(tmp_path)
