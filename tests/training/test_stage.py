import itertools

import numpy as np
import pytest
import torch

from medseg.config.network_sections import UNetSection
from medseg.config.sections import PrepareSection
from medseg.config.train_sections import BudgetSection, OptimiserSection, TrainSection, ValidationSection
from medseg.durable import read_json, sha256_file
from medseg.errors import ChangedError, InputError, ModelError
from medseg.inference.model import load_model
from medseg.manifest import Case
from medseg.preparation.grid import Grid, rows_of
from medseg.preparation.plan import ChannelPlan, Plan
from medseg.preparation.store import PreparedData, StoredCase, case_path
from medseg.preparation.writing import write_case
from medseg.training.identity import differences
from medseg.training.inputs import TrainingInputs, architecture_of, prepared_ids, with_overrides
from medseg.training.stage import run_training

CPU = torch.device("cpu")
CASES = ("a", "b", "c")


def plan():
    return Plan(
        dimensions=3, orientation="RAS", spacing_xyz_mm=(1.0, 1.0, 1.0), median_shape_xyz=(12, 12, 8),
        patch_size_xyz=(8, 8, 8), batch_size=2, channels=(ChannelPlan(name="MR", scheme="none"),),
        labels={"background": (0,), "organ": (1,)}, features=(4, 8), strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3), (3, 3, 3)), batch_dice=True, stored_dtype="float32", fingerprint_sha256="0" * 64,
    )  # fmt: skip


def grid(shape):
    unit = rows_of(np.eye(4))
    return Grid(
        original_shape=shape, original_affine=unit, permutation=(0, 1, 2), flips=(False, False, False),
        crop_start=(0, 0, 0), crop_stop=shape, spacing_xyz_mm=(1.0, 1.0, 1.0), prepared_shape=shape, prepared_affine=unit,
        prepared_spacing_xyz_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip


@pytest.fixture
def prepared(tmp_path):
    cases = {}
    for number, name in enumerate(CASES):
        rng = np.random.default_rng(number)
        labels = np.zeros((12, 12, 8), np.uint8)
        labels[2 + number : 8 + number, 3:9, 2:6] = 1
        image = (labels + 0.1 * rng.normal(size=labels.shape)).astype(np.float32)[None]
        path = case_path(tmp_path / "prepared", name, f"key{number}")
        write_case(
            path, image=image, labels=labels, grid=grid(labels.shape), dtype="float32",
            locations={1: np.flatnonzero(labels == 1)},
        )  # fmt: skip
        cases[name] = StoredCase(name, path)
    return PreparedData(tmp_path / "prepared", plan(), cases, "f" * 64)


def inputs(prepared, **changes):
    section = TrainSection(
        budget=BudgetSection(steps=8, steps_per_epoch=4),
        optimiser=OptimiserSection(learning_rate=0.01),
        validation=ValidationSection(cases=1),
        precision="float32",
    )
    values = {
        "prepared": prepared, "training": ("a", "b"), "validation": ("c",), "network": UNetSection(features=(2, 4)),
        "section": section, "seed": 5, "fold": 0, "config_text": "name: x\n", "manifest_sha256": "0" * 64,
    }  # fmt: skip
    return TrainingInputs(**(values | changes))


def train(given, folder, **arguments):
    return list(run_training(given, folder, device=CPU, elapsed_seconds=lambda: 0.0, **arguments))


def test_a_run_ends_in_a_model_that_loads(prepared, tmp_path):
    folder = tmp_path / "runs" / "fold_0"
    epochs = train(inputs(prepared), folder)
    assert [epoch.step for epoch in epochs] == [4, 8]
    assert set(epochs[-1].validation) == {"organ"}
    model = load_model(folder / "model")
    assert model.class_names == ("background", "organ")
    assert model.mirror_axes_xyz == (0, 1, 2)
    assert model.info["training"]["steps"] == 8
    assert model.network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)
    assert train(inputs(prepared), folder) == []


def test_a_stopped_run_goes_on_to_the_same_model(prepared, tmp_path):
    train(inputs(prepared), tmp_path / "whole")
    calls = itertools.count(1)
    stopped = train(inputs(prepared), tmp_path / "parts", stop=lambda: next(calls) == 3)
    assert [(epoch.step, epoch.complete) for epoch in stopped] == [(3, False)]
    assert not (tmp_path / "parts" / "model").exists()
    train(inputs(prepared), tmp_path / "parts")
    for name in ("weights.safetensors", "model.json"):
        assert sha256_file(tmp_path / "parts" / "model" / name) == sha256_file(tmp_path / "whole" / "model" / name)


def test_what_changed_is_listed_and_refused_unless_allowed(prepared, tmp_path):
    calls = itertools.count(1)
    train(inputs(prepared), tmp_path / "run", stop=lambda: next(calls) == 2)
    other = inputs(prepared, seed=6, training=("a",))
    with pytest.raises(ChangedError, match="seed: was 5, is 6") as caught:
        train(other, tmp_path / "run")
    assert any("training cases.b: was b.key1, is absent" in fault for fault in caught.value.faults)
    train(other, tmp_path / "run", allow_changed=True)
    assert len(read_json(tmp_path / "run" / "run.json")["changes"]) == 1


def test_a_damaged_model_is_refused_by_name(prepared, tmp_path):
    train(inputs(prepared), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"weights\.safetensors does not have its checksum"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"weights\.safetensors is missing"):
        load_model(folder)
    (folder / "model.json").write_text('{"kind": "medseg model", "format": 99}')
    with pytest.raises(ModelError, match="has model format 99, this medseg reads 1"):
        load_model(folder)
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        load_model(tmp_path)


def test_config_goes_before_plan(prepared):
    architecture = architecture_of(UNetSection(features=(2, 4), norm="batch"), plan())
    assert architecture["features"] == [2, 4]
    assert architecture["strides"] == [[1, 1, 1], [2, 2, 2]]
    assert architecture["norm"] == "batch"
    with pytest.raises(InputError, match="features has 3 stages, the plan 2"):
        architecture_of(UNetSection(features=(2, 4, 8)), plan())
    changed = with_overrides(prepared, PrepareSection(batch_size=7))
    assert (changed.plan.batch_size, changed.plan.patch_size_xyz) == (7, (8, 8, 8))


def test_cases_that_were_not_prepared_are_named(prepared):
    cases = [Case(id=name, patient=name, images=("x.nii",)) for name in ("a", "z")]
    with pytest.raises(InputError, match=r"1 of 2 cases of the manifest are not in it \(z\)"):
        prepared_ids(prepared, cases, skip=False)
    assert prepared_ids(prepared, cases, skip=True) == ("a",)


def test_without_training_cases_nothing_starts(prepared, tmp_path):
    with pytest.raises(InputError, match="leave no case to train on"):
        train(inputs(prepared, training=()), tmp_path / "run")


def test_differences_are_named_by_their_path():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}) == [
        "a.c: was 2, is 4",
        "d: was 3, is absent",
        "e: was absent, is 5",
    ]


def test_a_plan_of_minutes_undoes_its_timed_steps(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.training.stage.planned_steps", lambda *_, step, **__: [step(n) for n in range(3)] and 8)
    train(inputs(prepared), tmp_path / "timed")
    monkeypatch.undo()
    train(inputs(prepared), tmp_path / "plain")
    digests = {sha256_file(tmp_path / name / "model" / "weights.safetensors") for name in ("timed", "plain")}
    assert len(digests) == 1
