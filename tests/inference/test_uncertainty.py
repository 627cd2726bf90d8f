"""Features of probabilities, worked out on paper."""

import math

import numpy as np
import pytest

from medseg.inference.uncertainty import doubt_centres, gather_evidence, tempered, voxel_entropy

NAMES = ("background", "organ", "lesion")


def two_blocks(sure=0.9):
    """(3, 8, 6, 6): organ in x 1..3, lesion in x 4..5, both y and z 2..3, with probability ``sure`` inside; 0 elsewhere."""
    slab = np.zeros((3, 8, 6, 6), np.float32)
    slab[0] = 1
    for k, (start, stop) in ((1, (1, 4)), (2, (4, 6))):
        slab[:, start:stop, 2:4, 2:4] = 0
        slab[k, start:stop, 2:4, 2:4] = sure
        slab[0, start:stop, 2:4, 2:4] = 1 - sure
    return slab


@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 4, 5)])
def test_features_on_paper_however_the_scan_is_cut(cuts):
    slabs = np.split(two_blocks(), cuts, axis=1)
    found = gather_evidence(slabs, class_names=NAMES, spacing_xyz_mm=(2.0, 1.0, 1.0))
    organ = found.structures["organ"]
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(3)
    # 12 voxels of 2 mm³; faces: 2 x 4 mm² across x, 3 x 2 along each of 4 sides of 2 mm² each = 48.
    surface = 8 + 48
    assert organ["volume_ml"] == pytest.approx(0.024)
    assert organ["soft_dice"] == pytest.approx(2 * 10.8 / (12 + 10.8), rel=1e-5)
    assert organ["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert organ["rim_mm"] == pytest.approx(4 * 12 * 0.09 * 2 / surface, rel=1e-4)
    assert organ["outside"] == pytest.approx(0, abs=1e-6)
    assert organ["compactness"] == pytest.approx(surface / 24 ** (2 / 3), rel=1e-5)
    assert organ["contact"] == pytest.approx(4 / surface, rel=1e-5)
    assert [organ[f"length_{axis}_mm"] for axis in "xyz"] == [6, 2, 2]
    # 20 voxels of a structure with a doubt of 0.1: octave 3.3, the 14th quarter.
    assert (found.inside[13], sum(found.inside)) == (20, 20)
    assert sum(found.outside) == 0
    assert found.voxel_ml == 0.002


def test_structures_in_corners_and_slabs_without_any():
    # Two voxels in opposite corners of 9 x 5 x 4 voxels of 1 mm, three slabs, the middle one empty.
    slab = np.zeros((3, 9, 5, 4), np.float32)
    slab[0] = 1
    for k, place in ((1, (0, 0, 0)), (2, (8, 4, 3))):
        slab[(0, *place)], slab[(k, *place)] = 0.25, 0.75
    slab[1, 4, 2, 2], slab[0, 4, 2, 2] = 0.25, 0.75
    found = gather_evidence(np.split(slab, (3, 6), axis=1), class_names=NAMES, spacing_xyz_mm=(1.0, 1.0, 1.0))
    for name, outside in (("organ", 0.25), ("lesion", 0.0)):
        own = found.structures[name]
        assert own["volume_ml"] == 0.001
        assert own["compactness"] == 3  # three faces within the scan
        assert own["contact"] == 0
        assert own["outside"] == pytest.approx(outside / 1)
        assert [own[f"length_{axis}_mm"] for axis in "xyz"] == [1, 1, 1]
    assert sum(found.inside) == 2
    assert (sum(found.outside), found.outside[8]) == (1, 1)  # 0.25: two octaves


def test_equal_probabilities_go_to_the_lowest_class():
    slab = np.full((3, 1, 1, 2), 1 / 3, np.float32)
    slab[:, 0, 0, 1] = (0.2, 0.4, 0.4)
    found = gather_evidence([slab], class_names=NAMES, spacing_xyz_mm=(1.0, 1.0, 1.0))
    assert [found.structures[name]["volume_ml"] for name in NAMES[1:]] == [0.001, 0]


def test_overlapping_regions_count_each_for_itself():
    slab = np.zeros((2, 6, 6, 6), np.float32)
    slab[0, 1:5, 1:5, 1:5] = 0.75
    slab[1, 2:4, 2:4, 2:4] = 0.75
    found = gather_evidence([slab[:, :3], slab[:, 3:]], class_names=NAMES, spacing_xyz_mm=(1.0, 1.0, 1.0), regions=True)
    assert [found.structures[name]["volume_ml"] for name in NAMES[1:]] == [0.064, 0.008]
    assert found.structures["lesion"]["compactness"] == pytest.approx(6)
    bits = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert found.structures["organ"]["entropy"] == pytest.approx(bits, rel=1e-5)


def test_an_empty_structure_has_a_volume_and_nothing_else():
    found = gather_evidence([two_blocks()[:2]], class_names=NAMES[:2], spacing_xyz_mm=(1.0, 1.0, 1.0))
    empty = np.zeros((2, 4, 4, 4), np.float32)
    empty[0] = 1
    assert gather_evidence([empty], class_names=NAMES[:2], spacing_xyz_mm=(1, 1, 1)).structures == {
        "organ": {"volume_ml": 0}
    }
    assert found.structures["organ"]["volume_ml"] > 0


def test_entropy_runs_from_certain_to_all_alike():
    slab = np.array([[1.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]], np.float32)[:, :, None, None]
    assert voxel_entropy(slab).ravel() == pytest.approx([0, 1, math.log(2) / math.log(3)], abs=1e-6)
    assert voxel_entropy(slab[:1], regions=True).ravel() == pytest.approx([0, 0.9183, 1], abs=1e-4)


def test_temperature_divides_logits():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.5]], np.float32)
    soft = np.exp(logits) / np.exp(logits).sum(axis=0)
    cooler = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=0)
    assert tempered(soft, 2.0) == pytest.approx(cooler, abs=1e-6)
    region = 1 / (1 + np.exp(-logits))
    assert tempered(region, 2.0, regions=True) == pytest.approx(1 / (1 + np.exp(-logits / 2)), abs=1e-6)
    assert tempered(soft, 1.0) is soft


def test_bins_of_doubt_halve_every_four():
    centres = doubt_centres()
    assert centres[4] == pytest.approx(centres[0] / 2)
    assert centres[-1] == 0
