import json

import numpy as np
import pytest
from PIL import Image

from medseg.pipelines import evaluate


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
    ]
    return evaluate.main([str(flag) for flag in (*flags, *more)])


def test_two_folders_without_a_config(pictures, capsys):
    assert run(pictures, "--tolerance", "2") == 0
    printed = capsys.readouterr().out
    assert "s: 3 of 3 cases scored" in printed
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
