import json

import pytest

from medseg.evaluation.matching import CasePaths
from medseg.report.facts import gather_facts, learning_curves, plain_text
from medseg.runner.sidecar import Origin, write_sidecar


def model(folder, **more):
    folder.mkdir(parents=True)
    content = {"kind": "medseg model", "architecture": {"kind": "unet"}, "versions": {"torch": "2"}} | more
    (folder / "model.json").write_text(json.dumps(content))
    return folder


def test_the_masks_the_model_and_its_curves(tmp_path):
    history = [{"step": 4, "train_loss": 1.5, "validation": {"organ": 0.5}}, {"step": 8, "validation": {"organ": None}}]
    folder = model(tmp_path / "model", training={"fold": 1, "steps": 8, "history": history})
    mask = tmp_path / "a.nii.gz"
    mask.write_bytes(b"x")
    write_sidecar(mask, Origin(inputs={}, settings={"models": "0123"}), versions={"device": "cpu"})
    pairs = [
        CasePaths(case_id="a", prediction=mask, reference=None),
        CasePaths(case_id="b", prediction=None, reference=None),
    ]
    facts = gather_facts(pairs, models=[folder, tmp_path / "none"], plan=None)
    assert facts.predictions == [
        ("masks with a record of their making", "1 of 1"),
        ("models", "0123"),
        ("device", "cpu"),
    ]
    assert ("network", "unet") in facts.models[0]
    assert ("fold", "1") in facts.models[0]
    assert facts.histories == [("fold 1", {"training loss": [(4, 1.5)], "Dice organ": [(4, 0.5)]})]
    assert facts.notes == [
        "The masks were made by another model than the one described here: its checksum is not among theirs."
    ]
    assert not any(str(tmp_path) in value for own in facts.models for _, value in own)


def test_an_ensembles_members(tmp_path):
    folder = tmp_path / "model"
    model(folder / "fold_0", training={"fold": 0, "history": [{"step": 1, "train_loss": 1.0}]})
    members = [{"folder": "fold_0", "sha256": "ab"}]
    (folder / "model.json").write_text(json.dumps({"members": members, "postprocessing": []}))
    facts = gather_facts([], models=[folder], plan=None)
    assert ("members", "fold_0 ab") in facts.models[0]
    assert facts.histories == [("fold 0", {"training loss": [(1, 1.0)]})]


@pytest.mark.parametrize(
    "more",
    [
        {"members": [{"folder": ".", "sha256": "ab"}]},
        {"members": [{}]},
        {"members": 3},
        {"training": [1]},
        {"training": {"history": [{"train_loss": 1.0}]}},
        {"versions": "2"},
    ],
)
def test_a_damaged_model_is_left_out_and_stops_nothing(tmp_path, more):
    folder = model(tmp_path / "model", **({"versions": {}} | more))
    facts = gather_facts([], models=[folder, model(tmp_path / "good", training={"fold": 1})], plan=None)
    assert ("fold", "1") in facts.models[-1]
    assert facts.histories == []


def test_curves_of_nothing_and_inner_dice():
    assert learning_curves([]) == {}
    assert learning_curves([{"step": 2, "inner": 0.5, "validation": {}}]) == {"inner Dice": [(2, 0.5)]}


def test_plain_values_as_text():
    assert plain_text([1.0, 0.5, 2]) == "1 x 0.5 x 2"
    assert plain_text([[1, 1], [2, 2]]) == "1 x 1; 2 x 2"
    assert plain_text({"a": [1], "b": None}) == "a=1, b=-"
    assert plain_text([]) == plain_text(None) == "-"
    assert plain_text(True) == "True"
