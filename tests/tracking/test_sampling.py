import os

from medseg.tracking import sampling
from medseg.tracking.sampling import Sampler
from medseg.tracking.spool import SpoolWriter, read_records


def _sampler(tmp_path, monkeypatch, pid):
    monkeypatch.setattr(sampling, "SAMPLE_SECONDS", 0.0)
    writer = SpoolWriter(tmp_path / "run")
    writer.append("start")
    writer.close()
    return Sampler(pid, tmp_path)


def test_samples_go_to_the_watched_run_alone(tmp_path, monkeypatch):
    sampler = _sampler(tmp_path, monkeypatch, os.getpid())
    sampler.sample_if_due()
    assert len(list(read_records(tmp_path / "run"))) == 1
    sampler.key = "run"
    sampler.sample_if_due()
    sampler.sample_if_due()
    _, first, second = read_records(tmp_path / "run")
    assert 0.001 < first.fields["values"]["system/memory_gb"] < 100
    assert first.fields["step"] == 0
    assert set(second.fields["values"]) - set(first.fields["values"]) == {"system/cpu_percent"}


def test_a_process_that_is_gone_gives_none(tmp_path, monkeypatch):
    sampler = _sampler(tmp_path, monkeypatch, 2**22 + 1)
    sampler.key = "run"
    sampler.sample_if_due()
    assert len(list(read_records(tmp_path / "run"))) == 1
