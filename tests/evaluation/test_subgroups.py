import pytest

from medseg.errors import UsageError
from medseg.evaluation.case import ClassScores
from medseg.evaluation.policy import POLICIES
from medseg.evaluation.registry import metric_names
from medseg.evaluation.subgroups import manifest_groups, summarise_groups
from medseg.manifest import Case


def case(name, **extra):
    return Case(id=name, patient=name, images=("a.nii.gz",), extra=extra)


def rows(dices):
    return {
        name: [
            ClassScores(
                class_name="liver",
                situation="present",
                true_positive=1,
                false_positive=0,
                false_negative=0,
                diagonal_mm=9.0,
                values={metric: dice if metric in ("dice", "hd95_mm") else None for metric in metric_names()},
            )
        ]
        for name, dice in dices.items()
    }


def test_columns_that_make_groups():
    cases = [case(f"c{k}", site="AB"[k % 2], age=str(20 + k), one="x") for k in range(25)]
    assert sorted(manifest_groups(cases, None)) == ["site"]
    assert len(manifest_groups(cases, ["age"])["age"]) == 25
    with pytest.raises(UsageError, match=r"evaluate.subgroups: has 'scanner', expected .* \(age, one, site\)"):
        manifest_groups(cases, ["scanner"])


def test_each_group_and_the_worst():
    dices = {f"a{k}": 0.8 for k in range(5)} | {f"b{k}": 0.6 for k in range(6)} | {"tiny": 0.1, "nowhere": 0.5}
    site = {name: name[0].upper() for name in dices if name[0] in "ab"} | {"tiny": "C"}
    patients = {name: name for name in dices}
    (found,) = summarise_groups(rows(dices), {"site": site}, ("liver",), POLICIES["standard"], patients).values()
    assert {value: (own["cases"], own["patients"]) for value, own in found["values"].items()} == {
        "A": (5, 5),
        "B": (6, 6),
    }
    assert found["values"]["A"]["classes"]["liver"]["metrics"]["dice"]["mean"] == 0.8
    assert (found["small"], found["without"]) == ({"groups": 1, "cases": 1}, 1)
    # Of the same numbers, a Dice is worst where it is least, a distance where it is greatest.
    assert found["worst"]["liver"]["dice"] == {"value": "B", "mean": pytest.approx(0.6), "best": "A", "best_mean": 0.8}
    assert found["worst"]["liver"]["hd95_mm"]["value"] == "A"
    assert "volume_reference_ml" not in found["worst"]["liver"]


def test_a_group_is_of_patients():
    dices = {f"a{k}": 0.8 for k in range(6)}
    patients = dict.fromkeys(dices, "one")
    (found,) = summarise_groups(
        rows(dices), {"site": dict.fromkeys(dices, "A")}, ("liver",), POLICIES["standard"], patients
    ).values()
    assert (found["values"], found["small"], found["worst"]) == ({}, {"groups": 1, "cases": 6}, {})


def test_a_group_that_was_not_labelled_for_a_class_does_not_spoil_the_others():
    found = rows({f"{site}{k}": 0.8 for site in "abc" for k in range(5)})
    for own in found.values():
        own[0].values["hd99_mm"] = 4.0
    for k in range(5):
        found[f"b{k}"] = []
    site = {name: name[0] for name in found}
    (column,) = summarise_groups(
        found, {"site": site}, ("liver",), POLICIES["standard"], {n: n for n in found}
    ).values()
    assert column["values"]["b"]["classes"]["liver"]["counts"]["cases"] == 0
    assert column["worst"]["liver"]["hd99_mm"]["value"] == "c"
