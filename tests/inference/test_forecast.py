"""What a dry run says, and that it writes nothing."""

import pytest

from medseg.inference import forecast as module
from medseg.inference.cases import InferCase
from medseg.inference.forecast import forecast
from medseg.inference.memory import MemoryPrediction
from medseg.inference.shards import Shard
from medseg.inference.stage import RunOptions, run_infer
from tests.inference.test_stage import engine_of, some_cases


@pytest.fixture
def engine(monkeypatch):
    """An engine that says: ten thousand bytes a voxel, and a window for every thousand of them."""
    made = engine_of()

    def peak(shape_xyz, affine):
        count = shape_xyz[0] * shape_xyz[1] * shape_xyz[2]
        return MemoryPrediction(host_bytes=count * 10**4, windows=-(-count // 1000))

    monkeypatch.setattr(made, "peak_bytes", peak)
    return made


def test_a_dry_run_counts_and_writes_nothing(tmp_path, engine):
    cases, output = some_cases(tmp_path, 4), tmp_path / "out"
    list(run_infer(engine, cases[:1], output=output))
    cases[1].images[0].write_bytes(b"no scan")
    cases.append(InferCase(id="gone", images=(), fault="gone: no such file; check the list"))
    before = sorted(path.name for path in output.iterdir())
    found = forecast(engine, cases, output=output)
    assert (found.cases, found.done, found.to_do, len(found.faulty)) == (5, 1, 3, 2)
    shape = (30, 34, 26)
    assert [(scan.case.id, scan.shape, scan.windows) for scan in found.scans if scan.refused is None] == [
        ("case_2", shape, 27),
        ("case_3", shape, 27),
    ]
    assert found.seconds > 0
    text = found.text()
    assert "5 cases: 3 to do, 1 have their mask by their sidecars" in text
    assert f"{(26_520 * 10**4 + found.resident_bytes) / 1e9:.1f} GB on the host with the largest scan" in text
    assert "windows: 27 in the middle scan" in text
    assert "refused: gone: no such file; check the list" in text
    assert text.endswith("nothing was written")
    assert sorted(path.name for path in output.iterdir()) == before


def test_of_many_cases_some_headers_tell_enough(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(module, "_LOOKED_AT", 2)
    cases = some_cases(tmp_path, 3)
    assert len(forecast(engine, cases, output=tmp_path / "out").scans) == 2
    shard = forecast(engine, cases, output=tmp_path / "out", options=RunOptions(shard=Shard(1, 3)))
    assert (shard.cases, [scan.case.id for scan in shard.scans]) == (1, ["case_1"])
    assert not (tmp_path / "out").exists()
