"""Decisions on planted evidence: what is plainly worth it is adopted, what may be chance is not, and folds stay blind."""

import pytest

from medseg.crossvalidation.decisions import Evidence, adopted_steps, choose, decide, decide_steps, nested
from medseg.crossvalidation.tables import ClassTable, Component
from medseg.evaluation.postprocessing import Step


def component(size, right, *, main=True, hole=0, hole_right=0):
    return Component(size=size, counted=size, right=right, hole_counted=hole, hole_right=hole_right, in_main=main)


def table(*components, reference=100):
    return ClassTable(reference=reference, voxel_mm3=1.0, components=components)


def evidence(tables, patients=None):
    names = tuple(next(iter(tables.values())))
    return Evidence(tables=tables, class_names=names, patients=patients or {case: case for case in tables}, seed=1)


def cases(count, make):
    return {f"c{number:02d}": make(number) for number in range(count)}


SOLID = component(100, 95)


def test_stray_voxels_everywhere_are_worth_dropping():
    # Every case has a wrong speck; its size differs, and so does whether the true part is in two pieces.
    found = decide_steps(
        evidence(cases(20, lambda n: {"organ": table(component(60, 58), component(35, 33), component(5 + n % 3, 0))}))
    )
    (step,) = adopted_steps(found)
    assert (step.kind, step.class_name, step.minimum_mm3) == ("minimum_size", "organ", 7.5)
    rejected = [one for one in found if one.what == "organ: keep the largest component"]
    assert [one.adopted for one in rejected] == [False]
    assert rejected[0].effect.high < 0


def test_one_lucky_case_is_not_enough():
    found = decide_steps(
        evidence(cases(20, lambda n: {"organ": table(SOLID, *([component(40, 0)] if n == 3 else []))}))
    )
    assert adopted_steps(found) == ()
    assert all(one.after >= one.before for one in found)


def test_the_largest_component_wins_where_specks_are_as_large_as_true_parts():
    found = decide_steps(
        evidence(cases(20, lambda n: {"organ": table(component(120 + n, 95), component(30 + 4 * n, 0))}))
    )
    # Dropping all wrong components by size gains as much here; of equals the first considered is adopted.
    assert adopted_steps(found) == (Step(kind="largest_component", class_name="organ"),)
    beaten = [one for one in found if one.note]
    assert {one.note for one in beaten} == {"organ: keep the largest component gains more"}
    assert not any(one.adopted for one in beaten)


def test_holes_are_filled_where_that_helps():
    def make(_):
        return {
            "organ": table(component(90, 88, hole=10, hole_right=9)),
            "ring": table(component(90, 88, hole=10, hole_right=0)),
        }

    assert adopted_steps(decide_steps(evidence(cases(12, make)))) == (Step(kind="fill_holes", class_name="organ"),)


def test_all_classes_together_only_where_none_pays_for_it():
    stray = component(20, 0, main=False)

    def gains(_):
        return {"organ": table(SOLID, stray), "lesion": table(SOLID)}

    def costs(_):
        return {"organ": table(SOLID, stray), "lesion": table(component(100, 95), component(2, 2, main=False))}

    together = Step(kind="largest_component", class_name=None)
    assert adopted_steps(decide_steps(evidence(cases(12, gains)))) == (together,)
    found = decide_steps(evidence(cases(12, costs)))
    assert (found[0].what, found[0].adopted, found[0].note) == (str(together), False, "lowers lesion")
    assert together not in adopted_steps(found)


def test_a_patients_many_cases_count_once():
    tables = cases(20, lambda n: {"organ": table(SOLID, *([component(40, 0)] if n < 8 else []))})
    assert adopted_steps(decide_steps(evidence(tables)))
    one_patient = {case: ("p" if number < 8 else case) for number, case in enumerate(tables)}
    assert adopted_steps(decide_steps(evidence(tables, one_patient))) == ()


def test_a_class_that_a_case_was_not_labelled_for_does_not_count():
    tables = cases(
        20, lambda n: {"organ": table(SOLID, component(20, 0))} | ({"lesion": table(SOLID)} if n % 2 else {})
    )
    found = decide_steps(
        Evidence(tables=tables, class_names=("organ", "lesion", "never"), patients={c: c for c in tables}, seed=1)
    )
    assert {one.effect.cases for one in found if one.what.startswith("lesion")} == {10}
    assert not [one for one in found if one.what.startswith("never")]


# --- configurations ---------------------------------------------------------------------------------------------------


def scored(*rights):
    """Evidence of cases with one component of 100 voxels, of which so many are right."""
    return evidence(cases(len(rights), lambda n: {"organ": table(component(100, rights[n]))}))


def test_the_best_single_configuration_and_an_ensemble_only_if_it_is_surely_better():
    a, b = [80 + n % 5 for n in range(20)], [84 + n % 3 for n in range(20)]
    luck = [value + (10 if n == 0 else 0) for n, value in enumerate(b)]
    sure = [value + 1 + n % 2 for n, value in enumerate(b)]
    chosen = choose({"a": scored(*a), "b": scored(*b), "a+b": scored(*luck)}, ensembles=["a+b"])
    assert chosen.name == "b"
    assert [(one.what, one.adopted) for one in chosen.findings] == [("a", False), ("b", True), ("a+b", False)]
    assert chosen.findings[2].after > chosen.findings[1].after
    assert chosen.findings[0].effect.high < 0
    assert choose({"a": scored(*a), "b": scored(*b), "a+b": scored(*sure)}, ensembles=["a+b"]).name == "a+b"
    assert choose({"a": scored(*b), "b": scored(*b)}).name == "a"


def test_one_configuration_needs_no_choice():
    chosen = choose({"only": scored(90, 91)})
    assert chosen.name == "only"
    assert chosen.findings[0].effect is None


# --- nesting ----------------------------------------------------------------------------------------------------------


def test_no_fold_takes_part_in_its_own_decision():
    folds = {f"c{number:02d}": number % 3 for number in range(30)}

    def seen(candidates):
        return {case for one in candidates.values() for case in one.tables}

    given = {"only": scored(*[90] * 30)}
    for fold, found in nested(given, folds, seen).items():
        assert found == {case for case, own in folds.items() if own != fold}


def test_what_only_one_fold_shows_is_not_used_for_that_fold():
    # Fold 0 alone has specks. Its own scores may not profit from them; the model, decided on all cases, does.
    tables = cases(30, lambda n: {"organ": table(SOLID, *([component(30, 0)] if n % 3 == 0 else []))})
    folds = {case: number % 3 for number, case in enumerate(tables)}
    given = {"only": evidence(tables)}
    assert decide(given).adopted
    adopted = {fold: bool(decision.adopted) for fold, decision in nested(given, folds, decide).items()}
    assert adopted == {0: False, 1: True, 2: True}
    assert decide(given, clean=False).steps == ()


def test_a_decision_is_plain_values():
    plain = decide({"a": scored(80, 81, 82), "b": scored(90, 91, 92)}).plain()
    assert plain["configuration"] == "b"
    assert plain["configurations"][0]["effect"]["mean"] == pytest.approx(-0.1)
    assert {one["what"] for one in plain["post_processing"]} == {
        "organ: keep the largest component",
        "organ: fill holes",
    }
