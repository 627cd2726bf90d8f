import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pool_tasks as tasks
import pytest

from medseg.errors import EnvironmentFault
from medseg.runner import pool
from medseg.runner.resources import available_cores


def outcomes(task, items, **options):
    return {outcome.case_id: outcome for outcome in pool.run_cases(task, items, **options)}


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_every_item_gives_one_outcome(processes):
    items = [(f"c{k}", k) for k in range(7)]
    found = outcomes(tasks.double, items, processes=processes)
    assert {case_id: o.value for case_id, o in found.items()} == {f"c{k}": 2 * k for k in range(7)}
    assert {o.kind for o in found.values()} == {"ok"}
    assert all(o.exit_code == 0 and o.error is None and o.seconds >= 0 for o in found.values())


@pytest.mark.parametrize("processes", [1, 3])
def test_no_items_no_outcomes(processes):
    assert outcomes(tasks.double, [], processes=processes) == {}


def test_one_process_is_this_process():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    assert outcomes(tasks.process_facts, [("a", 0)], processes=1)["a"].value[0] == os.getpid()


def test_workers_share_the_cores():
    pid, threads = outcomes(tasks.process_facts, [("a", 0), ("b", 0)], processes=2)["a"].value
    assert pid != os.getpid()
    assert int(threads) == max(1, available_cores() // 2)


@pytest.mark.parametrize("processes", [1, 2])
def test_refusals_and_failures_cost_one_case(processes):
    items = [("a", ("refuse", 0)), ("b", ("", 5)), ("c", ("raise", 0)), ("d", ("disk", 0)), ("e", ("", 6))]
    found = outcomes(tasks.misbehave, items, processes=processes)
    assert (found["b"].value, found["e"].value) == (5, 6)
    assert found["a"].kind == "refused"
    assert found["a"].error == "scan_7: has 0 slices, expected at least 1; export it again"
    assert found["a"].exit_code == 3
    assert found["c"].kind == "failed"
    assert found["c"].error == "c: stopped by ValueError; --debug shows where"
    assert found["d"].error == "d: stopped by OSError (No space left on device); --debug shows where"
    assert found["d"].exit_code == 1


def test_traceback_is_logged_at_debug_level_only(caplog):
    with caplog.at_level(logging.DEBUG, "medseg.runner.pool"):
        outcomes(tasks.misbehave, [("c", ("raise", 0))], processes=1)
    assert [r.levelno for r in caplog.records if "ValueError" in r.getMessage()] == [logging.DEBUG]


def test_killed_worker_fails_its_case_only_and_is_noticed_at_once():
    items = [("bad", ("kill", 0))] + [(f"c{k}", ("", k)) for k in range(5)]
    began = time.monotonic()
    found = outcomes(tasks.misbehave, items, processes=2)
    assert time.monotonic() - began < 60
    assert found["bad"].kind == "died"
    assert found["bad"].error == "bad: worker killed twice (out of memory?); give it more memory"
    assert [found[f"c{k}"].value for k in range(5)] == [0, 1, 2, 3, 4]


def test_a_case_whose_worker_died_once_is_tried_again(tmp_path, caplog):
    found = outcomes(tasks.kill_once, [("a", tmp_path / "marker")], processes=2)
    assert found["a"].value == "done"
    assert "a: its worker was killed; it is tried once more" in caplog.text


def test_all_workers_killed():
    found = outcomes(tasks.misbehave, [(f"c{k}", ("kill", 0)) for k in range(3)], processes=2)
    assert {o.kind for o in found.values()} == {"died"}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_hang_is_stopped_at_the_limit(processes):
    items = [("slow", ("hang", 0)), ("a", ("", 1)), ("b", ("", 2))]
    found = outcomes(tasks.misbehave, items, processes=processes, timeout_seconds=2.0)
    assert found["slow"].kind == "timeout"
    assert found["slow"].error == "slow: took longer than 2 s and was stopped; raise the limit or look at the file"
    assert found["slow"].seconds >= 2.0
    assert (found["a"].value, found["b"].value) == (1, 2)


def test_results_come_as_they_end(tmp_path):
    items = [("waits", ("wait", tmp_path / "marker")), ("makes it", ("make", tmp_path / "marker"))]
    order = [outcome.case_id for outcome in pool.run_cases(tasks.wait_or_make, items, processes=2)]
    assert order == ["makes it", "waits"]


def test_values_do_not_depend_on_order_or_processes():
    items = [(f"c{k}", k) for k in range(9)]
    wanted = {case_id: o.value for case_id, o in outcomes(tasks.double, items, processes=1).items()}
    assert {i: o.value for i, o in outcomes(tasks.double, items[::-1], processes=2).items()} == wanted


def test_large_results_pass_and_slow_callers_lose_nothing():
    sizes = [o.value for o in pool.run_cases(tasks.big, [(str(k), 3_000_000) for k in range(4)], processes=2)]
    assert [len(value) for value in sizes] == [3_000_000] * 4


@pytest.mark.slow
def test_a_slow_caller_does_not_make_cases_overdue():
    found = []
    for outcome in pool.run_cases(tasks.double, [(str(k), k) for k in range(4)], processes=2, timeout_seconds=2.0):
        time.sleep(0.0 if found else 2.5)
        found.append(outcome.kind)
    assert found == ["ok"] * 4


def test_result_that_cannot_be_sent_fails_its_case():
    assert outcomes(tasks.unpicklable, [("a", 0), ("b", 0)], processes=2)["a"].kind == "failed"


def test_task_that_cannot_be_sent_is_our_own_fault():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        outcomes(lambda item: item, [("a", 0), ("b", 0)], processes=2)


def test_worker_logs_reach_this_process(caplog):
    outcomes(tasks.log_a_warning, [("a", 0), ("b", 0)], processes=2)
    assert sorted(r.getMessage() for r in caplog.records if r.name == "medseg.somewhere") == [
        "a: spacing is odd",
        "b: spacing is odd",
    ]


def test_workers_that_never_start_are_an_environment_fault(monkeypatch):
    monkeypatch.setattr(pool.WorkerProcess, "__init__", _broken_worker)
    with pytest.raises(EnvironmentFault, match="end before they begin"):
        outcomes(tasks.double, [("a", 0), ("b", 1)], processes=2)


def _broken_worker(self, context, payload, threads, *, direct_child):
    self.pipe, theirs = context.Pipe()
    self.process = context.Process(target=sys.exit, args=(9,), daemon=True)
    self.process.start()
    theirs.close()
    self.ready, self.job, self.since = False, None, time.monotonic()


def test_task_of_the_script_itself_is_refused(monkeypatch):
    def task(item):
        return item

    monkeypatch.setattr(task, "__module__", "__main__")
    monkeypatch.setattr(task, "__qualname__", "task")
    monkeypatch.setattr(sys.modules["__main__"], "task", task, raising=False)
    with pytest.raises(RuntimeError, match="can't load the task: stopped by AttributeError"):
        outcomes(task, [("a", 0), ("b", 1)], processes=2)


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_an_unguarded_script_is_not_run_again(tmp_path, start):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(tasks.__file__).parent)!r})\n"
        "import pool_tasks\nfrom medseg.runner import run_cases\n"
        f"found = run_cases(pool_tasks.double, [('a', 1), ('b', 2)], processes=2, start={start!r})\n"
        "print(sorted(outcome.value for outcome in found))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[2, 4]\n", "")


def test_closing_early_stops_workers_and_leaves_no_temporary(tmp_path):
    items = [("a", tmp_path / "a"), ("b", tmp_path / "b")]
    running = pool._Pool(tasks.leave_temporary, 2, None, "spawn")
    running._waiting.extend(pool.Job(*item) for item in items)
    while not all(any(folder.glob(".tmp-*")) for _, folder in items):
        running._hand_out()
        time.sleep(0.05)
        for worker in running._workers:
            if not worker.ready and worker.pipe.poll():
                running._settle(worker, worker.reply())
    processes = [worker.process.pid for worker in running._workers]
    running.close()
    assert not any(alive(pid) for pid in processes)
    assert [list(folder.iterdir()) for _, folder in items] == [[], []]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


_PARENT = """
import sys
sys.path.insert(0, {folder!r})
if __name__ == "__main__":
    import pool_tasks
    from medseg.runner import pool
    running = pool._Pool(pool_tasks.sleep_seconds, 2, None, {start!r})
    began = set()
    def report():
        for worker in running._workers:
            if worker.process.pid not in began:
                began.add(worker.process.pid)
                print(worker.process.pid, flush=True)
    original = running._hand_out
    running._hand_out = lambda: (original(), report())
    for outcome in running.run([("a", 600.0), ("b", 600.0)]):
        pass
"""


@pytest.mark.parametrize(("start", "wait_seconds"), [("spawn", 0.0), ("spawn", 1.5), ("forkserver", 0.5)])
def test_no_orphans_when_the_parent_is_killed(tmp_path, start, wait_seconds):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT.format(folder=str(Path(tasks.__file__).parent), start=start))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        workers = [int(parent.stdout.readline()), int(parent.stdout.readline())]
        time.sleep(wait_seconds)
        assert all(alive(pid) for pid in workers)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 8
        while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(alive(pid) for pid in workers)
