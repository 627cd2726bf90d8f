import pytest

from medseg.preparation import device_memory
from medseg.preparation.device_memory import device_memory_gb, main_memory_bytes


def test_a_cpu_has_three_quarters_of_the_main_memory():
    import psutil

    assert main_memory_bytes() <= psutil.virtual_memory().total
    assert device_memory_gb("cpu") == 0.75 * main_memory_bytes() / 1e9


def test_a_container_with_less_has_what_it_is_allowed(monkeypatch):
    def read_text(path):
        return {"meminfo": "MemTotal:  8000000 kB\n", "memory.max": "4096000000\n"}[path.name]

    monkeypatch.setattr(device_memory.Path, "read_text", read_text)
    monkeypatch.setattr(device_memory, "contextlib", _AlsoMissing)
    assert main_memory_bytes() == 4_096_000_000


class _AlsoMissing:
    """contextlib whose suppress takes the made-up files that are not there, too."""

    @staticmethod
    def suppress(*errors):
        import contextlib

        return contextlib.suppress(KeyError, *errors)


def test_without_a_cuda_driver_a_cpu_is_meant(monkeypatch):
    monkeypatch.setattr(device_memory.Path, "exists", lambda _path: False)
    assert device_memory_gb(None) == pytest.approx(device_memory_gb("cpu"))
