"""What a scan looks like inside a structure, worked out on paper and against masks taken as a whole."""

import math

import numpy as np
import pytest

from medseg.inference.appearance import APPEARANCE, Appearance, seen_image
from medseg.inference.uncertainty import gather_evidence


def test_on_paper():
    image = np.array([0.0, 3.0, 5.0, 1.0, 0.0], np.float16).reshape(1, 5, 1, 1)
    given = np.array([0, 1, 1, 0, 2], np.uint8).reshape(5, 1, 1)
    look = Appearance(image, 3)
    look.add(given)
    found = look.features(0)
    assert tuple(found) == APPEARANCE
    assert found["brightness"] == 4
    assert found["spread"] == pytest.approx(math.log(1.001), abs=1e-5)
    # One pair inside, 2 apart; from 0 up to 3, from 5 down to 1: falls of 3 and 4.
    assert found["texture"] == pytest.approx(math.log(2.001), abs=1e-4)
    assert found["edge"] == 3.5
    # The voxel of the second is as dark as its surroundings are but for 1; the third is empty.
    assert look.features(1)["edge"] == -1
    assert look.features(1)["texture"] == pytest.approx(math.log(1e-3), abs=1e-4)
    assert look.features(2) == {}


def test_slabs_give_what_the_whole_gives():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 9, 6, 5)).astype(np.float16)
    given = rng.integers(0, 3, (9, 6, 5))
    whole, parts = Appearance(image, 2), Appearance(image, 2)
    whole.add(given)
    for start in (0, 4, 5):
        parts.add(given[start : {0: 4, 4: 5, 5: 9}[start]])
    for k in range(2):
        assert parts.features(k) == pytest.approx(whole.features(k))
        values = image.astype(np.float64)[:, given == k + 1]
        assert whole.features(k)["brightness"] == pytest.approx(values.mean(), rel=1e-3)
        assert whole.features(k)["spread"] == pytest.approx(np.log(values.std(axis=1) + 1e-3).mean(), rel=1e-3)


def face_pairs(given, image, axis):
    """(structure, value) of every voxel and of its neighbour behind it along an axis."""
    size = given.shape[axis]
    pairs = [(given.take(range(size - 1), axis), image.take(range(size - 1), axis))]
    pairs.append((given.take(range(1, size), axis), image.take(range(1, size), axis)))
    return pairs


@pytest.mark.parametrize("corner", [(0, 0, 0), (7, 3, 0), (4, 5, 6), (9, 6, 7)])
def test_a_structure_anywhere_counts_all_its_faces(corner):
    # Whole numbers, so that every sum is exact whatever its order; slabs of 4 planes, some without a structure.
    rng = np.random.default_rng(1)
    image = rng.integers(-9, 9, (10, 7, 8)).astype(np.float16)
    given = np.zeros((10, 7, 8), np.uint8)
    x, y, z = corner
    given[max(0, x - 1) : x + 1, max(0, y - 2) : y + 1, max(0, z - 1) : z + 1] = 1
    look = Appearance(image[None], 1)
    for start in (0, 4, 8):
        look.add(given[start : start + 4])
    falls, steps = [], []
    for axis in range(3):
        (one, before), (other, after) = face_pairs(given, image.astype(float), axis)
        falls += [*(before - after)[(one == 1) & (other == 0)], *(after - before)[(one == 0) & (other == 1)]]
        steps += [*np.square(after - before)[(one == 1) & (other == 1)]]
    found = look.features(0)
    assert found["brightness"] == pytest.approx(image[given == 1].astype(float).mean(), rel=1e-4)
    assert found["edge"] == pytest.approx(np.mean(falls), rel=1e-4)
    assert found["texture"] == pytest.approx(math.log(math.sqrt(np.mean(steps or [0])) + 1e-3), rel=1e-4)


def test_evidence_holds_it_where_the_image_is_given():
    names = ("background", "organ", "lesion")
    slab = np.zeros((3, 4, 2, 2), np.float32)
    slab[0, :2], slab[1, 2:] = 1, 1
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2)
    plain = gather_evidence([slab], class_names=names, spacing_xyz_mm=(1, 1, 1))
    with_image = gather_evidence([slab], class_names=names, spacing_xyz_mm=(1, 1, 1), image=seen_image(image))
    organ = with_image.structures["organ"]
    assert {name: value for name, value in organ.items() if name not in APPEARANCE} == plain.structures["organ"]
    assert organ["brightness"] == 11.5
    assert set(with_image.structures["lesion"]) == {"volume_ml"}
    overlapping = gather_evidence(
        [slab[1:]], class_names=names, spacing_xyz_mm=(1, 1, 1), regions=True, image=seen_image(image)
    )
    assert overlapping.structures["organ"]["brightness"] == 11.5
    assert overlapping.structures["organ"]["edge"] == 4


def test_what_is_kept_of_an_input():
    assert seen_image((np.zeros(3), np.zeros(4))) is None
    large = seen_image(np.array([1e6, -1e6, 0.5], np.float32).reshape(1, 3, 1, 1))
    assert large.dtype == np.float16
    assert np.isfinite(large).all()
    assert seen_image(large) is large
