"""Folds: nnU-Net's own, and ours by patient."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from medseg.errors import ManifestError, UsageError
from medseg.manifest import (
    Case,
    Channel,
    Manifest,
    folds_from_splits,
    kfold_splits_nnunet,
    make_folds,
    patient_leaks,
    with_folds,
)


def cases_of(patients, per_patient=1):
    names = [(f"p{p:03d}", k) for p in range(patients) for k in range(per_patient)]
    return [Case(id=f"{name}_{k}", patient=name, images=("a",)) for name, k in names]


def sizes(folds):
    return sorted(Counter(folds.values()).values())


def test_nnunet_split_of_ten_by_hand():
    # numpy.random.RandomState(12345).permutation(10) is 0 7 3 9 6 4 1 8 5 2, as scikit-learn's KFold draws it.
    splits = kfold_splits_nnunet([f"c{i}" for i in reversed(range(10))])
    assert [split["val"] for split in splits] == [
        [f"c{i}" for i in pair] for pair in ((0, 7), (3, 9), (4, 6), (1, 8), (2, 5))
    ]
    assert splits[0]["train"] == ["c1", "c2", "c3", "c4", "c5", "c6", "c8", "c9"]


@pytest.mark.parametrize("count", [5, 13, 208, 1001])
def test_nnunet_split_is_sklearns_kfold(count):
    model_selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn comes with MLflow only")
    ids = [f"c{i:04d}" for i in range(count)]
    pairs = model_selection.KFold(5, shuffle=True, random_state=12345).split(ids)
    wanted = [{"train": [ids[i] for i in train], "val": [ids[i] for i in val]} for train, val in pairs]
    assert kfold_splits_nnunet(ids) == wanted


def test_nnunet_split_sizes_are_sklearns():
    assert [len(split["val"]) for split in kfold_splits_nnunet([str(i) for i in range(13)])] == [3, 3, 3, 2, 2]


@pytest.mark.real
def test_nnunet_split_is_the_one_it_made_for_hippocampus(shared_data):
    wanted = json.loads((shared_data / "hippocampus" / "splits_final.json").read_text())
    ids = [case_id for split in wanted for case_id in split["val"]]
    assert kfold_splits_nnunet(ids) == wanted


def test_folds_are_even_seeded_and_do_not_depend_on_order():
    cases = cases_of(52)
    folds = make_folds(cases, 5, 1)
    assert sizes(folds) == [10, 10, 10, 11, 11]
    assert make_folds(cases[::-1], 5, 1) == folds
    assert make_folds(cases, 5, 2) != folds


def test_folds_are_the_same_in_another_process():
    code = (
        "from medseg.manifest import Case, make_folds; import json; "
        "cases = [Case(id=str(i), patient=str(i % 9), images=('a',)) for i in range(30)]; "
        "print(json.dumps(make_folds(cases, 3, 5, {str(i): {'a', 'b'} if i % 2 else {'c'} for i in range(30)})))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_a_patient_is_never_parted():
    cases = cases_of(17, per_patient=3)
    folds = make_folds(cases, 5, 1)
    assert all(len({folds[c.id] for c in cases if c.patient == p}) == 1 for p in {c.patient for c in cases})
    assert sizes(folds) == [9, 9, 9, 12, 12]


def test_rare_strata_are_spread_evenly():
    cases = cases_of(100)
    strata = {c.id: ["rare"] if i < 10 else ["common"] if i < 60 else [] for i, c in enumerate(cases)}
    folds = make_folds(cases, 5, 3, strata)
    assert sizes(folds) == [20] * 5
    for tag, each in (("rare", 2), ("common", 10)):
        assert sorted(Counter(folds[c.id] for c in cases if tag in strata[c.id]).values()) == [each] * 5


def test_kept_folds_stay_and_new_cases_are_dealt_around_them():
    cases = cases_of(20, per_patient=2)
    before = make_folds(cases[:20], 5, 1)
    after = make_folds(cases, 5, 99, keep=before)
    assert {case_id: after[case_id] for case_id in before} == before
    assert sizes(after) == [8] * 5
    joined = make_folds(cases, 5, 7, keep={cases[0].id: 3})
    assert joined[cases[1].id] == 3


@pytest.mark.parametrize(
    ("patients", "folds", "message"), [(3, 5, "at most the number of patients"), (3, 1, "at least 2")]
)
def test_numbers_that_make_no_folds(patients, folds, message):
    with pytest.raises(UsageError, match=message):
        make_folds(cases_of(patients, per_patient=9), folds, 1)


def test_splits_that_are_none_are_refused():
    with pytest.raises(ManifestError, match="validates in folds 0 and 1") as caught:
        folds_from_splits([{"val": ["a"]}, {"val": ["a", "z"]}], ["a", "b"])
    assert len(caught.value.faults) == 3


def test_leaks_are_named_by_case():
    cases = (
        Case(id="a", patient="p", images=("a",), fold=0),
        Case(id="b", patient="p", images=("b",), fold=1),
        Case(id="c", patient="q", images=("c",), fold=1),
        Case(id="d", patient="r", images=("d",), fold=1),
    )
    tested = (Case(id="t", patient="q", images=("t",)),)
    manifest = Manifest(
        name="x",
        licence="y",
        channels=(Channel(name="CT"),),
        labels={"background": (0,)},
        training=cases,
        testing=tested,
    )
    leaks = patient_leaks(manifest)
    assert sorted(leaks) == ["a", "b", "c", "t"]
    assert "fold 0 and in fold 1" in leaks["a"]
    assert "fold 1 and in testing" in leaks["t"]
    assert patient_leaks(with_folds(manifest, {"a": 1, "b": 1, "c": 0})).keys() == {"c", "t"}
