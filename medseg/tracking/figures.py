"""Pictures for the tracker: learning curves, and a slice with truth and prediction."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's colours, which stay apart for colour-blind readers; class k has colour k - 1.
_COLOURS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)],
    dtype=np.float32,
)
_IGNORED = 255
_FILL = 0.35
_MOST_IN_LEGEND = 12
_SMALLEST_SIDE = 256
_LINE = 16
_FONT = 12


def learning_curves_png(history: Mapping[str, Sequence[tuple[int, float | None]]], *, width: float = 9.0) -> bytes:
    """Metrics over steps as one PNG: losses in the left panel, all others (Dice, 0 to 1) in the right one.

    Args:
        history: name -> (step, value) pairs in any order; what is not finite leaves a gap, None is left out.
            Empty gives empty panels.
        width: of the picture in inches, at 100 dots each.

    Returns:
        the PNG file's bytes; the same history gives the same bytes.
    """
    import matplotlib as mpl

    # A class may be called "$x" or in a script that the typeface lacks.
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _drawn(history, width)


def _drawn(history: Mapping[str, Sequence[tuple[int, float | None]]], width: float) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: it keeps figures and looks for a screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, width * 0.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name in sorted(history):
        points = sorted((step, value) for step, value in history[name] if value is not None)
        if not points:
            continue
        axes = left if is_loss(name) else right
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, label=name, linewidth=1.5, marker="o" if len(points) < 3 else None, markersize=4)
    _label(left, "loss")
    _label(right, "score")
    if all(0 <= v <= 1 for n, p in history.items() if not is_loss(n) for _, v in p if v is not None and np.isfinite(v)):
        right.set_ylim(0, 1)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def is_loss(name: str) -> bool:
    """Whether a curve is one of losses: its last word is, while a class may be called hypoglossus."""
    return re.search(r"\bloss$", name, re.IGNORECASE) is not None


def _label(axes: Any, ylabel: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.grid(visible=True, alpha=0.3)
    if 0 < len(axes.lines) <= _MOST_IN_LEGEND:  # a legend of a hundred classes would hide the curves
        axes.legend(fontsize="small")


def overlay_png(
    image_slice: NDArray[Any], truth: NDArray[Any] | None, prediction: NDArray[Any] | None, *, flip_yx: bool = True
) -> NDArray[np.uint8]:
    """A slice with the prediction filled and the truth outlined, one colour per class.

    Args:
        image_slice: (X, Y) or (X, Y, 3) in any intensities; shown between its 0.5 and 99.5 percentiles.
        truth: (X, Y) class indices, 0 background, 255 ignored; None leaves it out.
        prediction: as ``truth``.
        flip_yx: turn a slice in RAS order as radiologists look at it (front up, the patient's right on the left);
            False shows x to the right and y down, as pictures have it.

    Returns:
        (H, W, 3) uint8, whole-number magnified so that the longer side has at least 256 pixels.

    Raises:
        ValueError: the shapes differ or the slice is empty.
    """
    shape = image_slice.shape[:2]
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels is not None and labels.shape != shape:
            raise ValueError(f"{name} is {labels.shape}, expected the slice's {shape}")
    picture = _grey_or_colour(image_slice)
    if prediction is not None:
        inside = _is_class(prediction)
        picture[inside] = (1 - _FILL) * picture[inside] + _FILL * _colour(prediction[inside])
    factor = max(1, -(-_SMALLEST_SIDE // max(shape)))
    picture = _magnified(picture, factor)
    if truth is not None:  # outlined after magnifying, so that the line is one pixel wide
        large = _magnified(truth, factor)
        edge = _outline(large) & _is_class(large)
        picture[edge] = _colour(large[edge])
    shown = np.swapaxes(picture, 0, 1)
    return np.ascontiguousarray(shown[::-1, ::-1] if flip_yx else shown).round().astype(np.uint8)


def captioned(picture: NDArray[np.uint8], lines: Sequence[str], class_names: Sequence[str] = ()) -> NDArray[np.uint8]:
    """A picture with lines of text and the classes' colours above it, where a small frame shows them.

    Args:
        picture: (H, W, 3) uint8, from :func:`overlay_png`.
        lines: texts; one that is too long for the picture is cut by its edge.
        class_names: without background, in the order of their indices; what does not fit is left out.

    Returns:
        (H', W, 3) uint8.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    top = _LINE * (len(lines) + bool(class_names)) + 4
    canvas = Image.new("RGB", (width, top + height), "black")
    canvas.paste(Image.fromarray(picture), (0, top))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=_FONT)
    for number, line in enumerate(lines):
        draw.text((4, 2 + _LINE * number), line, fill="white", font=font)
    x, y = 4, _LINE * len(lines) + 2
    for number, name in enumerate(class_names):
        end = x + 14 + draw.textlength(name, font=font)
        if end > width:
            break
        colour = tuple(int(value) for value in _COLOURS[number % len(_COLOURS)])
        draw.rectangle((x, y + 3, x + 9, y + 12), fill=colour)
        draw.text((x + 13, y), name, fill="white", font=font)
        x = int(end) + 10
    return np.asarray(canvas, dtype=np.uint8)


def _grey_or_colour(image_slice: NDArray[Any]) -> NDArray[np.float32]:
    if image_slice.size == 0 or image_slice.ndim not in (2, 3) or image_slice.shape[2:] not in ((), (3,)):
        raise ValueError(f"slice is {image_slice.shape}, expected (X, Y) or (X, Y, 3) with at least one voxel")
    values = image_slice.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scaled: NDArray[np.float32] = (np.clip((values - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(
        np.float32
    )
    return np.repeat(scaled[..., None], 3, axis=2) if scaled.ndim == 2 else scaled


def _is_class(labels: NDArray[Any]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (labels > 0) & (labels != _IGNORED)
    return inside


def _colour(classes: NDArray[Any]) -> NDArray[np.float32]:
    colours: NDArray[np.float32] = _COLOURS[(classes.astype(np.int64) - 1) % len(_COLOURS)]
    return colours


def _magnified(array: NDArray[Any], factor: int) -> NDArray[Any]:
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels with a 4-neighbour of another label; the picture's border counts as none."""
    edge = np.zeros(labels.shape, dtype=np.bool_)
    along_x, along_y = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= along_x
    edge[:-1] |= along_x
    edge[:, 1:] |= along_y
    edge[:, :-1] |= along_y
    return edge
