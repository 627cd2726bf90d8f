"""Who is let into a queue with a bound in bytes."""

import mmap
import threading

import numpy as np
import pytest

from medseg.runner.budget import BudgetClosed, ByteBudget
from medseg.runner.peak import PeakMemory


def taken_in_time(budget, turn, size, seconds):
    """Whether a thread that asks for room gets it within that time; it goes on waiting otherwise."""
    done = threading.Event()

    def take():
        try:
            budget.take(turn, size)
            done.set()
        except BudgetClosed:
            pass

    threading.Thread(target=take, daemon=True).start()
    return done, done.wait(seconds)


def test_cases_wait_for_room_and_for_their_turn():
    budget = ByteBudget(100)
    for turn in range(4):
        budget.enter(turn)
    budget.take(0, 60)
    second, at_once = taken_in_time(budget, 1, 50, 0.05)
    assert not at_once
    # It would fit, but the one before it is waiting.
    third, at_once = taken_in_time(budget, 2, 10, 0.05)
    assert not at_once
    budget.leave(0)
    assert second.wait(5)
    assert third.wait(5)
    assert budget.held_bytes == 60
    budget.correct(1, 20)
    assert budget.held_bytes == 30
    budget.close()


def test_what_is_bigger_than_the_bound_goes_alone():
    budget = ByteBudget(100)
    budget.take(0, 10)
    big, at_once = taken_in_time(budget, 1, 1000, 0.05)
    assert not at_once
    budget.leave(0)
    assert big.wait(5)
    budget.leave(1)
    budget.leave(1)
    assert budget.held_bytes == 0


def test_a_case_that_is_passed_over_holds_nobody_up():
    budget = ByteBudget(100)
    budget.enter(0)
    budget.enter(1)
    budget.leave(0)
    budget.take(1, 5)
    assert budget.held_bytes == 5


def test_closing_sends_everyone_away():
    budget = ByteBudget(10)
    budget.take(0, 10)
    budget.close()
    with pytest.raises(BudgetClosed, match="is closed"):
        budget.take(1, 1)


def test_peaks_count_for_all_that_were_in_work():
    watch = PeakMemory()
    watch.begin(1)
    low = watch.end(1)
    watch.begin(2)
    watch.begin(3)
    block = mmap.mmap(-1, 60_000_000)  # pages of its own, whatever the allocator has kept
    np.frombuffer(block, np.uint8)[...] = 1
    block.close()
    assert watch.end(2) >= low + 40_000_000
    assert watch.end(3) >= low + 40_000_000
    watch.begin(4)
    assert watch.end(4) < low + 40_000_000
