"""What is read where, and what a scan will take before it is opened."""

import numpy as np
import pytest

from medseg.errors import ScanError
from medseg.imaging import write_volume
from medseg.inference.decoding import CaseReader, ReaderFault, estimated_bytes, quick_header
from medseg.runner.pool import Outcome
from tests.inference.stand_ins import plan_for
from tests.synthetic import scan, write_scan


def test_a_scans_bytes_are_those_of_both_grids(tmp_path):
    made = scan("lps")
    plan = plan_for((0.9, 0.9, 0.7), channels=2)
    voxels = 30 * 34 * 26
    # As read, and at twice as many slices; both channels in float32.
    wanted = pytest.approx(2 * 4 * voxels * (1 + 2), abs=4)
    for suffix in (".nii.gz", ".mha"):
        path = tmp_path / f"scan{suffix}"
        write_volume(made.volume, path)
        assert estimated_bytes([path], quick_header([path]), plan) == wanted


def test_where_headers_are_long_to_read_file_sizes_tell(tmp_path):
    for name, size in (("a.dcm", 100), ("b.dcm", 50)):
        (tmp_path / name).write_bytes(bytes(size))
    assert quick_header([tmp_path]) is None
    assert estimated_bytes([tmp_path], None, plan_for()) == 600
    assert estimated_bytes([tmp_path], None, plan_for(), only=("a.dcm",)) == 400
    gone = tmp_path / "gone.nii.gz"
    assert quick_header([gone]) is None
    assert estimated_bytes([gone], None, plan_for()) == 0


@pytest.mark.parametrize(
    ("isolation", "suffix", "elsewhere"),
    [
        ("auto", ".nii.gz", False),
        ("auto", ".nii", False),
        ("auto", ".mha", True),
        ("auto", ".png", True),
        ("auto", "", True),
        ("always", ".nii", True),
        ("never", ".mha", False),
    ],
)
def test_compiled_decoders_run_elsewhere(tmp_path, isolation, suffix, elsewhere):
    assert CaseReader(isolation=isolation)._isolates([tmp_path / f"scan{suffix}"]) is elsewhere


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome(case_id="a", kind="refused", seconds=0, error="a.mha: is empty", exit_code=3), ScanError),
        (Outcome(case_id="a", kind="died", seconds=0, error="a: brought its reader down", exit_code=1), ReaderFault),
    ],
)
def test_what_went_wrong_elsewhere_is_raised_here(tmp_path, monkeypatch, outcome, error):
    reader = CaseReader(isolation="always")
    monkeypatch.setattr(reader, "_elsewhere", lambda *_: outcome)
    with pytest.raises(error, match=r"^a"):
        reader("a", [tmp_path / "a.mha"], plan_for().channels)


@pytest.mark.slow
def test_voxels_are_the_same_here_and_elsewhere(tmp_path):
    image, _ = write_scan(scan("oblique"), tmp_path)
    here, there = CaseReader(isolation="never"), CaseReader(isolation="always", timeout_seconds=100.0)
    volumes = [reader("a", [image], plan_for().channels) for reader in (here, there)]
    there.close()
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    np.testing.assert_array_equal(volumes[0].affine, volumes[1].affine)
    assert volumes[0].header.shape == volumes[1].header.shape
