import numpy as np

from medseg.preparation.locations import sample_locations, seed_of


def test_small_classes_are_kept_whole_and_large_ones_bounded():
    classes = np.zeros((400, 300, 110), np.uint8)  # 13.2 million voxels
    classes[:200] = 1  # 6.6 million: 1 % is 66,000
    classes[200:210, :50, :10] = 2  # 5,000
    classes[300:310] = 3  # 330,000: 1 % is under 10,000
    sample = sample_locations(classes, case_id="a")
    assert {k: len(v) for k, v in sample.items()} == {1: 66_000, 2: 5_000, 3: 10_000}
    for index, where in sample.items():
        assert (classes.reshape(-1)[where] == index).all()
        assert (np.diff(where) > 0).all()


def test_the_draw_is_fixed_by_the_case():
    classes = np.ones((60, 60, 60), np.uint8)
    first, again, other = (sample_locations(classes, case_id=i)[1] for i in ("a", "a", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert seed_of("ab", "c") != seed_of("a", "bc")
