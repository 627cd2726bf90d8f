"""``medseg manifest``: files out, folds kept, exit codes."""

import json

import numpy as np
import pytest
from PIL import Image

from medseg.cli.manifest import label_values, main
from medseg.manifest import load_manifest


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "data"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number in range(10):
        mask = np.zeros((6, 6), np.uint8)
        mask[1, 1] = 255
        Image.fromarray(mask).save(root / "images" / f"{number:03d}.png")
        Image.fromarray(mask).save(root / "labels" / f"{number:03d}.png")
    return root


def arguments(root, output, *more):
    patterns = ["--image-pattern", "images/{id}.png", "--label-pattern", "labels/{id}.png", "--channels", "grey"]
    return ["folders", str(root), *patterns, "--output", str(output), *more]


def test_a_manifest_is_written_with_folds_and_found_labels(pictures, tmp_path, capsys):
    output = tmp_path / "m.json"
    assert main(arguments(pictures, output)) == 0
    manifest = load_manifest(output)
    assert manifest.labels == {"background": (0,), "foreground": (255,)}
    assert sorted(case.fold for case in manifest.training) == sorted([0, 1, 2, 3, 4] * 2)
    told = capsys.readouterr().out
    assert "10 training and 0 testing cases" in told
    assert "foreground 255; rename them" in told
    assert "licence is stated nowhere" in told


def test_an_existing_file_stays_and_its_folds_are_kept(pictures, tmp_path, capsys):
    output = tmp_path / "m.csv"
    assert main(arguments(pictures, output, "--labels", "nucleus=255", "--seed", "1")) == 0
    before = load_manifest(output)
    assert main(arguments(pictures, output)) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert main(arguments(pictures, output, "--overwrite", "--seed", "2", "--labels", "cell=255")) == 0
    after = load_manifest(output)
    assert after.training == before.training
    assert list(after.labels) == ["background", "cell"]
    assert main(arguments(pictures, output, "--overwrite", "--resplit", "--folds", "2", "--labels", "cell=255")) == 0
    assert {case.fold for case in load_manifest(output).training} == {0, 1}


def test_faults_end_with_3_and_write_nothing(pictures, tmp_path, capsys):
    (pictures / "images" / "003.png").unlink()
    (pictures / "images" / "004.png").unlink()
    assert main(arguments(pictures, tmp_path / "m.json", "--labels", "a=255")) == 3
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not (tmp_path / "m.json").exists()


def test_labels_that_can_not_be_read_are_told(pictures, tmp_path, capsys):
    (pictures / "labels" / "003.png").write_bytes(b"\x89PNG")
    assert main(arguments(pictures, tmp_path / "m.json")) == 3
    assert "003" in capsys.readouterr().err


def test_split_gives_folds_once(tmp_path, capsys):
    cases = [{"id": f"{i}", "image": f"{i}.nii", "site": "AB"[i % 2]} for i in range(6)]
    top = {"format": 1, "name": "x", "licence": "y", "channels": ["MR"], "labels": {"a": 1}, "training": cases}
    path = tmp_path / "m.json"
    path.write_text(json.dumps(top))
    assert main(["split", str(path), "--folds", "3", "--stratify", "site"]) == 0
    assert sorted(case.fold for case in load_manifest(path).training) == [0, 0, 1, 1, 2, 2]
    text = path.read_bytes()
    assert main(["split", str(path), "--folds", "2"]) == 0
    assert "kept the 3 folds" in capsys.readouterr().out
    assert path.read_bytes() == text
    assert main(["split", str(path), "--folds", "2", "--resplit", "--output", str(tmp_path / "n.csv")]) == 0
    assert path.read_bytes() == text
    assert {case.fold for case in load_manifest(tmp_path / "n.csv").training} == {0, 1}


def test_label_values_as_text():
    assert label_values("liver=1, tumour=2+3") == {"liver": (1,), "tumour": (2, 3)}


@pytest.mark.parametrize("text", ["liver", "=1", "a=x", "a=1,a=2", "a=1,"])
def test_label_values_that_are_none(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["folders", "x", "--image-pattern", "{id}", "--channels", "a", "--output", "o.json", "--labels", text])
    assert "--labels" in capsys.readouterr().err


@pytest.mark.real
def test_the_other_layouts_on_real_data(shared_data, tmp_path, capsys):
    hippocampus, output = str(shared_data / "hippocampus"), tmp_path / "h.json"
    assert main(["decathlon", hippocampus, "--output", str(output)]) == 0
    assert "the 5 folds are those of splits_final.json" in capsys.readouterr().out
    assert main(["nnunet", hippocampus, "--output", str(tmp_path / "n.json")]) == 3
    assert "no channel number" in capsys.readouterr().err
    dicom = [
        "dicom",
        str(shared_data / "dicom"),
        "--modality",
        "CT",
        "--label-pattern",
        "{patient}/expected/CT_mask.nii.gz",
    ]
    assert main([*dicom, "--folds", "0", "--output", str(tmp_path / "d.csv")]) == 0
    manifest = load_manifest(tmp_path / "d.csv")
    assert manifest.training[0].images == ("STS_002/CT/image",)
    assert manifest.labels["foreground"] == (1,)
