"""``medseg calibrate`` on masks of a seeded network, from its command line."""

import json

import pytest
import torch

from medseg.cli.calibrate import main
from medseg.config.sections import InferSection
from medseg.imaging import write_label_map, write_volume
from medseg.inference.cases import InferCase
from medseg.inference.ensemble import build_engine
from medseg.inference.model import load_models
from medseg.inference.stage import infer_folder
from tests.inference.stand_ins import write_model
from tests.synthetic import scan

SECTION = InferSection(mirror=False, precision="float32", postprocess=False)


def engine_of(folder):
    return build_engine(load_models(folder), SECTION, device=torch.device("cpu"))


@pytest.mark.slow
def test_masks_and_references_become_expected_dice(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, cases = write_model(tmp_path / "model"), []
    for number in range(10):
        made = scan("ras", seed=number)
        write_volume(made.volume, tmp_path / "scans" / f"c{number}.nii.gz", like=made.header)
        write_label_map(made.label_map, tmp_path / "truth" / f"c{number}.nii.gz", like=made.header)
        cases.append(InferCase(id=f"c{number}", images=(tmp_path / "scans" / f"c{number}.nii.gz",)))
    infer_folder(engine_of(model), cases, output=tmp_path / "masks")
    flags = ["--model", str(model), "--predictions", str(tmp_path / "masks"), "--references", str(tmp_path / "truth")]
    assert main([*flags, "--output", str(tmp_path / "report"), "--coverage", "0.8"]) == 0
    assert "calibrated on 10 masks" in capsys.readouterr().out
    stored = json.loads((model / "quality.json").read_text())
    assert (stored["coverage"], set(stored["classes"]) <= {"organ", "lesion"}) == (0.8, True)
    # Masks that are there are kept, and are told their expected Dice.
    reports = infer_folder(engine_of(model), cases, output=tmp_path / "masks")
    assert {report.status for report in reports} == {"kept"}
    name = next(iter(stored["classes"]))
    assert all(0 <= report.quality.dice_bound[name] <= report.quality.expected_dice[name] <= 1 for report in reports)
    lines = [json.loads(line) for line in (tmp_path / "masks" / "report.jsonl").read_text().splitlines()]
    assert all(line["quality"]["expected_dice"][name] is not None for line in lines)
    other = write_model(tmp_path / "other", seed=1)
    assert main(["--model", str(other), *flags[2:], "--output", str(tmp_path / "report")]) == 2
    assert main([*flags, "--output", str(tmp_path / "report"), "--coverage", "1"]) == 2
