import numpy as np
import pytest

from medseg.audit.duplicates import ALIKE, compare, find_duplicates, same_labels
from medseg.audit.shapes import measure_shapes
from tests.audit.sketches import halves, sketch, texture

DISGUISES = {
    "scaled": lambda a, rng: 3 * a + 7,
    "noisy": lambda a, rng: a + rng.normal(0, 0.2, a.shape),
    "curved": lambda a, rng: np.sign(a) * np.abs(a) ** 0.7,
    "cut": lambda a, rng: a[3:, :-2],
    "mirrored": lambda a, rng: np.flip(a, (0, 2)),
    "all": lambda a, rng: (
        np.flip(0.5 * a[:-3, 2:], 1) + rng.normal(0, 0.1, (a.shape[0] - 3, a.shape[1] - 2, a.shape[2]))
    ),
}


@pytest.mark.parametrize("kind", DISGUISES)
def test_a_copy_in_disguise_is_found_among_strangers(kind):
    copied = DISGUISES[kind](texture(3), np.random.default_rng(0))
    cases = [sketch(f"case_{k}", k) for k in range(8)] + [sketch("copy", image=copied)]
    (pair,) = find_duplicates(cases)
    assert (pair.first, pair.second) == ("case_3", "copy")
    assert pair.correlation > 0.9
    assert not pair.identical


def test_the_alignment_is_told():
    fixed = texture(1)
    pair = compare(sketch("a", image=fixed, spacing=(1.0, 2.0, 3.0)), sketch("b", image=np.flip(fixed[2:, :, 1:], 1)))
    assert pair.mirrored == (1,)
    assert pair.move_mm == (2.0, 0.0, 3.0)


def test_equal_voxels_are_identical_and_a_group_gives_one_pair_less():
    cases = [sketch(name, 5) for name in ("c", "a", "b")] + [sketch("d", 6)]
    pairs = find_duplicates(cases)
    assert [(pair.first, pair.second, pair.identical) for pair in pairs] == [("a", "b", True), ("a", "c", True)]


def test_strangers_are_no_pair():
    assert find_duplicates([sketch(f"case_{k}", k) for k in range(10)]) == ()
    assert compare(sketch("a", 1), sketch("b", 2)).correlation < ALIKE - 0.2


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_cases_have_no_pair(count):
    assert find_duplicates([sketch("a")] * count) == ()


def test_pictures_and_flat_scans():
    shape = (40, 36, 1)
    cases = [sketch(f"p{k}", image=texture(k, shape)) for k in range(5)]
    cases += [sketch("copy", image=np.flip(texture(2, shape), 0)), sketch("flat", image=np.zeros(shape))]
    (pair,) = find_duplicates(cases)
    assert (pair.first, pair.second, pair.mirrored) == ("copy", "p2", (0,))


def test_one_label_on_two_scans():
    classes = halves()
    shapes = measure_shapes(classes, 3, spacing_xyz_mm=(1, 1, 1))
    labelled = {"classes": classes, "label_sha256": "x", "shapes": shapes}
    cases = [sketch("a", 1, **labelled), sketch("b", 2, **labelled), sketch("c", 1, **labelled)]
    assert same_labels(cases) == (("a", "b"),)
    empty = {"classes": np.zeros_like(classes), "label_sha256": "0", "shapes": {}}
    assert same_labels([sketch("a", 1, **empty), sketch("b", 2, **empty)]) == ()
