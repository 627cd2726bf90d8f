import json
import os
import socket
import subprocess
import sys

import pytest

from medseg.durable import FolderLock
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
