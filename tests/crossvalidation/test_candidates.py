"""Which models answer for which fold, and that none of them saw what it answers for."""

import json
from pathlib import Path

import pytest

from medseg.crossvalidation.candidates import find_candidates, folds_of, refuse_leaks, refuse_unfinished
from medseg.errors import InputError, UsageError
from medseg.manifest import Case, Channel, Manifest
from tests.inference.stand_ins import LABELS


def manifest_of(folds):
    """A manifest with one case per entry: (patient, fold)."""
    training = tuple(
        Case(id=f"c{number}", patient=patient, images=(f"c{number}.nii",), fold=fold)
        for number, (patient, fold) in enumerate(folds)
    )
    return Manifest(
        name="set", licence="CC0-1.0", channels=(Channel(name="MR"),), labels=LABELS, training=training,
        path=Path("set.json"),
    )  # fmt: skip


MANIFEST = manifest_of([("p0", 0), ("p1", 1), ("p2", 0), ("p3", 1), ("p4", None)])


def finished(work, fold, trained):
    run = work / "runs" / f"fold_{fold}"
    (run / "model").mkdir(parents=True)
    (run / "model" / "model.json").write_text("{}")
    cases = dict.fromkeys(trained, "key")
    (run / "run.json").write_text(json.dumps({"identity": {"training cases": cases}}))


@pytest.fixture
def work(tmp_path):
    finished(tmp_path / "full", 0, ["c1", "c3", "c4"])
    finished(tmp_path / "full", 1, ["c0", "c2", "c4"])
    return tmp_path / "full"


def test_configurations_and_their_pairs(tmp_path):
    names = [tmp_path / name for name in ("a", "b", "c")]
    found = find_candidates(names)
    assert [one.name for one in found] == ["a", "b", "c", "a+b", "a+c", "b+c"]
    assert [one.mixed for one in found] == [False] * 3 + [True] * 3
    assert found[0].members(1) == {"fold_1": tmp_path / "a" / "runs" / "fold_1" / "model"}
    assert list(found[3].members(0)) == ["a-fold_0", "b-fold_0"]
    with pytest.raises(UsageError, match="two work folders have one name"):
        find_candidates([tmp_path / "a", tmp_path / "other" / "a"])


def test_folds_and_what_they_hold_out():
    assert {fold: [case.id for case in cases] for fold, cases in folds_of(MANIFEST).items()} == {
        0: ["c0", "c2"],
        1: ["c1", "c3"],
    }
    with pytest.raises(UsageError, match=r"set\.json: has 1 folds, expected at least 2"):
        folds_of(manifest_of([("p", 0), ("q", 0)]))


def test_unfinished_folds_are_named(work):
    candidates = find_candidates([work])
    refuse_unfinished(candidates, [0, 1])
    with pytest.raises(InputError, match="full/fold_2, full/fold_3 has no finished model"):
        refuse_unfinished(candidates, [0, 2, 3])


def test_a_model_that_saw_its_held_out_cases_is_refused(work):
    candidates = find_candidates([work])
    refuse_leaks(candidates, MANIFEST, folds_of(MANIFEST))
    moved = manifest_of([("p0", 0), ("p1", 0), ("p2", 0), ("p3", 1), ("p4", None)])
    with pytest.raises(InputError, match=r"full/fold_0: was trained on c1, which fold 0 of set\.json holds out"):
        refuse_leaks(candidates, moved, folds_of(moved))
    parted = manifest_of([("p0", 0), ("p1", 1), ("p2", 0), ("p0", 1), ("p4", None)])
    with pytest.raises(InputError, match="full/fold_0: was trained on c3"):
        refuse_leaks(candidates, parted, folds_of(parted))


def test_a_run_that_does_not_say_what_it_was_trained_on_is_refused(work):
    (work / "runs" / "fold_1" / "run.json").unlink()
    with pytest.raises(InputError, match=r"fold_1: run\.json does not say what it was trained on"):
        refuse_leaks(find_candidates([work]), MANIFEST, folds_of(MANIFEST))
