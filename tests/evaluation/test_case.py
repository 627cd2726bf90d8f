import math
from dataclasses import replace

import brute_force
import numpy as np
import pytest

from medseg.errors import GeometryError, LabelError, ScanError
from medseg.evaluation import case as case_module
from medseg.evaluation.case import CaseTask, FileState, file_stamp, score_case, score_label_maps
from medseg.evaluation.protocol import make_protocol
from medseg.evaluation.registry import GROUPS, choose_metrics
from medseg.imaging import LabelMap

LABELS = {"background": (0,), "liver": (1,), "tumour": (2, 3)}
CALIBRATION = {metric.name for metric in GROUPS["calibration"]}
PROTOCOL = make_protocol(labels=LABELS, tolerance_mm={"liver": 2.0, "tumour": 1.0})
OBLIQUE = np.array([[0.6, -0.8, 0, 5], [0.8, 0.6, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1.0]]) @ np.diag([0.7, 0.7, 1, 1])


def label_map(array, affine=OBLIQUE):
    return LabelMap(np.asarray(array, np.uint8), np.asarray(affine, np.float64))


def assert_equal_but_for_the_background(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        differing = {key for key in one.values if one.values[key] != other.values[key]}
        assert differing <= {"specificity", "mcc"}
        assert replace(one, values={}) == replace(other, values={})


@pytest.fixture
def arrays():
    rng = np.random.default_rng(8)
    prediction, reference = rng.choice(4, (2, 9, 8, 6), p=(0.4, 0.4, 0.1, 0.1)).astype(np.uint8)
    return prediction, reference


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_equal_brute_force_per_class(arrays, order):
    prediction, reference = (np.asarray(a, order=order) for a in arrays)
    rows = score_label_maps(label_map(prediction), label_map(reference), protocol=PROTOCOL, name="c")
    assert [row.class_name for row in rows] == ["liver", "tumour"]
    for row, values, tolerance_mm in zip(rows, [(1,), (2, 3)], [2.0, 1.0], strict=True):
        masks = np.isin(prediction, values), np.isin(reference, values)
        wanted = brute_force.surface_metrics(*masks, (0.7, 0.7, 2.5), tolerance_mm)
        wanted |= brute_force.overlap_metrics(*masks)
        wanted["volume_prediction_ml"] = masks[0].sum() * 0.7 * 0.7 * 2.5 / 1000
        assert {key: row.values[key] for key in wanted} == pytest.approx(wanted, rel=1e-9)
        assert row.true_positive == (masks[0] & masks[1]).sum()
        assert row.situation == "present"
        assert row.diagonal_mm == pytest.approx(math.hypot(8 * 0.7, 7 * 0.7, 5 * 2.5))


def test_empty_classes(arrays):
    prediction, reference = arrays[0] * 0, (arrays[1] == 1).astype(np.uint8)
    liver, tumour = score_label_maps(label_map(prediction), label_map(reference), protocol=PROTOCOL, name="c")
    assert (liver.situation, tumour.situation) == ("missed", "both_empty")
    assert (liver.values["dice"], liver.values["nsd"], liver.values["hd95_mm"], liver.values["precision"]) == (
        0,
        0,
        None,
        None,
    )
    assert (tumour.values["dice"], tumour.values["hd_mm"], tumour.values["volume_difference_ml"]) == (None, None, 0)
    liver, _ = score_label_maps(label_map(reference), label_map(prediction), protocol=PROTOCOL, name="c")
    assert liver.situation == "spurious"
    assert (liver.values["dice"], liver.values["recall"], liver.values["volume_difference_percent"]) == (0, None, None)


def test_identical_masks(arrays):
    for row in score_label_maps(label_map(arrays[0]), label_map(arrays[0]), protocol=PROTOCOL, name="c"):
        assert [row.values[k] for k in ("dice", "iou", "precision", "recall", "nsd")] == [1.0] * 5
        assert [row.values[k] for k in ("hd_mm", "hd95_mm", "assd_mm", "volume_difference_ml")] == [0.0] * 4


def test_ignored_voxels_leave_both_masks(arrays):
    prediction, reference = arrays
    protocol = make_protocol(labels=LABELS, ignore=9, tolerance_mm=1.0)
    marked, emptied_p, emptied_r = reference.copy(), prediction.copy(), reference.copy()
    marked[3:5], emptied_p[3:5], emptied_r[3:5] = 9, 0, 0
    found = score_label_maps(label_map(prediction), label_map(marked), protocol=protocol, name="c")
    wanted = score_label_maps(label_map(emptied_p), label_map(emptied_r), protocol=protocol, name="c")
    assert_equal_but_for_the_background(found, wanted)
    # Specificity counts the voxels outside the reference, of planes 0 to 2 and 5 to 8.
    kept = [np.delete(array, (3, 4), axis=0) for array in (prediction, reference)]
    for row, values in zip(found, [(1,), (2, 3)], strict=True):
        p, r = (np.isin(array, values) for array in kept)
        assert row.values["specificity"] == (~p & ~r).sum() / (~r).sum()


def test_ignore_value_in_a_prediction_is_refused(arrays):
    protocol = make_protocol(labels=LABELS, ignore=9)
    with pytest.raises(
        LabelError, match=r"case_1: prediction: label values are 9 \(432 voxels\), expected only 0, 1, 2, 3"
    ):
        score_label_maps(label_map(arrays[0] * 0 + 9), label_map(arrays[1]), protocol=protocol, name="case_1")


def test_unknown_value_in_the_reference_is_refused(arrays):
    arrays[1][0, 0, 0] = 7
    with pytest.raises(LabelError, match=r"case_1: reference: label values are 7 \(1 voxel\)"):
        score_label_maps(label_map(arrays[0]), label_map(arrays[1]), protocol=PROTOCOL, name="case_1")


def test_unequal_grids_are_refused(arrays):
    moved = OBLIQUE.copy()
    moved[0, 3] += 0.01
    for other in (label_map(arrays[1], moved), label_map(arrays[1][:, :, :-1])):
        with pytest.raises(GeometryError, match="case_1: prediction and reference lie on different grids"):
            score_label_maps(label_map(arrays[0]), other, protocol=PROTOCOL, name="case_1")


def test_float_noise_in_the_affine_is_no_other_grid(arrays):
    noisy = OBLIQUE.astype(np.float32).astype(np.float64)
    assert score_label_maps(label_map(arrays[0]), label_map(arrays[1], noisy), protocol=PROTOCOL, name="c")


def test_skewed_axes_are_refused(arrays):
    skewed = OBLIQUE @ np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(GeometryError, match=r"case_1: axes are 5.7 degrees off right angles"):
        score_label_maps(label_map(arrays[0], skewed), label_map(arrays[1], skewed), protocol=PROTOCOL, name="case_1")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slice_is_scored_in_its_plane(arrays, axis):
    flat = [np.take(a, [2], axis) for a in arrays]
    spacing = [s for i, s in enumerate((0.7, 0.7, 2.5)) if i != axis]
    liver, _ = score_label_maps(label_map(flat[0]), label_map(flat[1]), protocol=PROTOCOL, name="c")
    wanted = brute_force.surface_metrics(flat[0].squeeze(axis) == 1, flat[1].squeeze(axis) == 1, spacing, 2.0)
    assert {key: liver.values[key] for key in wanted} == pytest.approx(wanted, rel=1e-9)
    assert liver.values["volume_reference_ml"] == pytest.approx((flat[1] == 1).sum() * 0.7 * 0.7 * 2.5 / 1000)


def test_single_voxel():
    one = label_map(np.ones((1, 1, 1)))
    liver, tumour = score_label_maps(one, one, protocol=PROTOCOL, name="c")
    assert (liver.values["dice"], liver.values["hd_mm"], liver.diagonal_mm) == (1.0, 0.0, 0.0)
    assert tumour.situation == "both_empty"


def test_the_48_orientations_score_alike(arrays):
    wanted = score_label_maps(label_map(arrays[0]), label_map(arrays[1]), protocol=PROTOCOL, name="c")[0].values
    turned_affine = OBLIQUE[:, [2, 0, 1, 3]]
    turned = [a.transpose(2, 0, 1) for a in arrays]
    flipped_affine = turned_affine.copy()
    flipped_affine[:3, 3] += turned_affine[:3, 1] * (turned[0].shape[1] - 1)
    flipped_affine[:3, 1] *= -1
    maps = [label_map(a[:, ::-1], flipped_affine) for a in turned]
    found = score_label_maps(*maps, protocol=PROTOCOL, name="c")[0].values
    assert found == pytest.approx(wanted, rel=1e-12)


def test_file_that_changed_since_it_was_hashed_is_refused(tmp_path, save_mask, arrays):
    path = save_mask(tmp_path / "a.nii.gz", arrays[0])
    state = FileState(path=path, sha256="-", stamp=file_stamp(path))
    task = CaseTask(case_id="case_1", prediction=state, reference=state, protocol=PROTOCOL)
    assert len(score_case(task).rows) == 2
    stale = FileState(path=path, sha256="-", stamp=(state.stamp[0], 0))
    with pytest.raises(ScanError, match="case_1: reference changed while it was read"):
        score_case(CaseTask(case_id="case_1", prediction=state, reference=stale, protocol=PROTOCOL))


def test_overlapping_labels_are_scored_as_whole_regions(arrays):
    prediction, reference = arrays
    protocol = make_protocol(
        labels={"background": (0,), "whole": (1, 2, 3), "core": (3, 2), "rim": (1,), "absent": (7, 3)}
    )
    rows = score_label_maps(label_map(prediction), label_map(reference), protocol=protocol, name="c")
    assert [row.class_name for row in rows] == ["whole", "core", "rim", "absent"]
    for row in rows:
        masks = [np.isin(array, protocol.labels[row.class_name]) for array in arrays]
        wanted = brute_force.surface_metrics(*masks, (0.7, 0.7, 2.5), 1.0) | brute_force.overlap_metrics(*masks)
        assert {key: row.values[key] for key in wanted} == pytest.approx(wanted, rel=1e-9)


def test_ignored_voxels_are_in_no_region(arrays):
    prediction, reference = arrays
    labels = {"background": (0,), "whole": (1, 2), "core": (2,)}
    marked = np.where(reference == 3, 9, reference)
    protocol = make_protocol(labels=labels, ignore=9)
    found = score_label_maps(label_map(prediction % 3), label_map(marked), protocol=protocol, name="c")
    emptied = [np.where(reference == 3, 0, array) for array in (prediction % 3, reference)]
    wanted = score_label_maps(*map(label_map, emptied), protocol=make_protocol(labels=labels), name="c")
    assert_equal_but_for_the_background(found, wanted)


def test_all_classes_together(arrays):
    prediction, reference = arrays
    found = case_module.score_case_arrays(
        prediction,
        reference,
        spacing_xyz_mm=(0.7, 0.7, 2.5),
        class_names=("background", "a", "b", "c"),
        tolerance_mm={"a": 1.0, "b": 1.0, "c": 1.0},
    ).values
    assert found["pixel_accuracy"] == pytest.approx((prediction == reference).mean())
    ious = [
        ((prediction == k) & (reference == k)).sum() / ((prediction == k) | (reference == k)).sum() for k in range(4)
    ]
    assert found["mean_iou"] == pytest.approx(np.mean(ious))
    frequencies = [(reference == k).mean() for k in range(4)]
    assert found["frequency_weighted_iou"] == pytest.approx(np.dot(ious, frequencies))


def test_nothing_is_said_of_all_classes_where_they_overlap_or_some_were_not_looked_for(tmp_path, save_mask, arrays):
    path = save_mask(tmp_path / "a.nii.gz", arrays[0])
    state = FileState(path=path, sha256="-", stamp=file_stamp(path))
    task = CaseTask(case_id="c", prediction=state, reference=state, protocol=PROTOCOL)
    assert score_case(task).values["pixel_accuracy"] == 1.0
    for other in (
        replace(task, labelled=("liver",)),
        replace(task, protocol=make_protocol(labels={"background": (0,), "all": (1, 2, 3), "core": (2,)})),
    ):
        assert set(score_case(other).values.values()) == {None}


def test_every_metric_whatever_the_memory_order_and_the_flat_axes(arrays):
    prediction, reference = arrays
    protocol = make_protocol(labels=LABELS, metrics=("all",))
    wanted = score_label_maps(label_map(prediction), label_map(reference), protocol=protocol, name="c")
    found = score_label_maps(
        label_map(np.asfortranarray(prediction)), label_map(np.asfortranarray(reference)), protocol=protocol, name="c"
    )
    for one, other in zip(found, wanted, strict=True):
        # Which of several centre lines remains depends on the order in which voxels are looked at.
        names = [name for name, value in other.values.items() if value is not None and name != "cldice"]
        assert [one.values[name] for name in names] == pytest.approx([other.values[name] for name in names], rel=1e-9)
    flat = score_label_maps(label_map(prediction[:, :1]), label_map(reference[:, :1]), protocol=protocol, name="c")
    undefined = {name for name, value in flat[0].values.items() if value is None}
    assert undefined - {"lesion_sq"} == CALIBRATION


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 1), (5, 1, 1), (1, 1, 1)])
def test_every_metric_of_a_class_that_neither_mask_has(shape):
    """Its box has no voxel, which no metric may stumble over."""
    classes = np.zeros(shape, np.uint8)
    classes[:2] = 1
    names = choose_metrics(("all", "hd99_mm", "nsd_surfel_2mm", "boundary_iou_3mm"))
    for probabilities in (None, np.full((2, *shape), 0.25, np.float32)):
        found = case_module.score_case_arrays(
            classes,
            classes,
            spacing_xyz_mm=(0.5, 1.0, 3.0),
            class_names=("background", "liver", "tumour"),
            tolerance_mm={"liver": 1.0, "tumour": 1.0},
            metrics=names,
            probabilities=probabilities,
        )
        liver, tumour = found.rows
        assert (liver.values["boundary_iou"], tumour.situation) == (1.0, "both_empty")
        known = {name for name, value in tumour.values.items() if value is not None}
        always = {
            name for name in names if name.startswith(("volume_p", "volume_ref", "volume_difference_ml", "lesions_"))
        }
        assert known == always | {"specificity"} | ({"ece", "brier"} if probabilities is not None else set())
