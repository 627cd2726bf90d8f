"""One bad call costs itself only, at once, whatever it does to its process."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pool_tasks as tasks
import pytest

from medseg.errors import EnvironmentFault
from medseg.runner.isolation import Isolated


@pytest.fixture
def decoder():
    made = Isolated(tasks.decode, timeout_seconds=60.0)
    yield made
    made.close()


@pytest.mark.slow
def test_a_crash_and_a_refusal_cost_their_call(decoder):
    first = decoder("a", ("", 1))
    assert (first.kind, first.value.shape, float(first.value[0, 0, 0])) == ("ok", (200, 200, 10), 1.0)
    assert decoder("b", ("refuse", 0)).error == "scan_7: has 0 slices, expected at least 1; export it again"
    bad = decoder("c", ("crash", 0))
    assert (bad.kind, bad.error) == ("died", "c: brought its reader down (SIGSEGV); check the file")
    assert float(decoder("d", ("", 4)).value.max()) == 4.0


@pytest.mark.slow
def test_a_killed_call_is_tried_again_and_a_hanging_one_ends():
    decoder = Isolated(tasks.decode, timeout_seconds=2.0)
    assert decoder("a", ("kill", 0)).kind == "died"
    began = time.monotonic()
    late = decoder("b", ("hang", 0))
    assert late.error == "b: took longer than 2 s to read and was stopped; check the file"
    assert time.monotonic() - began < 30
    assert decoder("c", ("", 2)).kind == "ok"
    decoder.close()


@pytest.mark.slow
def test_every_thread_has_its_process_and_closing_ends_a_call(decoder):
    with ThreadPoolExecutor(2) as threads:
        barrier = threading.Barrier(2)

        def pid(_):
            barrier.wait()
            return other("x", None).value[0]

        other = Isolated(tasks.process_facts)
        assert len({*threads.map(pid, range(2)), os.getpid()}) == 3
        other.close()
        hanging = threads.submit(decoder, "h", ("hang", 0))
        time.sleep(3)
        decoder.close()
        assert hanging.result(30).kind == "died"
        with pytest.raises(EnvironmentFault, match="is closed"):
            threads.submit(decoder, "i", ("", 0)).result()
