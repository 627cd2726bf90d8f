import os

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
