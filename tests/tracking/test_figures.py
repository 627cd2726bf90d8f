import io

import numpy as np
import pytest
from PIL import Image

from medseg.tracking.figures import captioned, is_loss, learning_curves_png, overlay_png

ORANGE = (230, 159, 0)


def _picture(data):
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture.convert("RGB"))


def test_curves_are_a_png_and_the_same_twice():
    history = {"train/loss": [(2, 0.5), (1, 1.0)], "validation/dice": [(1, 0.2), (2, float("nan"))]}
    data = learning_curves_png(history)
    assert _picture(data).shape == (360, 900, 3)
    assert data == learning_curves_png(history)
    assert data != learning_curves_png({})


def test_no_name_of_a_class_can_stop_a_training():
    """Neither mathematics, nor a letter that the typeface lacks, nor a Dice that is undefined, nor a hundred classes."""
    history = {f"validation Dice {name}": [(1, 0.5), (2, None)] for name in ("$\\frac$", "\u4e2d\u6587", "_a", "$x")}
    history["validation Dice gone"] = [(1, None)]
    assert _picture(learning_curves_png(history)).shape == (360, 900, 3)
    many = {f"validation Dice {k}": [(1, 0.5)] for k in range(100)}
    assert _picture(learning_curves_png(many)).shape == (360, 900, 3)


def test_a_class_may_be_called_hypoglossus():
    assert is_loss("training loss")
    assert is_loss("train/loss")
    assert not is_loss("validation Dice hypoglossus")
    assert not is_loss("validation/dice/glossus")


def test_curves_need_no_screen_and_no_pyplot():
    import subprocess
    import sys

    code = (
        "import sys; from medseg.tracking.figures import learning_curves_png as f\n"
        "assert 'matplotlib' not in sys.modules; f({}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={"PATH": "", "MPLBACKEND": "tkagg"})


def test_overlay_is_turned_as_radiologists_look_at_it():
    image = np.zeros((256, 300))
    image[10, 20] = 1000  # x = 10 (to the right), y = 20 (to the front)
    image[0, 0], image[-1, -1] = -1, 1
    shown = overlay_png(image, None, None)
    assert shown.shape == (300, 256, 3)
    assert shown.dtype == np.uint8
    assert tuple(np.argwhere(shown[..., 0] == 255)[0]) in {(300 - 1 - 20, 256 - 1 - 10), (0, 0)}
    plain = overlay_png(image, None, None, flip_yx=False)
    assert (plain == shown[::-1, ::-1]).all()


def test_overlay_fills_the_prediction_and_outlines_the_truth():
    image = np.zeros((256, 256))
    labels = np.zeros((256, 256), dtype=np.uint8)
    labels[100:110, 50:70] = 1
    filled = overlay_png(image, None, labels, flip_yx=False)
    assert (filled.any(axis=-1) == (labels.T == 1)).all()
    assert (filled[60, 105] == np.round(0.35 * np.array(ORANGE, dtype=np.float32))).all()
    outlined = overlay_png(image, labels, None, flip_yx=False)
    assert (outlined == ORANGE).all(axis=-1).sum() == 2 * (10 + 20) - 4


def test_overlay_leaves_out_what_is_ignored():
    labels = np.full((300, 300), 255, dtype=np.uint8)
    assert not overlay_png(np.zeros((300, 300)), labels, labels).any()


def test_overlay_magnifies_small_slices_and_takes_colours():
    shown = overlay_png(np.random.default_rng(0).random((35, 51, 3)), None, None)
    assert shown.shape == (51 * 6, 35 * 6, 3)


def test_overlay_takes_constant_and_non_finite_slices():
    image = np.full((300, 300), np.nan)
    assert not overlay_png(image, None, None).any()
    image[0] = [5.0] * 300
    assert overlay_png(image, None, None).shape == (300, 300, 3)


def test_overlay_refuses_another_grid():
    with pytest.raises(ValueError, match=r"truth is \(4, 5\), expected the slice's \(5, 4\)"):
        overlay_png(np.zeros((5, 4)), np.zeros((4, 5), dtype=np.uint8), None)


@pytest.mark.parametrize("shape", [(0, 4), (4, 4, 2), (4,)])
def test_overlay_refuses_what_is_no_slice(shape):
    with pytest.raises(ValueError, match="expected"):
        overlay_png(np.zeros(shape), None, None)


def test_a_caption_and_the_classes_go_above():
    picture = np.full((40, 256, 3), 7, np.uint8)
    made = captioned(picture, ["rank 1 of 6: case_03", "Dice 0.713"], ["organ", "tumour"])
    assert made.shape == (40 + 3 * 16 + 4, 256, 3)
    np.testing.assert_array_equal(made[-40:], picture)
    colours = set(map(tuple, made[:-40].reshape(-1, 3).tolist()))
    assert {(255, 255, 255), (230, 159, 0), (86, 180, 233)} <= colours
    assert (0, 158, 115) not in colours
    assert captioned(picture, ["a"]).shape == (60, 256, 3)
