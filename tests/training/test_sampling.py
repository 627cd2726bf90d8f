import numpy as np

from medseg.training.sampling import case_of_sample, draw_patch, start_range


class Case:
    def __init__(self, shape, voxels=None):
        self.id, self.shape_xyz = "c", shape
        self._voxels = voxels or {}
        self.classes_present = sorted(self._voxels)

    def locations(self, index):
        return np.array(self._voxels[index])


def draw(cases, k, **changes):
    arguments = {"seed": 7, "size_xyz": (4, 4, 4), "batch_size": 3, "foreground_share": 0.33} | changes
    return draw_patch(cases, k=k, **arguments)


def test_a_sample_is_a_function_of_seed_and_number_alone():
    cases = [Case((20, 20, 20), {1: [(3, 4, 5), (10, 11, 12)]}) for _ in range(5)]
    forwards = [draw(cases, k) for k in range(30)]
    backwards = [draw(cases, k) for k in reversed(range(30))][::-1]
    assert [(d.case, d.start_xyz, d.rng.random()) for d in forwards] == [
        (d.case, d.start_xyz, d.rng.random()) for d in backwards
    ]
    assert [d.start_xyz for d in forwards] != [draw(cases, k, seed=8).start_xyz for k in range(30)]


def test_every_round_visits_each_case_once():
    for first in (0, 7, 14):
        assert sorted(case_of_sample(3, k, 7) for k in range(first, first + 7)) == list(range(7))


def test_the_last_third_of_a_batch_is_centred_on_foreground():
    cases = [Case((20, 20, 20), {2: [(10, 11, 12)]})]
    starts = [draw(cases, k).start_xyz for k in range(300)]
    assert all(start == (8, 9, 10) for start in starts[2::3])
    assert len(set(starts[0::3])) > 50


def test_slices_are_drawn_all_alike_and_centred_on_foreground_in_their_own_slice():
    cases = [Case((20, 9, 20), {1: [(3, 7, 5)]})]
    starts = [draw(cases, k, size_xyz=(4, 1, 4)).start_xyz for k in range(900)]
    assert all(start == (1, 7, 3) for start in starts[2::3])
    counts = np.bincount([y for _, y, _ in starts[0::3]], minlength=9)
    assert counts.sum() == 300
    # 300 draws over 9 slices: 33 each on average, SD 5.4
    assert counts.size == 9
    assert counts.min() > 33 - 4 * 5.4
    assert counts.max() < 33 + 4 * 5.4


def test_patches_stay_inside_and_small_scans_are_centred():
    assert start_range((20, 4, 3), (4, 4, 8)) == ((0, 0, -2), (16, 0, -2))
    cases = [Case((6, 3, 20), {1: [(0, 0, 19)]})]
    for k in range(60):
        x, y, z = draw(cases, k).start_xyz
        assert 0 <= x <= 2
        assert y == 0
        assert 0 <= z <= 16
