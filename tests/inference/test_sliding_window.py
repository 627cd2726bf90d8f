"""Windows, weights and blending, against paper, SciPy, MONAI and a naive float64 computation."""

import itertools

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy.ndimage import gaussian_filter

from medseg.inference.sliding_window import predict_scores
from medseg.networks.windows import (
    Tally,
    blend_windows,
    default_batch_size,
    importance_curve,
    mirror_combinations,
    window_starts,
)


def scan(shape=(2, 11, 9, 7), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_network(channels=2, classes=3, planar=False, seed=0):
    torch.manual_seed(seed)
    convolution = torch.nn.Conv2d if planar else torch.nn.Conv3d
    layers = [convolution(channels, 5, 3, padding=1), torch.nn.Tanh(), convolution(5, classes, 3, padding=1)]
    return torch.nn.Sequential(*layers).eval()


def naive_scores(array, network, patch, classes, overlap, mirror_axes, slice_axis=None):
    """nnU-Net's recipe written down once more in float64, without any of the engine's short cuts."""
    lack = [max(0, p - n) for p, n in zip(patch, array.shape[1:], strict=True)]
    before = [n // 2 for n in lack]
    padded = np.pad(array.astype(np.float64), [(0, 0), *((b, n - b) for b, n in zip(before, lack, strict=True))])
    delta = np.zeros(patch)
    delta[tuple(p // 2 for p in patch)] = 1
    gauss = gaussian_filter(delta, [p / 8 for p in patch], mode="constant", cval=0)
    starts = []
    for size, p in zip(padded.shape[1:], patch, strict=True):
        count = 1 if size == p else (size - p if p == 1 else int(np.ceil((size - p) / (p * (1 - overlap))))) + 1
        step = (size - p) / (count - 1) if count > 1 else 0
        starts.append([int(np.round(step * i)) for i in range(count)])
    total, weights = np.zeros((classes, *padded.shape[1:])), np.zeros(padded.shape[1:])
    axes = [a for n in range(len(mirror_axes) + 1) for a in itertools.combinations(mirror_axes, n)]
    for start in itertools.product(*starts):
        where = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        mean = np.zeros((classes, *patch))
        for flips in ([1 + a for a in subset] for subset in axes):
            window = torch.from_numpy(np.flip(padded[(slice(None), *where)], flips).copy())[None]
            with torch.no_grad():
                if slice_axis is None:
                    answer = network(window)
                else:
                    answer = network(window.select(2 + slice_axis, 0)).unsqueeze(2 + slice_axis)
            mean += np.flip(answer[0].numpy(), flips) / len(axes)
        total[(slice(None), *where)] += mean * gauss
        weights[where] += gauss
    cut = tuple(slice(b, b + n) for b, n in zip(before, array.shape[1:], strict=True))
    return (total / weights)[(slice(None), *cut)]


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "expected"),
    [
        (300, 128, 0.5, (0, 57, 115, 172)),  # ceil(172 / 64) + 1 = 4 windows, 57.33 apart
        (128, 128, 0.5, (0,)),
        (129, 128, 0.5, (0, 1)),
        (192, 128, 0.5, (0, 64)),
        (10, 4, 0.0, (0, 3, 6)),
        (200, 100, 0.9, tuple(range(0, 101, 10))),
        (4, 1, 0.5, (0, 1, 2, 3)),  # a slice is a window, and no slice comes twice
    ],
)
def test_window_starts_on_paper(size, patch, overlap, expected):
    assert window_starts(size, patch, overlap) == expected


def test_windows_cover_every_voxel_and_overlap_enough():
    for size, patch, overlap in itertools.product(range(5, 40), (2, 3, 5), (0.0, 0.25, 0.5, 0.75)):
        starts = window_starts(size, patch, overlap)
        assert starts[0] == 0
        assert starts[-1] == size - patch
        gaps = np.diff(starts)
        assert np.all(gaps >= 1)
        # Rounding to whole voxels may cost half a voxel at either end.
        assert np.all(gaps <= max(1, int(np.ceil(patch * (1 - overlap)))))


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "message"),
    [(3, 4, 0.5, "does not fit an axis of 3"), (4, 0, 0.5, "0 voxels"), (8, 4, 1.0, "overlap is 1.0")],
)
def test_window_starts_refuses(size, patch, overlap, message):
    with pytest.raises(ValueError, match=message):
        window_starts(size, patch, overlap)


@pytest.mark.parametrize("patch", [1, 4, 7, 40, 56])
def test_importance_curve_is_scipys_filtered_delta(patch):
    delta = np.zeros(patch)
    delta[patch // 2] = 1
    filtered = gaussian_filter(delta, patch / 8, mode="constant")
    np.testing.assert_allclose(importance_curve(patch), filtered / filtered.max(), rtol=1e-9)


def test_mirror_combinations():
    assert mirror_combinations(()) == ((),)
    assert mirror_combinations((2, 0)) == ((), (0,), (2,), (0, 2))
    assert len(mirror_combinations((0, 1, 2))) == 8
    with pytest.raises(ValueError, match="mirror axes are"):
        mirror_combinations((3,))


def test_default_batch_size_follows_the_patch():
    assert default_batch_size((40, 56, 40), "cpu") == 2
    assert default_batch_size((128, 128, 128), "cpu") == 1
    assert default_batch_size((128, 128, 128), "cuda") == 4
    assert default_batch_size((256, 256, 1), "cuda") == 32


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(
    ("shape", "patch", "overlap", "mirror_axes"),
    [
        ((2, 11, 9, 7), (4, 6, 5), 0.5, ()),
        ((2, 11, 9, 7), (6, 6, 5), 0.25, (0, 1, 2)),
        ((2, 3, 9, 2), (6, 6, 5), 0.5, (1,)),  # smaller than the patch along two axes, by an odd number of voxels
        ((2, 6, 6, 5), (6, 6, 5), 0.5, (0, 2)),
    ],
)
def test_scores_equal_a_naive_float64_computation(shape, patch, overlap, mirror_axes, batch_size):
    array, network = scan(shape), small_network()
    scores = predict_scores(
        array,
        network,
        patch_size_xyz=patch,
        class_count=3,
        overlap=overlap,
        mirror_axes_xyz=mirror_axes,
        batch_size=batch_size,
    )
    expected = naive_scores(array, small_network().double(), patch, 3, overlap, mirror_axes)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "patch", "axis"),
    [((11, 5, 1), (6, 8, 1), 2), ((11, 5, 4), (6, 8, 1), 2), ((11, 4, 5), (6, 1, 8), 1), ((4, 11, 5), (1, 6, 8), 0)],
)
def test_planar_network_goes_slice_by_slice(shape, patch, axis):
    array = scan((2, *shape))
    scores = predict_scores(
        array,
        small_network(planar=True),
        patch_size_xyz=patch,
        class_count=3,
        mirror_axes_xyz=(0, 1, 2),
        slice_axis=axis,
    )
    mirrored = tuple(a for a in range(3) if a != axis)
    expected = naive_scores(array, small_network(planar=True).double(), patch, 3, 0.5, mirrored, slice_axis=axis)
    np.testing.assert_allclose(scores, expected, atol=2e-6)


def test_slices_in_the_middle_of_a_stack_are_a_batch():
    """One forward pass for as many slices as one batch holds, whichever axis they are stacked along."""
    sizes = []

    def network(x):
        sizes.append(x.shape[0])
        return x[:, :1]

    predict_scores(scan((1, 8, 6, 8)), network, patch_size_xyz=(8, 1, 8), class_count=1, batch_size=4, slice_axis=1)
    assert sizes == [4, 2]


@pytest.mark.parametrize("mirror_axes", [(), (0, 1, 2)])
def test_a_constant_network_gives_its_constant(mirror_axes):
    answer = torch.tensor([0.7, -3.25, 40.0])

    def network(x):
        return answer[None, :, None, None, None].expand(x.shape[0], 3, *x.shape[2:])

    scores = predict_scores(
        scan((1, 30, 21, 9)), network, patch_size_xyz=(8, 8, 8), class_count=3, mirror_axes_xyz=mirror_axes
    )
    np.testing.assert_allclose(scores, np.broadcast_to(answer.numpy()[:, None, None, None], scores.shape), rtol=5e-7)


def test_a_network_that_answers_voxel_by_voxel_gives_its_answer_exactly_where_one_window_is_enough():
    array = scan((2, 7, 6, 5))
    scores = predict_scores(array, lambda x: 2 * x, patch_size_xyz=(8, 8, 8), class_count=2)
    np.testing.assert_array_equal(scores, 2 * array)


def test_a_network_that_answers_voxel_by_voxel_is_blended_into_its_answer():
    array = scan((2, 31, 17, 12))
    scores = predict_scores(array, lambda x: 2 * x, patch_size_xyz=(8, 6, 4), class_count=2, mirror_axes_xyz=(0, 1))
    np.testing.assert_allclose(scores, 2 * array, rtol=1e-6)


@pytest.mark.parametrize("overlap", [0.5, 0.75])
def test_equals_monai_where_the_definitions_coincide(overlap):
    # MONAI snaps the last window to the end, which is even spacing when steps come out whole; it is handed our weights.
    patch, array, network = (8, 8, 4), scan((2, 20, 16, 10)), small_network()
    curves = [torch.from_numpy(importance_curve(p)).float() for p in patch]
    weights = torch.einsum("x,y,z->xyz", *curves)
    with torch.no_grad():
        expected = sliding_window_inference(
            torch.from_numpy(array)[None], patch, 4, network, overlap=overlap, roi_weight_map=weights
        )
    scores = predict_scores(array, network, patch_size_xyz=patch, class_count=3, overlap=overlap)
    np.testing.assert_allclose(scores, expected[0].numpy(), atol=2e-5)


def test_blending_stays_float32_under_bf16_autocast():
    def network(x):
        return torch.full((x.shape[0], 1, *x.shape[2:]), 0.7, dtype=torch.bfloat16)

    scores = predict_scores(
        scan((1, 30, 20, 10)), network, patch_size_xyz=(8, 8, 8), class_count=1, precision=torch.bfloat16
    )
    # 0.7 in bf16 is 0.69921875; blending in bf16 would be off by up to 3e-3.
    np.testing.assert_allclose(scores, 0.69921875, rtol=5e-7)


def test_bf16_autocast_reaches_the_network():
    seen = []
    network = small_network()
    network.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    predict_scores(scan(), network, patch_size_xyz=(6, 6, 5), class_count=3, precision=torch.bfloat16)
    predict_scores(scan(), network, patch_size_xyz=(6, 6, 5), class_count=3)
    assert {seen[0], seen[-1]} == {torch.bfloat16, torch.float32}


def test_the_image_is_left_alone_and_the_result_is_repeatable():
    array = scan()
    before = array.copy()
    first, second = (
        predict_scores(array, small_network(), patch_size_xyz=(4, 6, 5), class_count=3, mirror_axes_xyz=(0,))
        for _ in range(2)
    )
    np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(first, second)


def test_refuses_a_network_in_training_mode():
    with pytest.raises(ValueError, match="training mode"):
        predict_scores(scan(), small_network().train(), patch_size_xyz=(4, 4, 4), class_count=3)


def test_refuses_a_network_of_other_classes():
    with pytest.raises(ValueError, match=r"shape \(4, 3, 4, 4, 4\), expected \(4, 5, 4, 4, 4\)"):
        predict_scores(scan(), small_network(), patch_size_xyz=(4, 4, 4), class_count=5, batch_size=4)


def test_refuses_a_thick_patch_for_a_planar_network():
    with pytest.raises(ValueError, match="expected y = 1"):
        predict_scores(scan(), small_network(planar=True), patch_size_xyz=(4, 4, 4), class_count=3, slice_axis=1)


def test_blend_windows_gathers_on_the_images_device():
    scores = blend_windows(torch.from_numpy(scan()), small_network(), patch_size_xyz=(6, 6, 5), class_count=3)
    assert scores.device.type == "cpu"
    assert not scores.requires_grad


# --- background, and planes that leave memory -----------------------------------------------------------------------


def spot(shape=(1, 40, 24, 16)):
    """A scan of which most is its lowest value, as air is, with a bright corner."""
    array = np.full(shape, -1.5, np.float32)
    array[:, 30:, 16:, 8:] = scan((shape[0], 10, 8, 8)) + 5
    return array


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_background_windows_are_computed_once(mirror_axes):
    passes = []
    network, tally = small_network(channels=1), Tally()
    network.register_forward_hook(lambda _module, inputs, _output: passes.append(inputs[0].shape[0]))
    arguments = {"patch_size_xyz": (8, 8, 8), "class_count": 3, "mirror_axes_xyz": mirror_axes, "batch_size": 3}
    expected = predict_scores(spot(), network, **arguments)
    every = sum(passes)
    passes.clear()
    scores = predict_scores(spot(), network, skip_background=True, tally=tally, **arguments)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    copies = 2 ** len(mirror_axes)
    assert tally.windows == 9 * 5 * 3
    # Not background: the windows that reach x >= 30, y >= 16 and z >= 8, 3 x 2 x 2 of them.
    assert tally.skipped == tally.windows - 3 * 2 * 2 - 1
    assert sum(passes) == every - copies * tally.skipped


def test_a_window_with_one_voxel_above_the_lowest_is_no_background():
    array, tally = np.zeros((2, 16, 8, 8), np.float32), Tally()
    array[1, 12, 4, 4] = 1e-3
    array[0] = -4  # a constant channel is at its lowest everywhere
    scores = predict_scores(
        array, lambda x: x, patch_size_xyz=(8, 8, 8), class_count=2, overlap=0.0, skip_background=True, tally=tally
    )
    assert (tally.windows, tally.skipped) == (2, 0)
    np.testing.assert_array_equal(scores, array)


class Planes:
    """Takes planes, and sees to their order."""

    def __init__(self, axis):
        self.axis, self.parts, self.next, self.deepest = axis, [], 0, 0

    def take(self, planes, start):
        assert start == self.next
        self.next += planes.shape[1 + self.axis]
        self.deepest = max(self.deepest, planes.shape[1 + self.axis])
        self.parts.append(planes.clone())


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("shape", "patch", "slice_axis"),
    [((1, 40, 24, 16), (8, 8, 8), None), ((1, 9, 24, 5), (12, 8, 8), None), ((1, 5, 14, 12), (1, 8, 6), 0)],
)
def test_planes_leave_memory_as_they_are_finished(shape, patch, slice_axis, axis, skip):
    array = spot(shape) if shape[1] == 40 else scan(shape)
    network = small_network(channels=1, planar=slice_axis is not None)
    arguments = {"patch_size_xyz": patch, "class_count": 3, "slice_axis": slice_axis, "mirror_axes_xyz": (1,)}
    expected = predict_scores(array, network, **arguments)
    sink = Planes(axis)
    empty = predict_scores(array, network, sink=sink, skip_background=skip, batch_size=3, **arguments)
    assert empty.size == 0
    assert sink.next == shape[1 + axis]
    assert sink.deepest <= patch[axis]
    np.testing.assert_allclose(torch.cat(sink.parts, dim=1 + axis).numpy(), expected, atol=2e-6)
