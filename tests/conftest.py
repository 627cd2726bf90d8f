"""What all tests share. Real scans are looked for outside the repository, and their tests skip where they are not."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

# Before torch is imported anywhere: threads that spin while they wait make tests on busy cores fifty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_ROOT = Path(__file__).resolve().parents[1]
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))  # so that tests import tests.synthetic however pytest was started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured text may hold lone surrogates, of file names that are no UTF-8: what runs tests in parallel can't send them."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return _ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real scans (hippocampus, sarcoma, nuclei, dicom); the test skips where there is none."""
    folder = Path(os.environ.get("MEDSEG_SHARED_DATA", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real scans are not here (set MEDSEG_SHARED_DATA to their folder)")
    return folder


@pytest.fixture
def no_absolute_paths(tmp_path: Path):
    """A check that a message names no path: ``no_absolute_paths(str(error))``."""

    def check(text: str) -> None:
        assert str(tmp_path) not in text, "an absolute path is in the message"
        assert "\n" not in text, "a message is one line"

    return check


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes many small files without waiting for the disk; for tests that look at content, not durability."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
