import json

import pytest

from medseg.cli.plan import main
from medseg.durable import read_json
from tests.experiment import write_experiment


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("plan"), training=4, testing=0)


def shown(experiment, capsys, *flags):
    assert main([*experiment.flags(), "--seconds", "0.01", *flags]) == 0
    return capsys.readouterr().out


def test_before_prepare_noise_is_timed_and_nothing_is_stored(experiment, capsys):
    report = json.loads(shown(experiment, capsys, "--json"))
    assert (experiment.work / "prepared" / "plan.yaml").is_file()
    assert not (experiment.work / "prepared" / "index.json").exists()
    assert report["plan"]["configuration"] == "3d_fullres"
    assert report["time"]["data"] == "noise in the shape of the median case"
    assert report["time"]["steps"] == 8
    assert report["time"]["seconds"] > 0
    parts = (report["memory"][part] for part in ("weights", "step", "overhead", "base"))
    assert sum(parts) == report["memory"]["peak"]


def test_every_value_is_shown_with_its_reason(experiment, capsys):
    text = shown(experiment, capsys)
    for part in (
        "patch_size_xyz",
        "As the config asks",
        "or 2d",
        "memory, predicted",
        "seconds per step",
        "it ends at",
    ):
        assert part in text


@pytest.mark.slow
def test_prepared_data_are_timed_where_they_are(experiment, capsys):
    from medseg.pipelines.prepare import main as prepare

    assert prepare(experiment.flags()) == 0
    capsys.readouterr()
    index = read_json(experiment.work / "prepared" / "index.json")
    assert json.loads(shown(experiment, capsys, "--json"))["time"]["data"] == "prepared data"
    assert "seconds per step" not in shown(experiment, capsys, "--seconds", "0")
    assert read_json(experiment.work / "prepared" / "index.json") == index
    assert main([*experiment.flags(), "--set", "prepare.preset=resenc_m"]) == 2
    assert "prepare.preset: is resenc_m, but the plan was made with plain" in capsys.readouterr().err
    assert "batch_size            1\n" in shown(experiment, capsys, "--seconds", "0", "--set", "prepare.batch_size=1")
