import ctypes
import gc
import os
import subprocess
import sys

from medseg.runner import resources


def test_default_processes_fit_the_memory(monkeypatch):
    monkeypatch.setattr(resources, "available_cores", lambda: 8)
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: 10_000)
    assert resources.default_processes(0) == 8
    assert resources.default_processes(100) == 8
    assert resources.default_processes(2_000) == 4
    assert resources.default_processes(50_000) == 1


def test_available_resources_are_positive():
    assert 1 <= resources.available_cores() <= (os.cpu_count() or 1)
    assert resources.available_memory_bytes() > 0


def test_freed_memory_is_kept_and_another_c_library_is_no_fault(monkeypatch):
    """Blocks of 16 MiB freed and asked for again cost no new pages, which glibc's own threshold of 128 KiB would."""
    code = (
        "import resource; from medseg.runner.resources import keep_freed_memory; keep_freed_memory()\n"
        "block = bytearray(1 << 24); del block\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): block = bytearray(1 << 24); del block\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert faults < 4096  # one time through would be 4096 pages, twenty times 81,920
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    resources.keep_freed_memory()


def test_the_collector_pauses_for_imports_only():
    assert gc.isenabled()
    with resources.quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with resources.quick_imports():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_leaving_quickly_still_does_what_is_promised_for_the_end(tmp_path):
    code = (
        "import atexit, gc, sys, tempfile, weakref; from medseg.runner.resources import leave_quickly\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count() > 0))\n"
        "leave_quickly(); leave_quickly()\n"
        "class A: pass\n"
        "a = A(); weakref.finalize(a, print, 'finalized'); print('end')\n"
        f"folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split("\n")) == ["", "end", "finalized", "frozen True"]
    assert list(tmp_path.iterdir()) == []
