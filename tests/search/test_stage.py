import itertools
import json
from contextlib import contextmanager

import pytest
import torch
from medseg.pipelines import prepare

from medseg.cli import tune
from medseg.config import load_config
from medseg.errors import ChangedError, InputError
from medseg.manifest import load_manifest
from medseg.preparation.store import PreparedData
from medseg.search.halving import Round
from medseg.search.space import candidate_config
from medseg.search.stage import Search, conclusion, run_search
from tests.experiment import write_experiment

CPU = torch.device("cpu")
VALUES = ({}, {"train.optimiser.learning_rate": 0.02}, {"train.optimiser.learning_rate": 1e-6})

ROUNDS = (Round(3, 1e-4), Round(2, 1e-4))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    made = write_experiment(tmp_path_factory.mktemp("search"), training=8, testing=0)
    assert prepare.main([*made.flags(), "--set", "tracking.enabled=false", "--processes", "1"]) == 0
    return made


def search(experiment, folder, values=VALUES, rounds=ROUNDS):
    return Search(
        folder=folder, config_path=experiment.config,
        configs=[candidate_config(experiment.config, (), dict(one)) for one in values], values=values, rounds=rounds,
        manifest=load_manifest(experiment.data / "dataset.json"), prepared=PreparedData.open(experiment.work / "prepared"),
        inner_share=0.25,
    )  # fmt: skip


def test_candidates_never_see_the_held_out_fold_nor_train_on_the_inner_split(experiment, tmp_path):
    given = [search(experiment, tmp_path).inputs(k, 1.0) for k in range(3)]
    held_out = set(experiment.held_out)
    for inputs in given:
        assert not held_out & {*inputs.training, *inputs.validation}
        assert not set(inputs.training) & set(inputs.validation)
        assert (inputs.training, inputs.validation) == (given[0].training, given[0].validation)
    assert len(given[0].validation) == 1  # a quarter of the four patients left
    assert given[0].section.budget.minutes == 1.0


def test_a_search_ends_in_a_config_that_loads(experiment, tmp_path):
    seen = []

    @contextmanager
    def watch(trial):
        seen.append(trial.name)
        yield lambda epoch: None

    results = list(run_search(search(experiment, tmp_path / "tune"), device=CPU, watch=watch))
    assert [result.trial.name for result in results] == seen
    assert [result.trial.round_number for result in results] == [1, 1, 1, 2, 2]
    assert results[3].trial.candidate == 0
    tuned = load_config(tmp_path / "tune" / "winner.yaml")
    assert tuned.name == "small-tuned"
    assert tuned.train.budget.steps == 8  # the experiment's own
    assert (tmp_path / "tune" / tuned.data.manifest).resolve() == (experiment.data / "dataset.json").resolve()
    text = (tmp_path / "tune" / "winner.yaml").read_text()
    assert text.startswith("# medseg train --config tune/winner.yaml\n")
    assert "| the default |" in text
    assert "out-of-fold" in (tmp_path / "tune" / "report.md").read_text()
    before = (tmp_path / "tune" / "winner.yaml").read_bytes()
    again = list(run_search(search(experiment, tmp_path / "tune"), device=CPU, watch=watch))
    assert all(result.kept for result in again)
    assert len(seen) == 5
    assert (tmp_path / "tune" / "winner.yaml").read_bytes() == before


def test_a_stopped_search_goes_on(experiment, tmp_path):
    calls = itertools.count(1)
    one = search(experiment, tmp_path)
    first = list(run_search(one, device=CPU, stop=lambda: next(calls) == 2))
    assert len(first) < 5
    assert not (tmp_path / "winner.yaml").exists()
    second = list(run_search(one, device=CPU))
    assert [result.kept for result in second].count(True) == len(first)
    assert (tmp_path / "winner.yaml").exists()


def test_a_candidate_that_cannot_be_trained_fails_alone(experiment, tmp_path, monkeypatch):
    one = search(experiment, tmp_path, values=VALUES[:2], rounds=(Round(2, 1e-4),))
    inputs = Search.inputs

    def refused(self, candidate, minutes):
        if candidate == 1:
            raise InputError("features has 3 stages, the plan 2")
        return inputs(self, candidate, minutes)

    monkeypatch.setattr(Search, "inputs", refused)
    results = list(run_search(one, device=CPU))
    assert [result.dice is None for result in results] == [False, True]
    assert "features" in str(results[1].failure)
    assert "keep it" in (tmp_path / "report.md").read_text()


def test_a_default_that_fails_ends_the_search(experiment, tmp_path, monkeypatch):
    one = search(experiment, tmp_path)
    monkeypatch.setattr(Search, "inputs", lambda *_: (_ for _ in ()).throw(InputError("nothing to train on")))
    with pytest.raises(InputError, match=r"can't be trained \(nothing to train on\)"):
        list(run_search(one, device=CPU))


def test_another_search_in_the_same_folder_is_refused(experiment, tmp_path):
    list(run_search(search(experiment, tmp_path, rounds=(Round(3, 1e-4),)), device=CPU))
    other = search(experiment, tmp_path, rounds=(Round(3, 2e-4),))
    with pytest.raises(ChangedError, match="tune: rounds is not what the search began with"):
        list(run_search(other, device=CPU))
    assert all(result.kept for result in run_search(other, device=CPU, allow_changed=True))


def test_the_conclusion_says_who_won():
    assert conclusion(0, 0.8, 0.8) == "No candidate was better than the config as it is (inner Dice 0.8000): keep it."
    assert "+0.0100" in conclusion(3, 0.81, 0.8)


def test_the_verb(experiment, tmp_path, capsys, monkeypatch):
    space = tmp_path / "space.yaml"
    space.write_text("train.optimiser.learning_rate: {log: [1e-3, 1e-2]}\n")
    monkeypatch.setattr("medseg.search.halving._LEAST_MINUTES", 0)
    flags = [*experiment.flags(), "--space", str(space), "--minutes", "0.001", "--candidates", "2"]
    flags += ["--set", "tracking.enabled=false"]
    assert tune.main(flags) == 0
    printed = capsys.readouterr()
    assert "winner.yaml: written" in printed.out
    assert "round 1 candidate 01: inner Dice" in printed.err
    assert json.loads((experiment.work / "tune" / "results.json").read_text())["format"] == 1
    assert tune.main([*flags, "--inner-share", "0.9"]) == 2
    assert tune.main([*flags, "--fresh"]) == 0
    assert (experiment.work / "tune-2" / "winner.yaml").exists()
