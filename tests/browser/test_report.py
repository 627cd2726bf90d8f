"""The report in a real browser, from disk, network off. ``npm ci --prefix tests/browser`` once; Chromium on the path."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from medseg.report.experiment import folder_inputs, scored_folders
from medseg.report.stage import make_report
from tests.report.scored_cases import score_synthetic

HERE = Path(__file__).parent
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.skipif(
    not (HERE / "node_modules").is_dir(), reason="run npm ci --prefix tests/browser: playwright-core is missing"
)
def test_a_reader_uses_the_report_offline(tmp_path):
    folder = score_synthetic(tmp_path)
    cases = scored_folders(folder / "scores", predictions=folder / "p", references=folder / "r")
    report = make_report(folder_inputs(folder / "scores", cases, scans=folder / "scans")).html
    done = subprocess.run(
        ["node", str(HERE / "report.mjs"), str(report), str(HERE / "artifacts" / "report")],
        env=os.environ | {"CHROMIUM": CHROMIUM},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    checks = [json.loads(line)["check"] for line in done.stdout.splitlines()]
    assert "no console message, nothing fetched" in checks
    assert "the button shows the entropy" in checks
    assert len(checks) == len(set(checks)) > 20
