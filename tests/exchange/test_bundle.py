"""A bundle: its config names what is there, MONAI's command runs it, and its masks are infer's."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import medseg
from medseg.config.series import SeriesSection
from medseg.errors import ModelError
from medseg.exchange.bundle import write_bundle
from medseg.imaging import read_header
from medseg.inference.experiment import own_section
from medseg.inference.model import load_models, save_ensemble
from medseg.preparation.plan import ChannelPlan
from medseg.preparation.plan_file import write_plan
from tests.imaging.test_dicom_choice import add_series
from tests.inference.stand_ins import plan_for, write_model
from tests.synthetic import scan, write_scan


def test_the_files_and_what_they_say(tmp_path):
    models = load_models(write_model(tmp_path / "model"))
    write_bundle(tmp_path / "bundle", models, own_section(models[0]), name="organ")
    config = json.loads((tmp_path / "bundle" / "configs" / "inference.json").read_text())
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    # What MONAI's own list of a bundle's properties asks for.
    required = {"bundle_root", "device", "dataset_dir", "dataset", "evaluator", "network_def", "inferer"}
    assert required <= config.keys()
    assert config["settings"]["mirror"] is False
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "organ",
        "2": "lesion",
    }
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [16, 16, 16]
    assert metadata["required_packages_version"]["medseg"]
    assert (tmp_path / "bundle" / "models" / "model.pt").stat().st_size > 0


def test_licences_of_weights_and_data_lie_where_monais_do(tmp_path):
    models = load_models(write_model(tmp_path / "model"))
    models[0].info["training"]["data_licence"] = "CC-BY-SA 4.0"
    for licence, said in (
        (b"Mine.\n", "under the terms in `LICENSE`"),
        (None, "No licence text came with the weights."),
    ):
        write_bundle(tmp_path / "bundle", models, own_section(models[0]), name="organ", licence=licence)
        assert (tmp_path / "bundle" / "LICENSE").exists() == (licence is not None)
        assert (tmp_path / "bundle" / "docs" / "data_license.txt").read_text() == "CC-BY-SA 4.0\n"
        assert said in (tmp_path / "bundle" / "docs" / "README.md").read_text()


def test_what_a_bundle_cannot_hold(tmp_path):
    one, other = (load_models(write_model(tmp_path / str(d), dimensions=d)) for d in (2, 3))
    with pytest.raises(ModelError, match="is of another configuration"):
        write_bundle(tmp_path / "bundle", [*one, *other], own_section(one[0]), name="two")
    assert not (tmp_path / "bundle").exists()


def test_its_inferer_gives_all_classes_where_infer_keeps_features(tmp_path):
    from medseg.exchange.bundle_parts import WindowInferer

    labels = {"background": (0,)} | {f"organ_{k}": (k,) for k in range(1, 5)}
    models = load_models(write_model(tmp_path / "model", labels=labels))
    section = own_section(models[0])
    write_bundle(tmp_path / "bundle", models, section, name="organs")
    inferer = WindowInferer(tmp_path / "bundle" / "configs" / "plan.yaml", section.model_dump(mode="json"))
    with torch.inference_mode():
        image = torch.rand(1, 1, 16, 16, 16)
        scores, own = inferer(image, models[0].network), models[0].network(image)
    assert scores.shape == (1, 5, 16, 16, 16)
    torch.testing.assert_close(scores, own, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_monais_command_draws_infers_masks(tmp_path):
    from medseg.exchange.export import Checks, export_bundle

    members = {f"fold_{k}": write_model(tmp_path / str(k), seed=k, licence=b"Mine.\n") for k in range(2)}
    save_ensemble(tmp_path / "model", members)
    images = [
        write_scan(scan(name), tmp_path, case_id=name)[0]
        for name in ("oblique_flipped", "permuted_flipped", "anisotropic")
    ]
    certificate = export_bundle(
        tmp_path / "model", tmp_path / "bundle", checks=Checks(tuple(((image,), None) for image in images))
    )
    assert certificate is not None
    assert (tmp_path / "bundle" / "LICENSE").read_bytes() == b"Mine.\n"
    assert "LICENSE" in json.loads((tmp_path / "bundle" / "export.json").read_text())["files"]
    assert certificate.passed
    assert [case.differing_voxels for case in certificate.cases] == [0, 0, 0]
    assert certificate.summary()["largest_score_difference"] == 0.0

    from medseg.exchange.bundle import run_bundle

    run_bundle(tmp_path / "bundle", tmp_path / "images", tmp_path / "masks", threads=1)
    predictor = medseg.load(tmp_path / "model")
    for image in images:
        own = predictor.predict(image, output=tmp_path / "own.nii.gz")
        assert len(np.unique(own.array)) > 1
        assert (tmp_path / "masks" / image.name).read_bytes() == (tmp_path / "own.nii.gz").read_bytes()


@pytest.mark.slow
def test_monai_verifies_the_network(tmp_path):
    from monai.bundle import verify_net_in_out

    models = load_models(write_model(tmp_path / "model", channels=2))
    write_bundle(tmp_path / "bundle", models, own_section(models[0]), name="organ")
    configs = tmp_path / "bundle" / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        device="cpu",
    )


def test_of_a_dicom_export_a_bundle_takes_each_channels_series_and_the_firsts_grid(tmp_path):
    import torch

    from medseg.exchange.bundle_parts import CaseReader, SaveMaskd, find_scans

    for number, name in enumerate(("flair", "t1"), start=1):
        add_series(tmp_path / "scans" / "p1", number, count=2 + number, modality="MR", description=name)
    rules = {name: SeriesSection(description=name.lower()) for name in ("T1", "FLAIR")}
    plan = plan_for(channels=2)
    channels = tuple(ChannelPlan(name=name, scheme="none", series=rule) for name, rule in rules.items())
    write_plan(tmp_path / "plan.yaml", plan.model_copy(update={"channels": channels}))
    (found,) = find_scans(tmp_path / "scans", tmp_path / "plan.yaml")
    (volume,) = CaseReader(tmp_path / "plan.yaml").read(found["image"])
    own = read_header(tmp_path / "scans" / "p1", series=rules["T1"])
    assert (volume.array.shape, found["case"]) == ((2, *own.shape), "p1")
    mask = SimpleNamespace(as_tensor=lambda: torch.ones((1, *own.shape), dtype=torch.uint8))
    SaveMaskd("pred", tmp_path / "masks")(found | {"pred": mask})
    assert medseg.read_label_map(tmp_path / "masks" / "p1.nii.gz").shape == own.shape
