"""Imported models against nnU-Net's own masks, which make_nnunet_reference.py wrote with nnU-Net 2.8.1."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.cli.import_nnunet import main
from medseg.config.sections import InferSection
from medseg.errors import ModelError, UsageError
from medseg.exchange.nnunet import TRAINING_ONLY, import_nnunet
from medseg.imaging import read_label_map
from medseg.inference.ensemble import build_engine
from medseg.inference.experiment import own_section
from medseg.inference.model import load_models
from medseg.preparation.case import load_case

ARCHIVE = Path(__file__).with_name("nnunet_reference.zip")
NAMES = ("Thick_3d_fullres", "Regions_3d_fullres", "Slices_2d", "Stages_3d_lowres", "Stages_3d_cascade_fullres")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder with scans/ and masks/ of the archive."""
    folder = tmp_path_factory.mktemp("reference")
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in archive.namelist():
            if name.startswith(("scans/", "masks/")):
                archive.extract(name, folder)
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Name of a reference to its model folder, made once."""
    folder, done = tmp_path_factory.mktemp("imported"), {}

    def of(name):
        plans, _, config = name.partition("_")
        if name not in done:
            done[name] = import_nnunet(ARCHIVE, folder / name, configuration=f"nnUNetTrainer__{plans}__{config}")
        return done[name]

    return of


def answer(folder, reference, name, **section):
    """The mask that a model folder gives of the reference's scan."""
    models = load_models(folder)
    engine = build_engine(models, InferSection(**section), device=torch.device("cpu"))
    files = sorted((reference / "scans").glob(f"{name.partition('_')[0]}_*.nii.gz"))
    volume = load_case(files, engine.plan.channels)
    array, grid = engine.prepare(volume)
    classes = engine.classes(engine.scores(array), grid)
    return engine.label_map(classes, affine=volume.affine, header=volume.header).array


@pytest.mark.parametrize("name", NAMES)
def test_masks_equal_nnunets(name, imported, reference):
    expected = read_label_map(reference / "masks" / f"{name}.nii.gz").array
    assert len(np.unique(expected)) > 1
    exact = answer(imported(name).folder, reference, name, accumulate="fp16")
    assert np.array_equal(exact, expected)
    # Scores of random weights are near each other everywhere, and near the scan's corners nnU-Net's weights underflow.
    fast = answer(imported(name).folder, reference, name, precision="float32")
    assert (fast == expected).mean() > (0.9 if "cascade" in name else 0.98)


def test_the_folder_says_what_it_is_made_of(imported):
    done = imported("Thick_3d_fullres")
    assert done.folds == ("0", "1")
    members = load_models(done.folder)
    assert [member.folder.name for member in members] == ["fold_0", "fold_1"]
    training = members[1].info["training"]
    assert (training["source"], training["fold"], training["checkpoint"]) == ("nnU-Net v2", 1, "checkpoint_final.pth")
    section = own_section(members[0])
    assert (section.accumulate, section.precision, section.mirror, section.overlap) == ("fp32", "float32", True, 0.5)
    assert imported("Stages_3d_cascade_fullres").previous == "3d_lowres"


def test_again_gives_the_same_and_another_model_is_not_overwritten(tmp_path):
    choice = {"configuration": "nnUNetTrainer__Thick__3d_fullres", "folds": ["1"], "accumulate": "fp16"}
    first = import_nnunet(ARCHIVE, tmp_path / "model", **choice)
    assert own_section(load_models(first.folder)[0]).accumulate == "fp16"
    assert import_nnunet(ARCHIVE, tmp_path / "model", **choice).sha256 == first.sha256
    assert {path.name for path in first.folder.iterdir()} == {
        "config.yaml", "model.json", "plan.yaml", "weights.safetensors"
    }  # fmt: skip
    (tmp_path / "licence.txt").write_text("Mine.\n")
    licensed = import_nnunet(ARCHIVE, tmp_path / "model", **choice, licence=tmp_path / "licence.txt")
    assert licensed.sha256 != first.sha256
    assert (tmp_path / "model" / "LICENSE").read_text() == "Mine.\n"
    assert import_nnunet(ARCHIVE, tmp_path / "model", **choice).sha256 == first.sha256
    assert not (tmp_path / "model" / "LICENSE").exists()
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").touch()
    with pytest.raises(UsageError, match=r"holds a\.nii\.gz already, expected a new or empty folder"):
        import_nnunet(ARCHIVE, tmp_path / "scans", **choice)
    assert not (tmp_path / "scans" / "model.json").exists()


def unpacked(folder):
    """One small model of the archive as a folder, and its checkpoint."""
    top = "Dataset900_Reference/nnUNetTrainer__Thick__3d_fullres/"
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in archive.namelist():
            if name.startswith(top) and "fold_1" not in name:
                archive.extract(name, folder)
    path = folder / top / "fold_0" / "checkpoint_final.pth"
    return folder / top, path, torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(trainer_name="MyTrainer"), r"trained by the class MyTrainer, which medseg does not know"),
        (
            lambda c: c["network_weights"].pop("encoder.stages.0.0.convs.0.conv.weight"),
            r"convs\.0\.conv\.weight is missing",
        ),
        (
            lambda c: c["network_weights"].update({"extra.weight": torch.ones(1)}),
            r"holds 1 tensors that the plan's network",
        ),
        (lambda c: c["network_weights"]["encoder.stages.0.0.convs.0.conv.bias"].fill_(torch.nan), r"are not finite"),
        (lambda c: c["init_args"].update(configuration="2d"), r"has no configuration 2d"),
    ],
)
def test_a_checkpoint_that_is_another_networks_is_refused(change, sentence, tmp_path):
    folder, path, content = unpacked(tmp_path)
    change(content)
    torch.save(content, path)
    with pytest.raises(ModelError, match=sentence):
        import_nnunet(folder, tmp_path / "model")
    assert not (tmp_path / "model" / "model.json").exists()


def test_plans_of_a_giant_are_refused_before_memory_is_taken(tmp_path):
    folder, _, _ = unpacked(tmp_path)
    plans = json.loads((folder / "plans.json").read_text())
    values = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    values["features_per_stage"] = [10**6] * values["n_stages"]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(
        ModelError, match=r"its plans' network has [\d,]+ parameters, expected one that fits the checkpoint"
    ):
        import_nnunet(folder, tmp_path / "model")


def test_numbers_of_another_kind_are_no_weights(tmp_path):
    folder, path, content = unpacked(tmp_path)
    name = "encoder.stages.0.0.convs.0.conv.weight"
    content["network_weights"][name] = content["network_weights"][name].to(torch.complex64)
    torch.save(content, path)
    with pytest.raises(ModelError, match=r"conv\.weight is torch\.complex64, expected torch\.float32"):
        import_nnunet(folder, tmp_path / "model")


def test_its_postprocessing_comes_along_when_asked_for(tmp_path):
    folder, _, _ = unpacked(tmp_path)
    steps = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": 2}],
    }
    (tmp_path / "postprocessing.json").write_text(json.dumps(steps))
    done = import_nnunet(folder, tmp_path / "model", postprocessing=tmp_path / "postprocessing.json")
    (model,) = load_models(done.folder)
    assert [str(step) for step in model.postprocessing] == ["lesion: keep the largest components"]


def test_own_trainers_are_taken_when_asked_for(tmp_path):
    folder, path, content = unpacked(tmp_path)
    torch.save(content | {"trainer_name": "MyTrainer"}, path)
    assert import_nnunet(folder, tmp_path / "model", any_trainer=True).folds == ("0",)


def test_the_command(tmp_path, capsys):
    configuration = ["--configuration", "nnUNetTrainer__Slices__2d"]
    assert main([str(ARCHIVE), "--output", str(tmp_path / "model"), *configuration]) == 0
    assert "2d of nnU-Net, fold all" in capsys.readouterr().out
    assert main([str(ARCHIVE), "--output", str(tmp_path / "other")]) == 2
    assert "holds 5 trained configurations" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainer", "nnUNetTrainer_250epochs_NoMirroring", "nnUNetTrainerDA5Segord0", "nnUNetTrainer_onlyMirror01_1500ep",
        "nnUNetTrainerAdan1en3", "nnUNetTrainer_probabilisticOversampling_010", "nnUNetTrainerBenchmark_5epochs_noDataLoading",
    ],
)  # fmt: skip
def test_trainers_that_change_training_alone_are_known(name):
    assert TRAINING_ONLY.fullmatch(name)
    assert not TRAINING_ONLY.fullmatch(name + "_UMamba")
