"""Values found in label files: the classes they are taken for, and folds stratified by them."""

import numpy as np
import pytest
from PIL import Image

from medseg.errors import UsageError
from medseg.manifest import Case, Channel, Manifest
from medseg.manifest.folding import fold_manifest, keep_folds
from medseg.manifest.label_survey import LabelSurvey, class_strata, guessed_labels, survey_labels


def cases_with(root, *values):
    cases = []
    for number, own in enumerate(values):
        mask = np.zeros((4, 5), np.uint8)
        mask[0, : len(own)] = own
        Image.fromarray(mask).save(root / f"{number}.png")
        cases.append(Case(id=f"c{number:02d}", patient=f"c{number:02d}", images=("i",), labels=(f"{number}.png",)))
    return tuple(cases)


def manifest_of(cases, **labels):
    return Manifest(
        name="x",
        licence="y",
        channels=(Channel(name="MR"),),
        labels={"background": (0,)} | {name: (value,) for name, value in labels.items()},
        training=cases,
    )


def test_values_and_names(tmp_path):
    survey = survey_labels(cases_with(tmp_path, [1], [3, 1], []), tmp_path)
    assert (survey.all_values, survey.complete) == ((0, 1, 3), True)
    assert guessed_labels(survey) == {"background": (0,), "class_1": (1,), "class_3": (3,)}
    assert class_strata(survey, {"background": (0,), "a": (1, 3)}) == {"c00": ["a"], "c01": ["a"], "c02": []}
    overlapping = {"background": (0,), "a": (1, 3), "b": (3,)}
    assert class_strata(LabelSurvey({"c": frozenset({0, 3}), "d": frozenset({1})}), overlapping) == {
        "c": ["a", "b"],
        "d": ["a"],
    }
    one = survey_labels(cases_with(tmp_path, [255]), tmp_path)
    assert guessed_labels(one) == {"background": (0,), "foreground": (255,)}


def test_large_sets_are_sampled_evenly(tmp_path):
    cases = cases_with(tmp_path, *([1] for _ in range(40)))
    survey = survey_labels(cases, tmp_path, max_bytes=1)
    assert not survey.complete
    assert sorted(survey.values) == [case.id for case in cases[::2]]


def test_a_label_that_can_not_be_read_is_told(tmp_path):
    cases = cases_with(tmp_path, [1], [1])
    (tmp_path / "1.png").write_bytes(b"no picture")
    survey = survey_labels(cases, tmp_path)
    assert [fault.split(":")[0] for fault in survey.faults] == ["c01"]


def test_no_labels_give_an_empty_complete_survey(tmp_path):
    survey = survey_labels((Case(id="a", patient="a", images=("i",)),), tmp_path)
    assert (survey.all_values, survey.complete) == ((), True)


def test_folds_are_stratified_by_classes_kept_and_remade_only_when_asked(tmp_path):
    manifest = manifest_of(cases_with(tmp_path, *([1, 2] if i % 5 == 0 else [1] for i in range(20))), a=1, b=2)
    folded, note = fold_manifest(manifest, root=tmp_path, folds=4, seed=1)
    assert "4 folds of 5, 5, 5, 5" in note
    assert "stratified by the classes present" in note
    assert sorted(case.fold for case in folded.training[::5]) == [0, 1, 2, 3]
    again, note = fold_manifest(folded, root=tmp_path, folds=2, seed=9)
    assert (again, note) == (folded, "kept the 4 folds there are")
    remade, _ = fold_manifest(folded, root=tmp_path, folds=2, seed=9, resplit=True)
    assert {case.fold for case in remade.training} == {0, 1}


def test_new_cases_join_the_folds_there_are(tmp_path):
    cases = cases_with(tmp_path, *([1] for _ in range(12)))
    before, _ = fold_manifest(manifest_of(cases[:6], a=1), root=tmp_path, folds=3, seed=1)
    joined = keep_folds(manifest_of(cases, a=1), before)
    after, note = fold_manifest(joined, root=tmp_path, folds=3, seed=2)
    assert after.training[:6] == before.training
    assert "dealt 6 new cases to the 3 folds of 4, 4, 4 cases" in note
    with pytest.raises(UsageError, match="there are 3 folds"):
        fold_manifest(joined, root=tmp_path, folds=2, seed=2)


def test_folds_by_a_column(tmp_path):
    cases = tuple(Case(id=f"{i}", patient=f"{i}", images=("i",), extra={"site": "AB"[i < 4]}) for i in range(12))
    folded, note = fold_manifest(manifest_of(cases, a=1), root=tmp_path, folds=4, seed=1, stratify="site")
    assert "stratified by site" in note
    assert sorted(case.fold for case in folded.training[:4]) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="'scanner', expected auto"):
        fold_manifest(manifest_of(cases, a=1), root=tmp_path, folds=4, seed=1, stratify="scanner")
