from dataclasses import replace

import pytest

from medseg.audit.alternatives import Answers
from medseg.audit.duplicates import Pair
from medseg.audit.findings import (
    Finding,
    disagreement_findings,
    fit_findings,
    grid_findings,
    pair_findings,
    ranked,
    shape_findings,
)
from medseg.audit.shapes import Shape
from tests.audit.sketches import NAMES, sketch

GOOD = Answers(fit=2.0, move_mm=(0.0, 0.0, 0.0), move_gain=0.0, exchanges={(1, 2): -2.0}, mirrors={0: -1.5, 1: -1.0})
BALL = Shape(
    voxels=1000, volume_ml=1.0, share=0.1, centre_xyz=(0.5, 0.5, 0.5), centre_mm=(10.0, 10.0, 10.0), components=1,
    stray_share=0.0, stray_far_mm=0.0, thickness_mm=10.0, thickness_voxels=10.0, tube_share=0.0, elongation=1.0,
)  # fmt: skip


def pair(**changes):
    return Pair(**({"first": "a", "second": "b", "identical": False, "correlation": 0.95} | changes))


def found(one, folds=(0, 1), patients=("p", "q")):
    return list(pair_findings([one], dict(zip("ab", folds, strict=True)), dict(zip("ab", patients, strict=True))))


@pytest.mark.parametrize(
    ("given", "folds", "kind", "score"),
    [
        (pair(identical=True, correlation=1.0), (0, 1), "leak", 100.0),
        (pair(identical=True, correlation=1.0), (2, 2), "duplicate", 90.0),
        (pair(), (0, 1), "leak", 99 * 0.95),
        (pair(), (None, None), "duplicate", 89 * 0.95),
        (pair(correlation=0.7, same_scan=False), (0, 1), "alike", 4.7),
        (pair(correlation=0.7, same_scan=False), (0, 0), "alike", 2.7),
    ],
)
def test_pairs(given, folds, kind, score):
    (finding,) = found(given, folds)
    assert (finding.kind, finding.score) == (kind, pytest.approx(score))


def test_a_pair_says_how():
    (finding,) = found(pair(move_mm=(2.0, 0.0, -1.5), mirrored=(1,)), (0, 3))
    assert finding.sentence == (
        "one scan in disguise (correlation 0.95, mirrored y, moved by x +2 mm, z -1.5 mm), in folds 0 and 3"
    )


def test_scans_of_one_patient_may_be_alike_but_not_the_same():
    assert found(pair(correlation=0.7, same_scan=False), patients=("p", "p")) == []
    assert [f.kind for f in found(pair(), (0, 0), ("p", "p"))] == ["duplicate"]


def test_labels_that_fit_better_otherwise():
    answers = {f"c{k}": GOOD for k in range(8)}
    answers["moved"] = replace(GOOD, move_mm=(3.0, 0.0, 0.0), move_gain=0.5)
    answers["swapped"] = replace(GOOD, exchanges={(1, 2): 1.0})
    answers["mirrored"] = replace(GOOD, mirrors={0: 0.5, 1: -1.0})
    answers["poor"] = replace(GOOD, fit=0.0)
    kinds = {f.cases[0]: (f.kind, f.score) for f in fit_findings(answers, NAMES)}
    assert kinds == {
        "moved": ("moved label", pytest.approx(0.5 / 0.05)),
        "swapped": ("swapped classes", pytest.approx(20 + 3 / 0.15)),
        "mirrored": ("mirrored label", pytest.approx(20 + 2 / 0.15)),
        "poor": ("poor fit", pytest.approx(2 / 0.1 / 2)),
    }
    assert list(fit_findings({}, NAMES)) == []


def test_a_symmetric_organ_is_not_called_mirrored():
    answers = {f"c{k}": replace(GOOD, mirrors={0: 0.01 * k}) for k in range(9)}
    assert list(fit_findings(answers, NAMES)) == []


def test_shapes_unlike_the_set():
    usual = {f"c{k}": {1: BALL, 2: BALL} for k in range(18)}
    usual |= {
        "missing": {1: BALL},
        "large": {1: BALL, 2: replace(BALL, volume_ml=4.0)},
        "away": {1: replace(BALL, centre_xyz=(0.5, 0.9, 0.5)), 2: BALL},
        "stray": {1: replace(BALL, components=2, stray_share=0.01, stray_far_mm=30.0), 2: BALL},
    }
    kinds = {(f.cases[0], f.kind): f.sentence for f in shape_findings(usual, NAMES)}
    assert kinds == {
        ("missing", "missing structure"): "right is missing, 95% of the labelled cases have it",
        ("large", "volume"): "right has 4 ml, the set's median 1 ml",
        ("away", "position"): "left lies at 90% of the scan's extent along y, unlike the set",
        ("stray", "stray voxels"): "left has 1 further piece (1.0% of it), up to 30 mm away",
    }
    assert list(shape_findings({}, NAMES)) == []


def test_a_class_that_comes_in_pieces_has_no_stray_ones():
    many = replace(BALL, components=9, stray_share=0.05, stray_far_mm=50.0)
    assert list(shape_findings({f"c{k}": {1: many} for k in range(5)}, NAMES[:2])) == []


def test_disagreement_and_grids():
    (finding,) = disagreement_findings({"a": 0.9, "b": 0.91, "c": 0.9, "d": 0.2})
    assert (finding.kind, finding.cases) == ("disagreement", ("d",))
    (fault,) = grid_findings([sketch("a"), sketch("b", grid_fault="shape is 1x1x1 against 2x2x2")])
    assert fault.cases == ("b",)
    assert "shape is 1x1x1" in fault.sentence


def test_a_case_is_listed_once_with_its_reasons():
    listed = ranked(
        [
            Finding(kind="volume", cases=("a",), score=5.0, sentence="large"),
            Finding(kind="moved label", cases=("a",), score=9.0, sentence="moved"),
            Finding(kind="position", cases=("a",), score=1.0, sentence="away"),
            Finding(kind="leak", cases=("a", "b"), score=100.0, sentence="twice"),
            Finding(kind="volume", cases=("c",), score=6.0, sentence="small"),
        ]
    )
    assert [(f.kind, f.cases, f.also) for f in listed] == [
        ("leak", ("a", "b"), ()),
        ("moved label", ("a",), ("large",)),
        ("volume", ("c",), ()),
    ]
