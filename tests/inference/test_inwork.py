"""Cases that were in work at a kill go last, and no case is given up for it."""

from medseg.inference.cases import InferCase
from medseg.inference.inwork import InWork

CASES = [InferCase(id=name, images=()) for name in "abcd"]


def order(note):
    return [case.id for case in note.last(CASES)]


def test_what_was_in_work_at_a_kill_goes_last(tmp_path):
    with InWork(tmp_path, None) as note:
        assert order(note) == ["a", "b", "c", "d"]
        for case_id in "abc":
            note.begun(case_id)
        note.ended("b")
        left = (tmp_path / ".in-work").read_text()
    assert not (tmp_path / ".in-work").exists()
    (tmp_path / ".in-work").write_text(left + "-a")  # the kill cut the line that would have ended it
    with InWork(tmp_path, None) as note:
        assert order(note) == ["b", "d", "a", "c"]
    with InWork(tmp_path, None) as note:
        assert order(note) == ["a", "b", "c", "d"]
