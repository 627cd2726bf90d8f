import logging
import sys

from medseg.runner import progress
from medseg.runner.progress import CaseProgress


def test_log_lines_are_rare(caplog):
    with caplog.at_level(logging.INFO), CaseProgress("evaluate", 1000) as counted:
        for _ in range(1000):
            counted.advance()
    assert counted.done == 1000
    assert caplog.records == []


def test_log_line_says_how_far_and_how_long(caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO), CaseProgress("evaluate", 10, done=4) as counted:
        clock[0] = 4.0  # the workers' start and the first case: they say nothing about the pace
        counted.advance()
        clock[0] = 8.0
        counted.advance()
        clock[0] = 9.0
        counted.advance()
        clock[0] = 700.0
        counted.advance(3)
    assert [r.getMessage() for r in caplog.records] == [
        "evaluate: 6 of 10, about 16 s left",
        "evaluate: 10 of 10",
    ]


def test_durations_as_people_say_them():
    assert [progress.plain_duration(s) for s in (0.4, 89, 150, 9000)] == ["0 s", "89 s", "2 min", "2.5 h"]


def test_bar_on_a_terminal(monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with CaseProgress("evaluate", 3) as counted:
        counted.advance(3)
    assert counted.done == 3
    assert caplog.records == []
