"""Killed at any moment and started again, ``prepare`` ends in the same bytes and leaves no process behind."""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.durable import sha256_file
from tests.synthetic import write_dataset

START = """
import sys
from pathlib import Path
from medseg.config.sections import PrepareSection
from medseg.manifest import load_manifest
from medseg.preparation.stage import run_prepare
if __name__ == "__main__":
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    report = run_prepare(PrepareSection(), load_manifest(data / "dataset.json"), data_root=data, output=output, processes=2)
    print(report.read, report.written)
"""


def start(script, data, output) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, script, data, output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def contents(output) -> dict[str, str]:
    return {p.relative_to(output).as_posix(): sha256_file(p) for p in sorted(output.rglob("*")) if p.is_file()}


def group_is_gone(group: int) -> bool:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, member_of = status.read_text().rsplit(")", 1)[1].split()[:3]
            if int(member_of) == group and state != "Z":
                return False
    return True


def progress(output) -> tuple[int, int]:
    """(cases whose facts are kept, cases stored); a line that a kill cut has no end."""
    file = output / "facts.jsonl"
    return file.read_text().count("\n") if file.exists() else 0, len(list(output.glob("cases/case_*.bin")))


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_killed_and_started_again(tmp_path, whole_group):
    data, script, count = tmp_path / "data", tmp_path / "start.py", 24
    write_dataset(data, cases=count)
    script.write_text(START)
    out, err = start(script, data, tmp_path / "undisturbed" / "prepared").communicate(timeout=200)
    assert out.split() == [str(count), str(count)], err
    seed = random.SystemRandom().randrange(10**6)
    logging.getLogger(__name__).info("seed %d", seed)
    rng, output = random.Random(seed), tmp_path / "killed" / "prepared"
    # In the first second, while cases are checked (twice), while they are stored (twice).
    looked_at, stored = (sorted(rng.sample(range(1, count), 2)) for _ in range(2))
    for moment in [(0, 0), *((n, 0) for n in looked_at), *((count, n) for n in stored)]:
        before = progress(output)
        process = start(script, data, output)
        time.sleep(rng.uniform(0, 1) if moment == (0, 0) else rng.uniform(0, 0.02))
        while process.poll() is None and any(now < then for now, then in zip(progress(output), moment, strict=True)):
            time.sleep(0.002)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 10
        while not group_is_gone(process.pid):
            assert time.monotonic() < deadline, "a process outlived the command"
            time.sleep(0.05)
        assert all(now >= then for now, then in zip(progress(output), before, strict=True))
    known, stored_already = progress(output)
    last = start(script, data, output)
    out, err = last.communicate(timeout=200)
    assert last.returncode == 0, err
    assert [int(n) for n in out.split()] == [count - known, count - stored_already]
    assert contents(output) == contents(tmp_path / "undisturbed" / "prepared")
