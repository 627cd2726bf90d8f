"""One phantom in many orders of axes, turned and oblique: the report must show each alike, and as worked out on paper."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from medseg.evaluation import run_evaluate
from medseg.evaluation.experiment import folder_set
from medseg.imaging import LabelMap, Volume, write_label_map, write_volume
from medseg.report.content import gather
from medseg.report.experiment import folder_inputs, scored_folders
from tests.synthetic import rotation

SPACING = (1.0, 1.5, 3.0)
ORDERS = {
    "ras": ((0, 1, 2), ()),
    "lps": ((0, 1, 2), (0, 1)),
    "las": ((0, 1, 2), (0,)),
    "sagittal, pir": ((1, 2, 0), (0, 1)),
    "coronal, rsa": ((0, 2, 1), ()),
    "ils": ((2, 0, 1), (0, 1)),
}


def written(folder, order, *, turn=None):
    """Phantom with a mark at its right, front, upper corner; the prediction lies 6 mm further to the right."""
    truth = np.zeros((24, 20, 12), np.uint8)
    truth[6:18, 6:14, 3:9] = 1
    truth[15:18, 11:14, 7:9] = 2
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(SPACING)
    affine[:3, 3] = (-40, 7, 300)
    axes, flipped = order
    on_disk = affine.copy()
    on_disk[:3, :3] = affine[:3, axes]
    for axis in flipped:
        on_disk[:3, 3] += on_disk[:3, axis] * (truth.shape[axes[axis]] - 1)
        on_disk[:3, axis] *= -1

    def turned(array):
        return np.ascontiguousarray(np.flip(np.transpose(array, axes), flipped))

    for side in ("p", "r", "scans"):
        (folder / side).mkdir(parents=True)
    write_label_map(LabelMap(turned(truth), on_disk), folder / "r" / "a.nii.gz", like=None)
    moved = np.roll(truth, 6, axis=0)
    write_label_map(LabelMap(turned(moved), on_disk), folder / "p" / "a.nii.gz", like=None)
    write_volume(Volume(turned(100.0 * truth).astype(np.float32)[None], on_disk), folder / "scans" / "a.nii.gz")
    cases = folder_set("set", predictions=folder / "p", references=folder / "r", labels="organ=1,mark=2")
    run_evaluate(cases, output=folder / "scores", processes=1)
    again = scored_folders(folder / "scores", predictions=folder / "p", references=folder / "r")
    content = gather(folder_inputs(folder / "scores", again, scans=folder / "scans"))
    ((one,), failures) = content.shown, {(f.class_name, f.kind): f.reason for f in content.failures}
    return one, failures


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return written(tmp_path_factory.mktemp("straight"), ORDERS["ras"])


@pytest.mark.parametrize("turn", [None, rotation(12, -17, 21)], ids=["straight", "oblique"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_axes_is_shown_alike(straight, tmp_path, order, turn):
    one, failures = written(tmp_path, ORDERS[order], turn=turn)
    wanted, reasons = straight
    assert one.data == wanted.data
    assert one.still == wanted.still
    assert failures == reasons


def opened(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


def tile(plane, sheet, number):
    width, height = plane["tile"]
    row, column = divmod(number, plane["columns"])
    return sheet[row * height :, column * width :][:height, :width]


# (name, letters, tile, pixel, slice, (rows and columns of the mark, columns of the whole truth and of the prediction))
SEEN = [
    ("axial", ["R", "L", "A", "P"], [24, 20], [1.0, 1.5], 7, ((6, 8), (6, 8), (6, 17), (0, 11))),
    ("coronal", ["R", "L", "S", "I"], [24, 12], [1.0, 3.0], 12, ((3, 4), (6, 8), (6, 17), (0, 11))),
    ("sagittal", ["A", "P", "S", "I"], [20, 12], [1.5, 3.0], 16, ((3, 4), (6, 8), (6, 13), (6, 13))),
]


@pytest.mark.parametrize(("name", "letters", "size", "pixel", "number", "place"), SEEN)
def test_planes_lie_as_worked_out(straight, name, letters, size, pixel, number, place):
    plane = next(plane for plane in straight[0].data["planes"] if plane["name"] == name)
    assert (plane["letters"], plane["tile"], plane["pixel"]) == (letters, size, pixel)
    at = plane["slices"].index(number)
    masks, scan = tile(plane, opened(plane["masks"]), at), tile(plane, opened(plane["scan"]), at)
    wanted, predicted = masks[..., 0] // 85, masks[..., 1] // 85  # four levels: background, organ, mark, ignored
    mark = np.argwhere(wanted == 2)
    found = (mark[:, 0], mark[:, 1], np.argwhere(wanted > 0)[:, 1], np.argwhere(predicted > 0)[:, 1])
    assert tuple((one.min(), one.max()) for one in found) == place
    assert np.array_equal(scan[..., 0] > 0, wanted > 0)


def test_the_direction_is_the_patients(straight):
    _, failures = straight
    reason = failures["organ", "shifted"]
    assert reason.startswith("lies 6 mm right of the reference; ")
