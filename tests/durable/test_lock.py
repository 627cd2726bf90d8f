import json
import os
import socket
import subprocess
import sys
import time

import pytest

from medseg.durable import FolderLock, remove_stale_temporaries
from medseg.durable.writing import temporary_name
from medseg.errors import LockedError


def test_a_second_holder_is_told_who_holds_it(tmp_path):
    with FolderLock(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()} on host"), FolderLock(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    code = (
        "import sys, os; from pathlib import Path; from medseg.durable import FolderLock\n"
        "FolderLock(Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".lock").exists()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_bytes())["pid"] == os.getpid()


def test_the_lock_of_a_killed_process_that_nobody_waited_for_is_taken_over(tmp_path):
    code = (
        "import sys, os; from pathlib import Path; from medseg.durable import FolderLock\n"
        "FolderLock(Path(sys.argv[1])).__enter__(); (Path(sys.argv[1]) / f'.tmp-{sys.argv[2]}-{os.getpid()}-0-x').touch()\n"
        "sys.stdout.close(); os._exit(9)"
    )
    mine = temporary_name(tmp_path / "x").name.split("-")[1]
    zombie = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), mine], stdout=subprocess.PIPE)
    zombie.stdout.read()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its entry stays
    try:
        with FolderLock(tmp_path):
            assert remove_stale_temporaries(tmp_path) == 1
    finally:
        zombie.stdout.close()
        zombie.wait()


def test_a_reused_process_id_does_not_count_as_alive(tmp_path):
    with FolderLock(tmp_path):
        content = json.loads((tmp_path / ".lock").read_bytes())
    (tmp_path / ".lock").write_text(json.dumps(content | {"started": "1"}))
    with FolderLock(tmp_path):
        pass


def test_the_lock_of_another_host_is_never_taken(tmp_path):
    with FolderLock(tmp_path):
        content = json.loads((tmp_path / ".lock").read_bytes())
    (tmp_path / ".lock").write_text(json.dumps(content | {"host": socket.gethostname() + "-other"}))
    with pytest.raises(LockedError, match=r"remove \.lock in that folder"), FolderLock(tmp_path):
        pass


def test_another_hosts_lock_that_has_stopped_beating_is_taken_over(tmp_path):
    with FolderLock(tmp_path, beating=True):
        content = json.loads((tmp_path / ".lock").read_bytes())
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps(content | {"host": socket.gethostname() + "-other"}))
    with pytest.raises(LockedError, match="-other since"), FolderLock(tmp_path):
        pass
    before = lock.stat().st_mtime
    os.utime(lock, (before - 599, before - 599))
    with pytest.raises(LockedError, match="-other since"):
        FolderLock(tmp_path).refuse_if_held()
    os.utime(lock, (before - 700, before - 700))
    with FolderLock(tmp_path):
        assert json.loads(lock.read_bytes())["host"] == socket.gethostname()
    assert not list(tmp_path.iterdir())


def test_a_held_lock_beats(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.durable.lock._BEAT_SECONDS", 0.01)
    with FolderLock(tmp_path, beating=True) as held:
        os.utime(held.path, (1.0, 1.0))
        deadline = time.monotonic() + 10
        while held.path.stat().st_mtime == 1.0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held.path.stat().st_mtime > 1.0
    assert not list(tmp_path.iterdir())
