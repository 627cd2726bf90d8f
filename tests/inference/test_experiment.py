"""What a config asks for: cases, folders, models."""

from pathlib import Path

import pytest

from medseg.config.sections import InferSection
from medseg.errors import ModelError, UsageError
from medseg.inference.experiment import experiment_cases, experiment_models, own_section
from medseg.inference.model import load_model
from medseg.manifest import Case, Channel, Manifest
from tests.inference.stand_ins import LABELS, write_model


@pytest.fixture
def manifest(tmp_path):
    training = tuple(Case(id=f"c{n}", patient=f"c{n}", images=(f"c{n}.nii",), fold=n % 2) for n in range(4))
    testing = (Case(id="t", patient="t", images=("t.nii",)),)
    for case in (*training, *testing):
        (tmp_path / case.images[0]).write_bytes(b"")
    return Manifest(
        name="set",
        licence="CC0-1.0",
        channels=(Channel(name="MR"),),
        labels=LABELS,
        training=training,
        testing=testing,
        path=Path("set.json"),
    )


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ("validation", {"fold_1": ["c1", "c3"]}),
        ("testing", {"testing": ["t"]}),
        ("all", {"fold_1": ["c1", "c3"], "testing": ["t"]}),
    ],
)
def test_cases_and_their_folders(tmp_path, manifest, cases, expected):
    found = experiment_cases(InferSection(cases=cases), manifest, fold=1, data_root=tmp_path)
    assert {name: [case.id for case in chosen] for name, chosen in found.items()} == expected
    assert all(case.fault is None for chosen in found.values() for case in chosen)


def test_a_fold_without_cases_is_refused(tmp_path, manifest):
    with pytest.raises(UsageError, match=r"set\.json has no case for fold_7"):
        experiment_cases(InferSection(), manifest, fold=7, data_root=tmp_path)


def test_no_fold_means_no_held_out_case(tmp_path, manifest):
    with pytest.raises(UsageError, match=r"data.fold is null"):
        experiment_cases(InferSection(), manifest, fold=None, data_root=tmp_path)


def test_models_are_those_of_the_newest_run(tmp_path):
    (tmp_path / "runs" / "fold_0-2").mkdir(parents=True)
    assert experiment_models(InferSection(), work=tmp_path, fold=0) == (tmp_path / "runs" / "fold_0-2" / "model",)
    several = InferSection(cases="testing", ensemble=(0, 1))
    assert [path.parent.name for path in experiment_models(several, work=tmp_path, fold=0)] == ["fold_0-2", "fold_1"]


@pytest.mark.parametrize("cases", ["validation", "all"])
def test_an_ensemble_never_predicts_what_it_was_trained_on(tmp_path, cases):
    with pytest.raises(UsageError, match="were trained on the held-out cases of fold 0"):
        experiment_models(InferSection(cases=cases, ensemble=(0, 1)), work=tmp_path, fold=0)
    assert len(experiment_models(InferSection(cases=cases, ensemble=(0,)), work=tmp_path, fold=0)) == 1


def test_a_model_brings_its_own_settings(tmp_path):
    model = load_model(write_model(tmp_path / "model", infer={"overlap": 0.25}))
    assert own_section(model).overlap == 0.25


def test_a_foreign_config_in_a_model_folder_is_refused(tmp_path):
    model = load_model(write_model(tmp_path / "model", infer={"overlap": "much"}))
    with pytest.raises(ModelError, match=r"model: config.yaml can't be read"):
        own_section(model)
