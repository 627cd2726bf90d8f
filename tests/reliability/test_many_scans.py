"""A smaller batch with every kind of broken scan, killed twice; ``many_scans.py`` beside it does as many as one likes."""

import pytest

from tests.reliability.many_scans import run_trial


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_in_a_batch_every_good_scan_has_its_mask_once_and_every_bad_one_its_reason(tmp_path):
    trial = run_trial(tmp_path / "trial", scans=90, broken=30, kills=2)
    assert trial.faults == []
