"""The demo's scans: the same each time, oblique, and not to be solved by grey values."""

import numpy as np
import pytest

from medseg.cli.demo_scans import LABELS, Patient, make_patient


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return [make_patient(number, seed=3) for number in range(4)]


def test_same_number_and_seed_give_the_same_voxels(patients: list[Patient]):
    again = make_patient(2, seed=3)
    np.testing.assert_array_equal(again.image, patients[2].image)
    np.testing.assert_array_equal(again.labels, patients[2].labels)
    np.testing.assert_array_equal(again.affine, patients[2].affine)


def test_another_seed_or_number_gives_another_patient(patients: list[Patient]):
    assert make_patient(2, seed=4).image.tobytes() != patients[2].image.tobytes()
    assert patients[0].image.tobytes() != patients[1].image.tobytes()


def test_both_classes_are_present_and_inside_the_picture(patients: list[Patient]):
    for patient in patients:
        counts = np.bincount(patient.labels.ravel(), minlength=3)
        assert len(counts) == len(LABELS)
        assert counts[LABELS["organ"]] > 800
        assert counts[LABELS["duct"]] > 100
        assert patient.labels.shape == patient.image.shape


def test_grids_are_oblique_anisotropic_and_of_all_kinds(patients: list[Patient]):
    for patient in patients:
        columns = patient.affine[:3, :3]
        spacing_mm = np.sort(np.linalg.norm(columns, axis=0))
        assert spacing_mm[2] / spacing_mm[0] > 1.5
        directions = columns / np.linalg.norm(columns, axis=0)
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
        assert np.abs(directions).max(axis=0).min() < 0.9999
    assert len({patient.image.shape for patient in patients}) == len(patients)


def test_organ_lies_on_the_same_side_of_the_world_whatever_the_axis_order(patients: list[Patient]):
    for patient in patients:
        middle = np.argwhere(patient.labels == LABELS["organ"]).mean(axis=0)
        body = np.argwhere(patient.image > patient.image.mean()).mean(axis=0)
        offset_mm = patient.affine[:3, :3] @ (middle - body)
        assert offset_mm[0] > 5


def test_neighbours_are_as_bright_as_the_organ_and_as_dark_as_the_duct(patients: list[Patient]):
    for patient in patients:
        background = patient.image[patient.labels == 0]
        for value in (LABELS["organ"], LABELS["duct"]):
            low, high = np.quantile(patient.image[patient.labels == value], [0.1, 0.9])
            alike = np.count_nonzero((background > low) & (background < high))
            assert alike > 2 * np.count_nonzero(patient.labels == value)
