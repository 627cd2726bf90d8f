"""ONNX model folders: the same masks through onnxruntime, sizes left free, and what is refused."""

import json
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch

import medseg
from medseg.errors import ModelError
from medseg.exchange.onnx import _versions
from medseg.inference.model import load_model, load_models, save_ensemble
from medseg.inference.onnx_network import OnnxNetwork, backend_folder, is_onnx_folder
from tests.inference.stand_ins import write_model
from tests.synthetic import scan, write_scan


def test_the_backend_decides_on_the_folder(tmp_path):
    folder = write_model(tmp_path / "model")
    assert not is_onnx_folder(folder)
    assert backend_folder(folder, None) == backend_folder(folder, "torch") == folder
    with pytest.raises(ModelError, match=r"has no ONNX network .*; make it with: medseg export"):
        backend_folder(folder, "onnxruntime")
    inner = folder / "onnx"
    inner.mkdir()
    (inner / "model.json").write_text(json.dumps({"onnx": {"source_sha256": "0" * 64}}))
    with pytest.raises(ModelError, match="its ONNX network is of another model"):
        backend_folder(folder, "onnxruntime")
    (inner / "model.json").write_text(json.dumps({"onnx": {"source_sha256": load_model(folder).sha256}}))
    assert backend_folder(folder, "onnxruntime") == inner
    assert backend_folder(inner, None) == inner
    with pytest.raises(ModelError, match="expected weights for --backend torch"):
        backend_folder(inner, "torch")


def test_versions_name_the_onnxruntime_that_is_there(monkeypatch):
    def only_for_gpus(name):
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr("medseg.exchange.onnx.version", only_for_gpus)
    found = dict(_versions())
    assert found["onnxruntime-gpu"] == "1.2"
    assert "onnxruntime" not in found


@pytest.mark.slow
def test_masks_are_those_of_torch(tmp_path):
    from medseg.cli.main import main

    folder = write_model(tmp_path / "model", licence=b"Mine.\n")
    image, _ = write_scan(scan("oblique_flipped"), tmp_path)
    arguments = ["export", str(folder), "--onnx", str(folder / "onnx"), "--cases", str(image)]
    assert main(arguments) == 0
    assert main(arguments) == 0  # is there already
    certificate = json.loads((folder / "onnx" / "parity.json").read_text())
    assert certificate["passed"]
    assert certificate["differing_voxels"] == 0
    assert certificate["networks"][0]["free"] == "batch and sizes"
    assert certificate["networks"][0]["score_difference"] < 1e-4
    exported = load_model(folder / "onnx")
    assert (folder / "onnx" / "LICENSE").read_bytes() == b"Mine.\n"
    assert "LICENSE" in exported.info["files"]
    assert isinstance(exported.network, OnnxNetwork)
    image_batch = torch.randn(3, 1, 6, 10, 8)  # sizes that the export has not seen
    with torch.inference_mode():
        own = load_model(folder).network(image_batch)
    torch.testing.assert_close(exported.network(image_batch), own, atol=1e-4, rtol=1e-4)

    flags = ["infer", str(image), "--model", str(folder)]
    assert main([*flags, "--output", str(tmp_path / "torch")]) == 0
    assert main([*flags, "--output", str(tmp_path / "onnx"), "--backend", "onnxruntime"]) == 0
    masks = [medseg.read_label_map(tmp_path / name / "case.nii.gz").array for name in ("torch", "onnx")]
    assert len(np.unique(masks[0])) == 3
    np.testing.assert_array_equal(*masks)

    (folder / "onnx" / "network.onnx").write_bytes(b"other bytes")
    with pytest.raises(ModelError, match=r"network\.onnx does not have its checksum"):
        load_model(folder / "onnx")


@pytest.mark.slow
def test_ensembles_of_pictures_in_8_bits(tmp_path):
    from medseg.exchange.export import Checks, export_networks

    members = {f"fold_{k}": write_model(tmp_path / str(k), seed=k, dimensions=2) for k in range(2)}
    save_ensemble(tmp_path / "model", members)
    certificate = export_networks(tmp_path / "model", tmp_path / "light", int8=True, checks=Checks())
    assert certificate is not None
    assert not certificate.limited
    assert len(certificate.facts["networks"]) == 2
    loaded = load_models(tmp_path / "light")
    assert [model.folder.name for model in loaded] == ["fold_0", "fold_1"]
    assert loaded[0].info["onnx"]["int8"] is True
    with pytest.raises(ModelError, match="holds ONNX networks already"):
        export_networks(tmp_path / "light", tmp_path / "again", int8=False, checks=Checks())


@pytest.mark.slow
def test_folds_of_a_cascade_share_their_first_stage(tmp_path):
    from medseg.exchange.export import Checks, export_networks

    members = {
        f"fold_{k}": write_model(
            tmp_path / str(k), seed=10 + k, previous_channels=2,
            previous={f"fold_{k}": write_model(tmp_path / f"low_{k}", seed=k)},
        )
        for k in range(2)
    }  # fmt: skip
    save_ensemble(tmp_path / "model", members)
    certificate = export_networks(tmp_path / "model", tmp_path / "onnx", int8=False, checks=Checks())
    assert certificate is not None
    assert certificate.passed
    assert len(certificate.facts["networks"]) == 4
    loaded = load_models(tmp_path / "onnx")
    assert [len(model.previous) for model in loaded] == [2, 2]
    assert all(isinstance(one.network, OnnxNetwork) for model in loaded for one in (model, *model.previous))
