import itertools

import pytest
import torch

from medseg.config.network_sections import UNetSection
from medseg.config.sections import PrepareSection
from medseg.config.train_sections import BudgetSection, EarlyStoppingSection
from medseg.durable import read_json, sha256_file
from medseg.errors import ChangedError, InputError, ModelError, UsageError
from medseg.inference.model import load_model
from medseg.manifest import Case
from medseg.training.architecture import architecture_of
from medseg.training.budget import Forecast
from medseg.training.distributed import Processes
from medseg.training.identity import differences
from medseg.training.inputs import inner_split, prepared_ids, with_overrides
from medseg.training.stage import run_training
from tests.training.small_run import CPU, inputs, plan, with_section, write_prepared


@pytest.fixture
def prepared(tmp_path):
    return write_prepared(tmp_path / "prepared")


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


def test_the_licence_goes_into_the_model_and_changes_no_run(prepared, tmp_path, caplog):
    folder = tmp_path / "runs" / "fold_0"
    calls = itertools.count(1)
    train(inputs(prepared), folder, stop=lambda: next(calls) == 3)
    given = with_section(inputs(prepared, licence=b"Mine.\n", data_licence="CC0"), licence="licence.txt")
    train(given, folder)
    model = load_model(folder / "model")
    assert (folder / "model" / "LICENSE").read_bytes() == b"Mine.\n"
    assert model.info["training"]["data_licence"] == "CC0"
    caplog.clear()
    assert train(given, folder) == []
    assert "licence" not in caplog.text
    assert train(inputs(prepared), folder) == []
    assert load_model(folder / "model").sha256 == model.sha256
    assert (
        "train.licence is not the one the model was saved with, which it keeps; --fresh trains a new one" in caplog.text
    )


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
    def planned(*_, step, **__):
        for number in range(3):
            step(number)
        return Forecast(8)

    monkeypatch.setattr("medseg.training.trainer.planned_steps", planned)
    train(inputs(prepared), tmp_path / "timed")
    monkeypatch.undo()
    train(inputs(prepared), tmp_path / "plain")
    digests = {sha256_file(tmp_path / name / "model" / "weights.safetensors") for name in ("timed", "plain")}
    assert len(digests) == 1


def test_a_stop_while_steps_are_timed_leaves_nothing_behind(prepared, tmp_path):
    given = with_section(inputs(prepared), budget=BudgetSection(minutes=5.0, steps_per_epoch=4))
    folder = tmp_path / "run"
    assert train(given, folder, stop=lambda: True) == []
    assert sorted(path.name for path in folder.iterdir()) == ["run.json"]


def test_a_stop_amid_validation_ends_the_start_and_the_next_one_makes_up_for_it(prepared, tmp_path):
    train(inputs(prepared), tmp_path / "whole")
    done = []
    stopped = train(
        inputs(prepared), tmp_path / "parts", each_step=lambda step, _: done.append(step), stop=lambda: len(done) == 8
    )
    # Asked to stop after step 8, before the epoch's validation, which is not begun.
    assert [(epoch.step, epoch.complete) for epoch in stopped] == [(4, True), (8, False)]
    assert not (tmp_path / "parts" / "model").exists()
    assert [(epoch.step, epoch.complete) for epoch in train(inputs(prepared), tmp_path / "parts")] == [(8, True)]
    digests = {sha256_file(tmp_path / name / "model" / "model.json") for name in ("whole", "parts")}
    assert len(digests) == 1


def test_more_processes_than_samples_are_refused(prepared, tmp_path):
    with pytest.raises(UsageError, match="3 processes share batches of 2 samples"):
        train(inputs(prepared), tmp_path / "run", processes=Processes(0, 3))


def test_cases_set_aside_end_a_run_early_and_are_on_record(prepared, tmp_path):
    given = with_section(
        inputs(prepared, training=("a",), inner=("b",)),
        budget=BudgetSection(steps=80, steps_per_epoch=2),
        early_stopping=EarlyStoppingSection(patience_epochs=1, gain=1.0),
    )
    epochs = train(given, tmp_path / "run")
    # best in epoch 1, since nothing gains 1.0; patience over with epoch 2 after 4 steps, of which a tenth is none: one more
    assert [epoch.step for epoch in epochs] == [2, 4, 5]
    assert all(epoch.inner is not None for epoch in epochs)
    record = load_model(tmp_path / "run" / "model").info["training"]
    assert record["set_aside_cases"] == ["b"]
    assert "no gain on set-aside cases since epoch 1" in record["events"][0]


def test_cases_are_set_aside_by_patient():
    cases = [Case(id=f"{p}{n}", patient=p, images=("x.nii",)) for p in "abcdefghij" for n in (1, 2)]
    kept, aside = inner_split(cases, share=0.2, seed=7)
    assert len(aside) == 4
    assert {case.patient for case in kept}.isdisjoint(case.patient for case in aside)
    assert [case.id for case in cases if case in kept] == [case.id for case in kept]
    assert inner_split(cases, share=0.2, seed=7) == (kept, aside)
    assert any(inner_split(cases, share=0.2, seed=seed)[1] != aside for seed in range(5))
    with pytest.raises(InputError, match=r"has 1 patient\(s\), expected 2 or more"):
        inner_split(cases[:2], share=0.2, seed=7)


def test_weights_to_start_from_are_loaded_and_on_record(prepared, tmp_path):
    train(inputs(prepared), tmp_path / "first")
    weights = tmp_path / "first" / "model"
    given = with_section(inputs(prepared, init_from=weights, seed=6), budget=BudgetSection(steps=1))
    train(given, tmp_path / "second")
    identity = read_json(tmp_path / "second" / "run.json")["identity"]
    assert identity["init_from"] == sha256_file(weights / "weights.safetensors")
    before, after = (
        load_model(weights).network.state_dict(),
        load_model(tmp_path / "second" / "model").network.state_dict(),
    )
    assert all(torch.allclose(before[name], after[name], atol=0.05) for name in before)
    with pytest.raises(InputError, match="no_model holds no weights"):
        train(inputs(prepared, init_from=tmp_path / "no_model"), tmp_path / "third")
