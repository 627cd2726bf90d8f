import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from medseg.pipelines import evaluate
from PIL import Image

from medseg.durable import sha256_file


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for side in ("p", "r"):
        (tmp_path / side).mkdir()
        for name in ("a", "b", "c"):
            Image.fromarray((rng.random((20, 30)) < 0.5).astype(np.uint8) * 255).save(tmp_path / side / f"{name}.png")
    return tmp_path


def run(folder, *more):
    flags = [
        "--predictions",
        folder / "p",
        "--references",
        folder / "r",
        "--labels",
        "nuclei=255",
        "--output",
        folder / "s",
        "--no-report",
    ]
    return evaluate.main([str(flag) for flag in (*flags, *more)])


def test_two_folders_without_a_config(pictures, capsys):
    assert run(pictures, "--tolerance", "2") == 0
    printed = capsys.readouterr().out
    assert "p: 3 of 3 cases scored" in printed
    assert "nuclei" in printed
    assert "3 cases scored, 0 kept" in printed
    metrics = json.loads((pictures / "s" / "metrics.json").read_text())
    assert metrics["tolerance_mm"] == {"nuclei": 2.0}
    assert 0.4 < metrics["classes"]["nuclei"]["metrics"]["dice"]["mean"] < 0.6
    assert json.loads((pictures / "s" / "stage.json").read_text())["stage"] == "evaluate"
    before = (pictures / "s" / "metrics.json").read_bytes()
    assert run(pictures, "--tolerance", "2") == 0
    assert "0 cases scored, 3 kept" in capsys.readouterr().out
    assert (pictures / "s" / "metrics.json").read_bytes() == before


def test_a_report_lies_beside_the_scores(pictures, capsys):
    flags = ["--predictions", "p", "--references", "r", "--output", "s", "--scans", "r"]
    paths = [str(pictures / flag) if not flag.startswith("--") else flag for flag in flags]
    assert evaluate.main([*paths, "--labels", "nuclei=255"]) == 0
    text = (pictures / "s" / "report.html").read_text()
    assert "Scores of p" in text
    assert '"scan":"data:image/png;base64,' in text
    assert "3 of 3 cases scored" in (pictures / "s" / "report.md").read_text()


def test_a_report_that_cannot_be_made_stops_nothing(pictures, capsys, caplog, monkeypatch):
    def broken(_inputs):
        raise MemoryError("at /home/doe")

    monkeypatch.setattr("medseg.report.stage.make_report", broken)
    flags = ["--predictions", "p", "--references", "r", "--output", "s"]
    paths = [str(pictures / flag) if not flag.startswith("--") else flag for flag in flags]
    assert evaluate.main([*paths, "--labels", "nuclei=255"]) == 0
    assert "report: is not made (MemoryError); the scores are whole" in caplog.text
    assert (pictures / "s" / "stage.json").is_file()
    assert "report.html" not in capsys.readouterr().out


def test_a_folder_of_scans_that_is_none_is_said_before_the_scoring(pictures, capsys):
    flags = ["--predictions", "p", "--references", "r", "--output", "s", "--scans", "none"]
    paths = [str(pictures / flag) if not flag.startswith("--") else flag for flag in flags]
    assert evaluate.main([*paths, "--labels", "nuclei=255"]) == 2
    assert "--scans: none is no folder" in capsys.readouterr().err
    assert not (pictures / "s").exists()


def test_further_metrics_by_name(pictures, capsys):
    assert run(pictures, "--metrics", "surface_elements, hd99_mm") == 0
    metrics = json.loads((pictures / "s" / "metrics.json").read_text())["classes"]["nuclei"]["metrics"]
    assert {"nsd_surfel", "hd99_mm", "dice"} <= set(metrics)
    assert run(pictures, "--metrics", "hausdorff") == 2
    assert "metrics: has 'hausdorff', expected a group (default, surface_elements" in capsys.readouterr().err


def test_exit_codes(pictures, capsys, caplog):
    (pictures / "p" / "b.png").unlink()
    assert run(pictures) == 4
    assert "b: has no prediction" in caplog.text + capsys.readouterr().err
    assert run(pictures, "--ignore", "255") == 2
    assert run(pictures, "--empty", "best") == 2
    for path in (pictures / "p").iterdir():
        path.unlink()
    assert run(pictures) == 3
    assert "p: none of its 0 label maps" in capsys.readouterr().err


def test_flags_that_are_missing_are_told(capsys):
    assert evaluate.main(["--labels", "nuclei=1"]) == 2
    assert "expected --config FILE, or --predictions DIR" in capsys.readouterr().err


def hashes(folder):
    return {path.name: sha256_file(path) for path in [folder / "cases.csv", folder / "metrics.json"]}


def processes_of_group(group):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_gives_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for side in ("p", "r"):
        (tmp_path / side).mkdir()
        for k in range(20):
            Image.fromarray((rng.random((300, 300)) < 0.5).astype(np.uint8)).save(tmp_path / side / f"{k}.png")

    def command(output):
        flags = f"--predictions p --references r --labels nuclei=1 --output {output} --processes 2"
        return [sys.executable, "-m", "medseg.cli.main", "evaluate", *flags.split()]

    began = time.monotonic()
    subprocess.run(command("undisturbed"), cwd=tmp_path, check=True, capture_output=True)
    whole_seconds = time.monotonic() - began
    seed = int(time.time())
    sys.stdout.write(f"seed {seed}\n")  # shown when the test fails
    moments = np.random.default_rng(seed)
    for attempt in range(5):
        output = f"killed_{attempt}"
        for _ in range(2):  # the second time from where the first one stopped
            running = subprocess.Popen(
                command(output),
                cwd=tmp_path,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(moments.uniform(0.1, whole_seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)  # the command alone: its workers must go by themselves
            running.wait()
            deadline = time.monotonic() + 10
            while processes_of_group(running.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert processes_of_group(running.pid) == []
        done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / output / "cases").glob("[0-9]*.json")}
        last = subprocess.run(command(output), cwd=tmp_path, check=True, capture_output=True, text=True)
        assert f"{20 - len(done)} cases scored, {len(done)} kept" in last.stdout
        after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / output / "cases").glob("[0-9]*.json")}
        assert {name: after[name] for name in done} == done
        assert hashes(tmp_path / output) == hashes(tmp_path / "undisturbed")
        assert not list((tmp_path / output).rglob(".tmp-*"))
