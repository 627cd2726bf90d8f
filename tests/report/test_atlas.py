import base64
import io

import numpy as np
import pytest
from PIL import Image

from medseg.report.atlas import (
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
from medseg.report.content import Shown
from medseg.report.planes import AXIAL
from medseg.report.viewer import PALETTE, atlases


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
    shown = [Shown(case=case, ranks=("worst",)), Shown(case=case, ranks=("median",))]
    whole, kept, words = atlases(shown, 10_000_000)
    assert (len(kept), words) == (2, [])
    size = sum(len(plane[name]) for plane in whole[0]["planes"] for name in ("scan", "masks", "entropy"))
    found, kept, words = atlases(shown, int(size * 1.6))
    assert len(kept) == 2
    assert words[0].startswith("Slices of 2 cases: shown are every so-many-th")
    counts = [len(plane["slices"]) for plane in found[0]["planes"]]
    assert counts[2] < 20
    assert sum(len(p[n]) for one in found for p in one["planes"] for n in ("scan", "masks", "entropy")) <= size * 1.6


def test_cases_are_left_out_from_the_end(case):
    shown = [Shown(case=case, ranks=("worst",)), Shown(case=case, ranks=("median",))]
    least = sum(len(p[n]) for p in case_json(case, most=12)["planes"] for n in ("scan", "masks", "entropy"))
    found, kept, words = atlases(shown, least + 10)
    assert (len(found), kept) == (1, shown[:1])
    assert words[-1] == "Slices of a: they would have made the file too large."
    assert atlases(shown, 10)[0] == []


def test_a_still_picture_for_readers_without_scripts(case):
    data = still_png(case, PALETTE)
    picture = Image.open(io.BytesIO(data))
    assert picture.height == 220
    assert data == still_png(case, PALETTE)
