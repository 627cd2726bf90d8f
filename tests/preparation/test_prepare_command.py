import json
import shutil

import numpy as np
import pytest

from pipelines.prepare import main
from tests.synthetic import scan, write_dataset, write_scan

CONFIG = """
format: 1
name: small
data: {manifest: data/dataset.json, fold: 0}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on the config in ``tmp_path``; gives its exit code."""
    monkeypatch.setenv("MEDSEG_TRACKING", "off")
    (tmp_path / "small.yaml").write_text(CONFIG)

    def call(*flags: str) -> int:
        where = ["--config", str(tmp_path / "small.yaml"), "--work", str(tmp_path / "work")]
        return main([*where, "--processes", "1", *flags])

    return call


def break_ten(data) -> None:
    """Breaks cases 0 to 9 of 12, each in its own way."""
    import nibabel as nib

    images, labels = data / "images", data / "labels"

    def image(number: int):
        return images / f"case_{number:02d}.nii.gz"

    def label(number: int):
        return labels / f"case_{number:02d}.nii.gz"

    image(0).unlink()
    image(1).write_bytes(image(1).read_bytes()[:2500])
    image(2).write_text("<html>not found</html>")
    image(3).write_bytes(b"")
    broken = bytearray(image(4).read_bytes())
    broken[-6] ^= 1
    image(4).write_bytes(broken)
    made = scan("ras", seed=5)
    made.image[1, 2, 3] = np.inf
    nib.save(nib.Nifti1Image(made.image, made.affine), image(5))
    nib.save(nib.Nifti1Image(np.stack([made.labels] * 3, axis=-1), made.affine), image(6))
    label(7).unlink()
    made = scan("ras", seed=8)
    made.labels[4, 4, 4] = 77
    write_scan(made, data, case_id="case_08")
    write_scan(scan("lps", seed=9), data / "aside")
    shutil.copy(data / "aside" / "labels" / "case.nii.gz", label(9))


def test_ten_broken_cases_are_ten_faults_and_the_rest_is_prepared(run, tmp_path, capfd):
    write_dataset(tmp_path / "data", cases=12)
    break_ten(tmp_path / "data")
    assert run() == 3
    shown = capfd.readouterr().err
    faults = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in faults] == [f"case_{i:02d}" for i in range(10)]
    assert "10 of 12 cases are refused" in shown
    assert str(tmp_path) not in shown
    assert not (tmp_path / "work" / "prepared" / "index.json").exists()
    assert run("--check-only") == 3
    assert run("--skip-bad") == 4
    index = json.loads((tmp_path / "work" / "prepared" / "index.json").read_text())
    assert list(index["cases"]) == ["case_10", "case_11"]
    assert len(index["skipped"]) == 10
    assert "prepared: 2 cases, 2 written now" in capfd.readouterr().out


def test_a_sound_set_ends_in_zero_and_says_the_plan(run, tmp_path, capfd):
    write_dataset(tmp_path / "data", cases=3)
    assert run() == 0
    assert "checked 3 cases (3 read now): 0 bad, 0 warnings\nplan: 3D, 1x1x1 mm, patch " in capfd.readouterr().out
    assert run() == 0
    assert "checked 3 cases (0 read now)" in capfd.readouterr().out
    record = json.loads((tmp_path / "work" / "prepared" / "stage.json").read_text())
    assert record["stage"] == "prepare"
    assert set(record["inputs"]) == {"manifest", "prepared"}


def test_changed_settings_end_in_two(run, tmp_path, capfd):
    write_dataset(tmp_path / "data", cases=3)
    assert run() == 0
    assert run("--set", "prepare.dtype=float32") == 2
    assert "prepare.dtype: is float32, but the plan was made with float16; give --replan" in capfd.readouterr().err
    assert run("--set", "prepare.dtype=float32", "--replan") == 0
