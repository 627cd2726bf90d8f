"""Which classes always lie in one order, and what the plan makes of it."""

import numpy as np
import pytest

from medseg.preparation.order import FixedOrder, class_centres, fixed_orders
from medseg.preparation.planning import plan_mirrors

LABELS = {"background": (0,), "left": (1,), "right": (2,)}


def test_centres_are_mean_coordinates_of_the_classes_that_occur():
    classes = np.zeros((4, 5, 6), np.uint8)
    classes[1, 2, 3] = classes[3, 2, 5] = 1
    classes[0, 4, 0] = 7
    classes[0, 0, 0] = 255
    assert class_centres(classes) == {1: (2.0, 2.0, 4.0), 7: (0.0, 4.0, 0.0)}
    assert class_centres(np.full((2, 2, 2), 255, np.uint8)) == {}


def test_an_order_is_fixed_where_it_holds_in_nearly_all_of_enough_cases():
    side_by_side = [{1: (10.0, 5.0, float(i % 2)), 2: (20.0, 5.2, 0.5)} for i in range(20)]
    assert fixed_orders(side_by_side) == (FixedOrder(1, 2, 20, 20), None, None)
    assert fixed_orders(side_by_side[:5]) == (None, None, None)
    one_swapped = [*side_by_side[:19], {1: (20.0, 5.0, 0.0), 2: (10.0, 5.0, 0.5)}]
    assert fixed_orders(one_swapped)[0] == FixedOrder(1, 2, 19, 20)
    assert fixed_orders([*one_swapped[1:], one_swapped[-1]])[0] is None


def test_the_second_class_may_come_first_and_cases_without_a_pair_do_not_count():
    cases = [{1: (0.0, 9.0, 0.0), 3: (0.0, 4.0, 0.0)} for _ in range(6)] + [{1: (0.0, 0.0, 0.0)}] * 10
    assert fixed_orders(cases) == (None, FixedOrder(3, 1, 6, 6), None)
    assert fixed_orders([]) == (None, None, None)
    assert fixed_orders([{}]) == (None, None, None)


def test_the_plan_mirrors_only_where_nothing_is_hidden_and_says_why():
    kept, reason = plan_mirrors((FixedOrder(1, 2, 19, 20), None, None), LABELS)
    assert kept == ("y", "z")
    assert reason == "Mirroring would hide that left lies before right along x in 19 of 20 training cases."
    assert plan_mirrors((None, None, None), LABELS)[0] == ("x", "y", "z")


@pytest.mark.parametrize("turned", [False, True])
def test_centres_of_an_array_that_is_not_contiguous(turned):
    classes = np.zeros((3, 4, 5), np.uint8, order="F" if turned else "C")
    classes[2, 3, 4] = 1
    assert class_centres(classes) == {1: (2.0, 3.0, 4.0)}
