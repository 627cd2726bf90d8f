"""``medseg init``: a manifest and a config that load, and an honest account of what was guessed."""

import json

import numpy as np
import pytest
from PIL import Image

from medseg.cli.init import main
from medseg.config import Config, load_config
from medseg.config.sections import DataSection
from medseg.manifest import load_manifest
from tests import synthetic


def mask_of(value):
    mask = np.zeros((6, 6), np.uint8)
    mask[1, 1:3] = value
    return Image.fromarray(mask)


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "My cells"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(6):
        Image.fromarray(np.full((6, 6, 3), number, np.uint8)).save(root / "images" / f"{number:03d}.png")
        mask_of(255).save(root / "masks" / f"{number:03d}_mask.png")
    return root


def run(root, output, *more):
    return main([str(root), "--output", str(output), *more])


def test_pictures_in_folders(pictures, tmp_path, capsys):
    assert run(pictures, tmp_path) == 0
    manifest = load_manifest(tmp_path / "my_cells.json")
    assert manifest.labels == {"background": (0,), "foreground": (255,)}
    assert [channel.name for channel in manifest.channels] == ["RGB"]
    assert {case.fold for case in manifest.training} == {0, 1, 2, 3, 4}
    assert (manifest.training[0].id, manifest.training[0].labels) == ("000", ("masks/000_mask.png",))
    told = capsys.readouterr().out
    for wanted in ("plain folders: 6 labelled", "taken for RGB", "rename them", "licence is stated nowhere"):
        assert wanted in told
    command = f"medseg prepare --config {tmp_path / 'my_cells.yaml'} --data-root '{pictures}'"
    assert told.splitlines()[-1].strip() == command
    assert (tmp_path / "my_cells.yaml").read_text().splitlines()[0] == f"# {command}"


def test_the_config_is_complete_commented_and_the_defaults(pictures, tmp_path):
    run(pictures, tmp_path)
    text = (tmp_path / "my_cells.yaml").read_text()
    config = load_config(tmp_path / "my_cells.yaml")
    assert config == Config(name="my_cells", data=DataSection(manifest="my_cells.json", fold=0))
    assert config.tracking.images is False
    comment = text[text.index("tracking:") : text.index("  images:")]
    assert "a slice of a head is a face" in " ".join(comment.replace("#", " ").split())

    def keys(value, depth=0):
        for key, inner in value.items():
            yield f"{'  ' * depth}{key}:"
            if isinstance(inner, dict):
                yield from keys(inner, depth + 1)

    lines = text.splitlines()
    assert [key for key in keys(config.plain()) if not any(line.startswith(key) for line in lines)] == []


def test_nothing_is_overwritten_unasked_and_folds_are_kept(pictures, tmp_path, capsys):
    run(pictures, tmp_path, "--name", "x", "--seed", "1")
    before = load_manifest(tmp_path / "x.json")
    (tmp_path / "x.yaml").write_text("mine")
    assert run(pictures, tmp_path, "--name", "x") == 2
    assert "x.json: is there already" in capsys.readouterr().err
    assert (tmp_path / "x.yaml").read_text() == "mine"
    assert run(pictures, tmp_path, "--name", "x", "--overwrite", "--seed", "2") == 0
    assert load_manifest(tmp_path / "x.json").training == before.training
    assert load_config(tmp_path / "x.yaml").name == "x"


def test_scans_in_a_folder_a_case(tmp_path):
    root = tmp_path / "scans"
    for number in range(3):
        made = synthetic.scan(seed=number)
        folder = root / f"p{number}"
        folder.mkdir(parents=True)
        image, label = synthetic.write_scan(made, folder)
        image.rename(folder / "t1.nii.gz")
        label.rename(folder / "seg.nii.gz")
    assert run(root, tmp_path, "--labels", "organ=1,lesion=2") == 0
    manifest = load_manifest(tmp_path / "scans.json")
    assert [channel.name for channel in manifest.channels] == ["MR"]
    assert [case.id for case in manifest.training] == ["p0", "p1", "p2"]
    assert list(manifest.labels) == ["background", "organ", "lesion"]
    assert {case.fold for case in manifest.training} == {0, 1, 2}


def test_one_labelled_patient_makes_no_folds_and_a_config_without(pictures, tmp_path, capsys):
    for number in range(1, 6):
        (pictures / "masks" / f"{number:03d}_mask.png").unlink()
    assert run(pictures, tmp_path) == 0
    assert "made no folds" in capsys.readouterr().out
    assert load_config(tmp_path / "my_cells.yaml").data.fold is None
    assert len(load_manifest(tmp_path / "my_cells.json").testing) == 5


def test_folders_that_nothing_can_be_learnt_from(tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path) == 3
    (tmp_path / "data").mkdir()
    assert run(tmp_path / "data", tmp_path) == 3
    mask_of(1).save(tmp_path / "data" / "a.png")
    assert run(tmp_path / "data", tmp_path) == 3
    faults = capsys.readouterr().err.splitlines()
    assert [
        text in fault
        for text, fault in zip(("no such folder", "holds no scan", "no image has a label"), faults, strict=True)
    ]
    assert not list(tmp_path.glob("*.json"))


def test_a_decathlon_brings_its_own_names(tmp_path, capsys):
    root = tmp_path / "Task99"
    (root / "i").mkdir(parents=True)
    for name in ("a", "b"):
        mask_of(2).save(root / "i" / f"{name}.png")
    cases = [{"image": f"./i/{name}.png", "label": f"./i/{name}.png"} for name in ("a", "b")]
    labels = {"0": "background", "2": "core"}
    raw = {"name": "T", "licence": "CC0", "modality": {"0": "MRI"}, "labels": labels, "training": cases}
    (root / "dataset.json").write_text(json.dumps(raw))
    assert run(root, tmp_path) == 0
    assert load_manifest(tmp_path / "task99.json").labels == {"background": (0,), "core": (2,)}
    assert "Medical Segmentation Decathlon" in capsys.readouterr().out


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "cases", "channel", "value"),
    [("sarcoma", 41, "PET", 1), ("nuclei", 200, "RGB", 255), ("hippocampus", 208, "MR", 1)],
)
def test_the_real_folders(shared_data, tmp_path, folder, cases, channel, value):
    assert run(shared_data / folder, tmp_path) == 0
    manifest = load_manifest(tmp_path / f"{folder}.json")
    assert (len(manifest.training), manifest.channels[0].name) == (cases, channel)
    assert (value,) in manifest.labels.values()
    assert load_config(tmp_path / f"{folder}.yaml").data.fold == 0


@pytest.mark.real
def test_dicom_series_with_masks(shared_data, tmp_path, capsys):
    pattern = ["--layout", "dicom", "--label-pattern", "{patient}/expected/CT_mask.nii.gz"]
    assert run(shared_data / "dicom", tmp_path, *pattern) == 0
    told = capsys.readouterr().out
    assert "series are 2 CT, 1 MR, 1 PT; took CT" in told
    assert load_manifest(tmp_path / "dicom.json").training[0].images == ("STS_002/CT/image",)
