"""Folds as processes: what they are called with, and how they are waited for and stopped."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from medseg.crossvalidation import children
from medseg.crossvalidation.children import ChildRun, crossval_run, fold_run, parse_folds, run_children
from medseg.errors import UsageError

UNREGISTERED = ("--set", "tracking.registered_model=null")
GIVEN = [
    "--config",
    "c.yaml",
    "--set",
    "a.b=1",
    "--fold",
    "all",
    "--work",
    "w",
    "--parallel=2",
    "--extend",
    "--verbose",
]


def test_a_folds_command_is_the_same_command_with_another_fold():
    kept = ("--config", "c.yaml", "--set", "a.b=1", "--work", "w", "--extend", "--verbose")
    assert fold_run(GIVEN, 3) == ChildRun(
        name="fold_3", arguments=("train", *kept, *UNREGISTERED, "--set", "data.fold=3")
    )
    assert fold_run(["--fold=0,2", "--parallel", "2", "--fresh"], 2).arguments == (
        "train",
        "--fresh",
        *UNREGISTERED,
        "--set",
        "data.fold=2",
    )


def test_crossval_gets_what_it_shares_with_train():
    expected = ("crossval", "--config", "c.yaml", "--work", "w", "--set", "a.b=1", "--verbose")
    assert crossval_run(GIVEN).arguments == expected


def test_folds_are_parsed():
    assert parse_folds("all", [0, 1, 2]) == (0, 1, 2)
    assert parse_folds("2, 0", [0, 1, 2]) == (2, 0)
    with pytest.raises(UsageError, match="is 'every', expected all, a number"):
        parse_folds("every", [0, 1])
    with pytest.raises(UsageError, match="names fold 7, the manifest's folds are 0, 1"):
        parse_folds("0,7", [0, 1])
    with pytest.raises(UsageError, match="expected each fold once"):
        parse_folds("1,1", [0, 1])
    with pytest.raises(UsageError, match="the manifest has 1 folds"):
        parse_folds("all", [0])


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Children that run ``tmp_path/child.py`` in place of medseg; gives a function that writes it."""
    script = tmp_path / "child.py"
    monkeypatch.setattr(children, "COMMAND", (sys.executable, "-S", str(script)))

    def write(text):
        script.write_text("import os, signal, sys, time\n" + textwrap.dedent(text))

    return write


def runs(*arguments):
    return [ChildRun(name=text, arguments=(text,)) for text in arguments]


def test_all_are_run_and_the_first_failure_starts_no_other(scripted, tmp_path):
    scripted(f"open({str(tmp_path)!r} + '/ran_' + sys.argv[1], 'w'); sys.exit(int(sys.argv[1]))")
    assert run_children([*runs("0"), ChildRun(name="again", arguments=("0",))]) == 0
    assert run_children(runs("0", "4", "3")) == 4
    assert sorted(path.name for path in tmp_path.glob("ran_*")) == ["ran_0", "ran_4"]


def test_side_by_side_they_share_cores_and_devices_and_write_logs(scripted, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)))
    scripted("print(sys.argv[1:], os.environ['OMP_NUM_THREADS'])")
    logs = tmp_path / "logs"
    assert run_children(runs("a", "b"), parallel=2, logs=logs, devices=("cuda:0", "cuda:1")) == 0
    assert (logs / "a.txt").read_text() == "['a', '--device', 'cuda:0'] 3\n"
    assert (logs / "b.txt").read_text() == "['b', '--device', 'cuda:1'] 3\n"


def test_a_signal_is_handed_on_and_their_code_is_ours(scripted, tmp_path):
    ready = tmp_path / "ready"
    scripted(
        f"""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        open({str(ready)!r}, 'w')
        time.sleep(60)
        """
    )
    asked = lambda: signal.SIGTERM if ready.exists() else None  # noqa: E731
    assert run_children(runs("a", "b"), asked_to_stop=asked) == 143


def test_a_killed_child_is_a_fault_of_the_machine(scripted, caplog):
    scripted("os.kill(os.getpid(), signal.SIGKILL)")
    assert run_children(runs("fold_1")) == 5
    assert "fold_1: its process was killed by signal 9" in caplog.text


def test_children_are_asked_to_end_when_their_parent_is_killed(scripted, tmp_path):
    ended, ready = tmp_path / "ended", tmp_path / "ready"
    scripted(
        f"""
        def end(*_):
            open({str(ended)!r}, 'w')
            sys.exit(143)
        signal.signal(signal.SIGTERM, end)
        open({str(ready)!r}, 'w')
        time.sleep(60)
        """
    )
    code = f"from medseg.crossvalidation import children as c\nc.COMMAND = {children.COMMAND!r}\n"
    parent = subprocess.Popen([sys.executable, "-c", code + "c.run_children([c.ChildRun(name='a', arguments=())])"])
    _wait_for(ready)
    parent.kill()
    parent.wait()
    _wait_for(ended)


def _wait_for(path, seconds=60):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} never came"
        time.sleep(0.05)


def test_under_torchrun_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="is given under torchrun"):
        children.train_folds([], manifest=tmp_path / "m.json", work=tmp_path, folds="all")
