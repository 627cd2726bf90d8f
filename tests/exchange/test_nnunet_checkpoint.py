import os
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.errors import ModelError
from medseg.exchange.nnunet_checkpoint import read_checkpoint


def content(**changes):
    return {
        "network_weights": {"a.weight": torch.ones(2, 3)},
        "logging": {"ema_fg_dice": [np.float32(0.5), np.float64(0.5)], "lrs": [0.01]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 12,
        "init_args": {"configuration": "2d", "fold": 0, "device": torch.device("cpu"), "plans": {"a": [1]}},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    } | changes


def saved(folder, value):
    torch.save(value, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


def test_what_a_model_needs_is_read(tmp_path):
    read = read_checkpoint(saved(tmp_path, content()), "fold_0")
    assert (read.trainer, read.configuration, read.mirror_axes, read.epoch) == ("nnUNetTrainer", "2d", (0, 1), 12)
    assert torch.equal(read.weights["a.weight"], torch.ones(2, 3))
    assert read_checkpoint(saved(tmp_path, content(inference_allowed_mirroring_axes=None)), "x").mirror_axes == ()


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_code_is_refused_by_name_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, content(optimizer_state=RunsCode()))
    with pytest.raises(ModelError, match=r"fold_0: would run (posix|nt)\.system when it is loaded"):
        read_checkpoint(path, "fold_0")
    assert not Path("ran").exists()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match=r"x: is no whole checkpoint that torch can read safely"):
        read_checkpoint(path, "x")
    with pytest.raises(ModelError, match=r"x: is no nnU-Net v2 checkpoint \(KeyError 'network_weights'\)"):
        read_checkpoint(saved(tmp_path, {"state_dict": {}}), "x")
    with pytest.raises(ModelError, match=r"x: holds no nnU-Net checkpoint"):
        read_checkpoint(saved(tmp_path, [torch.ones(1)]), "x")
    for weights in ({}, {"a": torch.eye(2).to_sparse()}, {"a": torch.ones(2, device="meta")}, {"a": 1}):
        with pytest.raises(ModelError, match=r"x: is no nnU-Net v2 checkpoint \(ValueError network_weights\)"):
            read_checkpoint(saved(tmp_path, content(network_weights=weights)), "x")
    with pytest.raises(ModelError, match=r"x: is no nnU-Net v2 checkpoint \(OverflowError"):
        read_checkpoint(saved(tmp_path, content(inference_allowed_mirroring_axes=(float("inf"),))), "x")
