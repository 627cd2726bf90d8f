import itertools
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from medseg.pipelines import prepare

from medseg.cli import pretrain
from medseg.config import load_config
from medseg.durable import read_json, sha256_file
from medseg.errors import InputError, ModelError
from medseg.inference.model import load_model
from medseg.manifest import load_manifest
from medseg.networks.build import build_network
from medseg.networks.weights import load_matching
from medseg.training.batch import Batch
from medseg.training.losses import supervised_value
from medseg.training.pretraining import (
    MaskedBatches,
    PretrainTrainer,
    ReconstructionLoss,
    block_size,
    draw_mask,
    head_tensors,
    pretraining_data,
    pretraining_inputs,
    restoring,
)
from medseg.training.stage import run_training
from tests.experiment import write_experiment

CPU = torch.device("cpu")
UNET = {
    "kind": "unet", "dimensions": 3, "channels": 2, "classes": 5, "features": [2, 4, 4], "strides": [[1] * 3, [2] * 3, [2] * 3],
    "kernel_sizes": [[3] * 3] * 3,
}  # fmt: skip


def test_masks_are_blocks_of_the_stated_share():
    size = (24, 36, 30)
    assert block_size(size) == (4, 6, 5)
    mask = draw_mask(size, seed=1, k=7)
    assert mask.shape == size
    blocks = mask.reshape(6, 4, 6, 6, 6, 5).permute(0, 2, 4, 1, 3, 5).flatten(3)
    assert bool((blocks.all(-1) == blocks.any(-1)).all())
    assert int(blocks.all(-1).sum()) == round(0.6 * 6**3)
    assert torch.equal(mask, draw_mask(size, seed=1, k=7))
    assert not torch.equal(mask, draw_mask(size, seed=1, k=8))
    assert not torch.equal(mask, draw_mask(size, seed=2, k=7))


def test_sizes_that_are_no_multiple_of_the_block_are_covered():
    assert block_size((3, 17, 256)) == (3, 4, 43)
    assert draw_mask((3, 17, 256), 0, 0).shape == (3, 17, 256)


def test_the_input_is_blotted_out_and_the_target_is_whole():
    images = torch.randn(2, 3, 12, 12)
    batch = MaskedBatches(lambda _: Batch(images, torch.zeros(2, 12, 12), ("a", "b")), seed=3)(4)
    mask = batch.classes[:, -1:] == 1
    torch.testing.assert_close(batch.classes[:, :-1], images)
    assert bool((batch.images[mask.expand_as(images)] == 0).all())
    torch.testing.assert_close(batch.images.where(~mask, images), images)
    assert torch.equal(mask[1, 0], draw_mask((12, 12), 3, 4 * 2 + 1))


def test_the_loss_counts_blotted_out_voxels_only():
    target = torch.zeros(1, 2, 4)
    mask = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    restored = torch.tensor([[[1.0, 0.0, 9.0, 9.0], [0.0, 2.0, 9.0, 9.0]]])
    loss = ReconstructionLoss()
    sums = loss.sums(restored, torch.cat((target, mask), dim=1))
    assert sums.tolist() == [5.0, 4.0]
    assert supervised_value(sums[None], loss).item() == pytest.approx(1.25)
    assert loss.value(torch.zeros(2)).item() == 0


def test_the_sums_of_parts_are_those_of_the_whole():
    logits, classes = torch.randn(4, 1, 6, 6), torch.cat((torch.randn(4, 1, 6, 6), torch.rand(4, 1, 6, 6).round()), 1)
    loss = ReconstructionLoss()
    parts = sum(loss.sums(logits[i : i + 1], classes[i : i + 1]) for i in range(4))
    torch.testing.assert_close(parts, loss.sums(logits, classes))


def test_heads_are_found_and_the_rest_fits_the_segmentation_network():
    architecture = restoring(UNET | {"deep_supervision": True})
    assert (architecture["classes"], architecture["deep_supervision"]) == (2, False)
    own, heads = build_network(architecture).state_dict(), head_tensors(architecture)
    assert heads
    segmentation = build_network(UNET).state_dict()
    assert {n for n in own if n in segmentation and own[n].shape == segmentation[n].shape} == set(own) - heads


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    made = write_experiment(tmp_path_factory.mktemp("pretrain"), training=6, testing=2)
    assert prepare.main([*made.flags(), "--set", "tracking.enabled=false", "--processes", "1"]) == 0
    content = json.loads((made.data / "dataset.json").read_text())
    cases = [{key: case[key] for key in ("id", "image")} for case in (*content["training"], *content["testing"])]
    (made.data / "unlabelled.json").write_text(json.dumps(content | {"training": cases, "testing": []}))
    return made


def data(experiment, output):
    config, manifest = load_config(experiment.config), load_manifest(experiment.data / "unlabelled.json")
    prepared = pretraining_data(
        config,
        manifest,
        plan_folder=experiment.work / "prepared",
        output=output,
        data_root=experiment.data,
        processes=1,
    )
    return config, prepared


def test_scans_without_labels_are_prepared_once_and_by_the_plan(experiment, tmp_path):
    _, prepared = data(experiment, tmp_path)
    assert len(prepared.cases) == 8
    assert not any(case.has_labels for case in prepared.cases.values())
    times = {case.path: case.path.stat().st_mtime_ns for case in prepared.cases.values()}
    _, again = data(experiment, tmp_path)
    assert again.sha256 == prepared.sha256
    assert {case.path: case.path.stat().st_mtime_ns for case in again.cases.values()} == times


def test_a_bad_scan_is_left_out(experiment, tmp_path, caplog):
    manifest = load_manifest(experiment.data / "unlabelled.json")
    (tmp_path / "images").mkdir()
    for case in manifest.training[1:]:
        (tmp_path / case.images[0]).symlink_to(experiment.data / case.images[0])
    (tmp_path / manifest.training[0].images[0]).write_bytes(b"no scan")
    config = load_config(experiment.config)
    prepared = pretraining_data(
        config, manifest, plan_folder=experiment.work / "prepared", output=tmp_path / "p", data_root=tmp_path,
        allow_outside=True, processes=1,
    )  # fmt: skip
    assert len(prepared.cases) == 7
    assert "it is left out" in caplog.text


def test_a_plan_and_its_channels_are_needed(experiment, tmp_path):
    config, manifest = load_config(experiment.config), load_manifest(experiment.data / "unlabelled.json")
    with pytest.raises(InputError, match=r"holds no plan\.yaml"):
        pretraining_data(config, manifest, plan_folder=tmp_path, output=tmp_path, data_root=experiment.data)


def train(experiment, folder, **more):
    config, prepared = data(experiment, folder.parent / "prepared")
    inputs = pretraining_inputs(config, prepared, manifest_sha256="0" * 64, minutes=None)
    arguments = {"device": CPU, "elapsed_seconds": lambda: 0.0, "make_trainer": PretrainTrainer}
    return list(run_training(inputs, folder, **arguments, **more))


def test_pretraining_lowers_its_loss_resumes_and_starts_a_network(experiment, tmp_path):
    epochs = train(experiment, tmp_path / "whole")
    assert epochs[-1].step == 8
    assert np.isfinite(epochs[-1].train_loss)
    calls = itertools.count(1)
    train(experiment, tmp_path / "parts", stop=lambda: next(calls) == 3)
    assert not (tmp_path / "parts" / "model").exists()
    train(experiment, tmp_path / "parts")
    files = [tmp_path / name / "model" / "weights.safetensors" for name in ("whole", "parts")]
    assert sha256_file(files[0]) == sha256_file(files[1])
    about = read_json(tmp_path / "whole" / "model" / "model.json")
    assert about["training"]["cases"] == 8
    network = build_network({**about["architecture"], "classes": 3})
    report = load_matching(network, tmp_path / "whole" / "model")
    assert not report.skipped
    assert set(report.untouched) == set(about["left_out"])
    first = next(iter(safetensors.torch.load_file(files[0])))
    torch.testing.assert_close(network.state_dict()[first], safetensors.torch.load_file(files[0])[first])
    with pytest.raises(ModelError, match=r"describes no medseg model"):
        load_model(tmp_path / "whole" / "model")


def test_the_verb(experiment, capsys):
    flags = [*experiment.flags(), "--unlabelled", str(experiment.data / "unlabelled.json"), "--processes", "1"]
    flags += ["--set", "tracking.enabled=false"]
    assert pretrain.main(flags) == 0
    assert "pretrained on 8 scans" in capsys.readouterr().out
    assert (experiment.work / "pretraining" / "run" / "model" / "weights.safetensors").is_file()
    assert pretrain.main(flags) == 0
