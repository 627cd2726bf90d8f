import pytest

from medseg.errors import UsageError
from medseg.search.halving import plan_rounds, promoted, winner


@pytest.mark.parametrize(
    ("candidates", "sizes"), [(2, [2]), (3, [3, 2]), (4, [4, 2]), (9, [9, 4, 2]), (28, [28, 10, 4, 2])]
)
def test_rounds_share_the_time(candidates, sizes):
    rounds = plan_rounds(candidates, 60)
    assert [one.candidates for one in rounds] == sizes
    assert all(one.candidates * one.minutes == pytest.approx(60 / len(sizes)) for one in rounds)


def test_too_little_is_refused():
    with pytest.raises(UsageError, match="expected at least 2"):
        plan_rounds(1, 60)
    with pytest.raises(UsageError, match="give more --minutes"):
        plan_rounds(9, 0.1)


def test_the_default_always_goes_on_and_failures_never():
    assert promoted({0: 0.1, 1: 0.5, 2: None, 3: 0.9, 4: 0.5}, 3) == (0, 3, 1)
    assert promoted({0: 0.9, 1: None, 2: None}, 2) == (0,)


def test_a_draw_keeps_the_default():
    assert winner({0: 0.8, 3: 0.8}) == 0
    assert winner({0: 0.8, 3: 0.81}) == 3
    assert winner({0: 0.8, 3: None}) == 0
