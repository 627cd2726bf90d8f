import itertools

import pytest

from medseg.config.train_sections import BudgetSection
from medseg.durable import read_json, sha256_file
from medseg.errors import ChangedError, UsageError
from medseg.inference.model import load_model
from medseg.training import stage
from medseg.training.budget import Forecast
from medseg.training.stage import run_training
from tests.training.small_run import CPU, inputs, with_section, write_prepared


@pytest.fixture
def prepared(tmp_path):
    return write_prepared(tmp_path / "prepared")


def of_steps(prepared, steps):
    return with_section(inputs(prepared), budget=BudgetSection(steps=steps, steps_per_epoch=4))


def train(given, folder, **arguments):
    return [epoch.step for epoch in run_training(given, folder, device=CPU, elapsed_seconds=lambda: 1.0, **arguments)]


def test_a_finished_run_is_trained_on_to_a_larger_budget(prepared, tmp_path):
    folder = tmp_path / "run"
    assert train(of_steps(prepared, 8), folder) == [4, 8]
    former = sha256_file(folder / "model" / "weights.safetensors")
    assert train(of_steps(prepared, 14), folder, extend=True) == [12, 14]
    info = load_model(folder / "model").info["training"]
    assert info["steps"] == 14
    assert info["events"] == ["step 8: extended by 6 steps"]
    assert [record["step"] for record in info["history"]] == [4, 8, 12, 14]
    assert sha256_file(folder / "model_8_steps" / "weights.safetensors") == former
    # the same command again finds it done, with the flag or without
    assert train(of_steps(prepared, 14), folder, extend=True) == []
    assert train(of_steps(prepared, 14), folder) == []
    assert len(read_json(folder / "run.json")["changes"]) == 1


def test_the_extension_starts_the_schedule_anew(prepared, tmp_path):
    folder = tmp_path / "run"
    train(of_steps(prepared, 8), folder)
    rates = [
        epoch.learning_rate
        for epoch in run_training(of_steps(prepared, 48), folder, device=CPU, elapsed_seconds=lambda: 1.0, extend=True)
    ]
    assert rates[0] > 0.9 * 0.01
    assert rates[-1] < 0.01 * 0.01


def test_another_budget_without_the_flag_is_refused_with_a_hint(prepared, tmp_path):
    train(of_steps(prepared, 8), tmp_path / "run")
    with pytest.raises(ChangedError, match=r"train\.budget\.steps: was 8, is 14\n.*use --extend"):
        train(of_steps(prepared, 14), tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.json").exists()


def test_an_extension_is_no_way_past_other_changes(prepared, tmp_path):
    train(of_steps(prepared, 8), tmp_path / "run")
    other = with_section(of_steps(prepared, 14), foreground_share=0.5)
    with pytest.raises(ChangedError, match=r"train\.foreground_share"):
        train(other, tmp_path / "run", extend=True)


def test_a_budget_that_is_no_larger_is_refused(prepared, tmp_path):
    train(of_steps(prepared, 8), tmp_path / "run")
    with pytest.raises(UsageError, match=r"has 8 steps and .* minutes behind it, expected a budget beyond that"):
        train(of_steps(prepared, 6), tmp_path / "run", extend=True)
    assert (tmp_path / "run" / "model" / "model.json").exists()


def test_an_unfinished_run_is_not_extended(prepared, tmp_path):
    calls = itertools.count(1)
    train(of_steps(prepared, 8), tmp_path / "run", stop=lambda: next(calls) == 3)
    with pytest.raises(UsageError, match="is at step 3 of 8, expected a finished run"):
        train(of_steps(prepared, 14), tmp_path / "run", extend=True)
    assert train(of_steps(prepared, 8), tmp_path / "run") == [4, 8]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["_set_model_aside", "save_state", "record_identity", "steps"])
def test_an_extension_that_was_killed_goes_on_to_the_same_weights(prepared, tmp_path, monkeypatch, moment):
    for name in ("whole", "parts"):
        train(of_steps(prepared, 8), tmp_path / name)
    train(of_steps(prepared, 14), tmp_path / "whole", extend=True)

    def killed(*_, **__):
        raise Killed("now")

    if moment == "steps":
        calls = itertools.count(1)
        train(of_steps(prepared, 14), tmp_path / "parts", extend=True, stop=lambda: next(calls) == 2)
    else:
        monkeypatch.setattr(stage, moment, killed)
        with pytest.raises(Killed, match="now"):
            train(of_steps(prepared, 14), tmp_path / "parts", extend=True)
        monkeypatch.undo()
    train(of_steps(prepared, 14), tmp_path / "parts", extend=True)
    digests = {sha256_file(tmp_path / name / "model" / "weights.safetensors") for name in ("whole", "parts")}
    assert len(digests) == 1
    assert read_json(tmp_path / "parts" / "run.json")["identity"]["train"]["budget"]["steps"] == 14


def test_minutes_are_extended_by_what_they_are_more(prepared, tmp_path, monkeypatch):
    def minutes(count):
        return with_section(inputs(prepared), budget=BudgetSection(minutes=count, steps_per_epoch=4))

    asked = []

    def planned(section, *, done, spent_seconds, **_):
        asked.append((section.budget.minutes, done, spent_seconds()))
        return Forecast(4)

    monkeypatch.setattr("medseg.training.trainer.planned_steps", planned)
    train(minutes(1.0), tmp_path / "run")
    train(minutes(2.0), tmp_path / "run", extend=True)
    assert [(entry[0], entry[1]) for entry in asked] == [(1.0, 0), (2.0, 4)]
    assert asked[0][2] == 1.0  # the command's start
    assert asked[1][2] > 2.0  # what the first part took, and this command's start
