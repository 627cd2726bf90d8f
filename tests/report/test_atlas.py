import base64
import io

import numpy as np
import pytest
from PIL import Image

from medseg.report.atlas import (
    bytes_of,
    case_json,
    display_window,
    level_step,
    mask_png,
    plane_json,
    shown_case,
    still_png,
    tiled,
    to_levels,
)
from medseg.report.planes import AXIAL
from medseg.report.shown import PALETTE, encoded


def decoded(url):
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))).convert("RGB")
    )


def indices(url, levels):
    """(truth, prediction) of an atlas, as the page's script reads them."""
    picture = decoded(url)
    return [np.rint(picture[..., channel] / level_step(levels)).astype(int) for channel in (0, 1)]


@pytest.fixture
def case(masks_of):
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 20, 18, 9)).astype(np.uint8)
    masks = masks_of(prediction, truth, names=("organ", "lesion"), spacing=(1.0, 2.0, 4.0))
    scan = rng.normal(0, 1, truth.shape).astype(np.float32)
    return shown_case(masks, indices=2, scan=scan, entropy=np.abs(scan) / 9, hounsfield=False)


def test_tiles_lie_row_by_row():
    stack = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    assert tiled(stack, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 0, 0], [10, 11, 0, 0]]


@pytest.mark.parametrize("levels", [2, 4, 40, 256])
def test_an_atlas_gives_back_every_index(levels):
    rng = np.random.default_rng(levels)
    truth, prediction = rng.integers(0, levels, (2, 60, 70)).astype(np.uint8)
    data = mask_png(truth, prediction, levels)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for got, wanted in zip(indices(url, levels), (truth, prediction), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_few_pairs_of_indices_give_an_indexed_png():
    data = mask_png(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8), 2)
    assert Image.open(io.BytesIO(data)).mode == "P"


def test_a_plane_says_where_its_slices_lie(case):
    plane = plane_json(case, AXIAL, most=100)
    assert (plane["slices"], plane["tile"], plane["pixel"], plane["gap"]) == (list(range(9)), [20, 18], [1.0, 2.0], 4.0)
    assert (plane["through"], plane["across"], plane["down"]) == (2, [0, True, 1], [1, True, 1])
    truth, _ = indices(plane["masks"], case.levels)
    width, height = plane["tile"]
    for number in plane["slices"]:
        left, top = number % plane["columns"] * width, number // plane["columns"] * height
        # Columns run from the patient's right to left, rows from front to back.
        shown = truth[top : top + height, left : left + width]
        np.testing.assert_array_equal(shown[::-1, ::-1].T, case.truth[:, :, number])


def test_ignored_voxels_have_an_index_of_their_own(masks_of):
    truth = np.zeros((8, 8, 4), np.uint8)
    truth[2:5, 2:5, 1:3] = 1
    ignored = np.zeros(truth.shape, np.bool_)
    ignored[6] = True
    case = shown_case(masks_of(truth, truth, ignored=ignored), indices=1, scan=None, entropy=None, hounsfield=False)
    assert set(np.unique(case.truth)) == {0, 1, 2}
    assert case.levels == 3
    assert case_json(case, most=9)["planes"][0]["scan"] is None


def test_windows():
    values = np.linspace(0, 1000, 1001, dtype=np.float32).reshape(7, 11, 13)
    inside = np.zeros(values.shape, np.bool_)
    assert display_window(values, inside, hounsfield=False) == pytest.approx((5, 995))
    inside.ravel()[300:501] = True  # 300 to 500 HU: narrower than 400
    assert display_window(values, inside, hounsfield=True) == pytest.approx((200, 600))
    assert display_window(np.full((2, 2, 2), 7, np.float32), inside[:2, :2, :2], hounsfield=False) == (7, 8)
    assert to_levels(np.array([-1, 0, 5, 10, np.nan, np.inf], np.float32), (0, 10)).tolist() == [0, 0, 128, 255, 0, 255]


def test_slices_are_left_out_evenly_until_they_fit(case):
    whole = encoded(case, ("worst",), 10_000_000)
    assert whole.thinned is None
    size = bytes_of(whole.data)
    half = encoded(case, ("worst",), size * 8 // 10)
    assert bytes_of(half.data) <= size * 8 // 10
    assert half.thinned == "9 + 9 + 10 of 9 + 18 + 20"
    assert half.data["planes"][2]["slices"][1] - half.data["planes"][2]["slices"][0] == 2
    assert encoded(case, ("worst",), 100) is None


def test_a_large_case_is_not_encoded_whole_first(masks_of, monkeypatch):
    tried = []
    monkeypatch.setattr(
        "medseg.report.shown.case_json", lambda case, *, most: tried.append(most) or case_json(case, most=12)
    )
    truth = np.ones((120, 120, 120), np.uint8)
    scan = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    encoded(shown_case(masks_of(truth, truth), indices=1, scan=scan, entropy=None, hounsfield=False), (), 600_000)
    assert tried[0] < 45  # 120 slices of 120 x 120 pixels, three times, take 1.8 MB at the very least


def test_a_still_picture_for_readers_without_scripts(case):
    data = encoded(case, (), 10_000_000).still
    picture = Image.open(io.BytesIO(data))
    assert picture.height == 220
    assert data == still_png(case, PALETTE)
