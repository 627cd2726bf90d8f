"""The demo, cut down to a few seconds: all four stages end to end, and again with nothing left to do."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from medseg.cli import demo, demo_data

RESULTS = ("data", "prepared", "runs", "predictions", "scores")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    text = demo.shipped_config().decode()
    text, changed = re.subn(r"^    (minutes|steps): .*$", "    steps: 2", text, flags=re.MULTILINE)
    assert changed == 1
    monkeypatch.setattr(demo, "shipped_config", text.encode)
    monkeypatch.setattr(demo_data, "TRAINING", 4)
    monkeypatch.setattr(demo_data, "TESTING", 2)
    monkeypatch.setenv("MEDSEG_TRACKING", "off")
    monkeypatch.setattr("os.fsync", lambda _: None)  # no test cuts the power


def state(work: Path) -> dict[str, tuple[str, int]]:
    """Hash of what the stages made, and the time stamp of what takes work; summaries may be written again, the same."""
    passing = {"stage.json", "tracking.json", "report.jsonl", "report.csv", "review.csv", "checks.json"}
    summaries = {"index.json", "metrics.json", "cases.csv"}
    files = [
        path for name in RESULTS for path in (work / name).rglob("*") if path.is_file() and path.name not in passing
    ]
    return {
        path.relative_to(work).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            0 if path.name in summaries else path.stat().st_mtime_ns,
        )
        for path in files
    }


@pytest.mark.usefixtures("small")
def test_demo_ends_in_a_table_and_a_second_start_redoes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work = tmp_path / "work"
    assert demo.main(["--work", str(work), "--device", "cpu"]) == 0
    first = capsys.readouterr().out
    before = state(work)
    assert any(name.startswith("predictions/") for name in before)
    assert demo.main(["--work", str(work), "--device", "cpu"]) == 0
    second = capsys.readouterr().out
    assert {name: value for name, value in state(work).items() if before.get(name) != value} == {}

    table = first[first.index("Dice on the 2 held-out scans") :]
    assert table == second[second.index("Dice on the 2 held-out scans") :]
    rows = {
        row: line
        for line in table.splitlines()
        for row in ("trained", "untrained", "best band")
        if line.startswith(row)
    }
    assert set(rows) == {"trained", "untrained", "best band"}
    kept = json.loads((work / "baselines.json").read_text())
    assert f"{kept['dice']['best band of grey values']['organ']:.3f}" in rows["best band"]


@pytest.mark.usefixtures("small")
def test_a_stage_that_fails_ends_the_demo_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from medseg.pipelines import prepare

    monkeypatch.setattr(prepare, "main", lambda _: 3)
    assert demo.main(["--work", str(tmp_path)]) == 3
    assert not (tmp_path / "runs").exists()


def test_config_in_configs_is_the_one_that_is_installed():
    root = Path(__file__).parents[2]
    assert (root / "configs" / "demo.yaml").read_bytes() == demo.shipped_config()
