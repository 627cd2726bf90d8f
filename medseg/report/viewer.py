"""The cases with slices: their cards, and the slice atlases for the script that shows them, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.report.atlas import bytes_of, case_json, data_url, pixels_of, still_png
from medseg.report.charts import metric_label
from medseg.report.content import Content, Shown
from medseg.report.html import Child, Html, element, joined
from medseg.report.numbers import counted, number
from medseg.report.sections import MAIN_METRICS, section

PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (34, 189, 146),
    (240, 228, 66),
    (142, 166, 255),
    (242, 122, 69),
    (224, 141, 190),
)
"""Okabe and Ito's colours, the dark ones lighter: they lie on black. Class k has colour k - 1, in the charts too."""
_LEAST_SCAN_BYTES, _LEAST_MASK_BYTES = 0.35, 0.01
"""What a pixel takes at the very least in base64; grey slices of real scans took 0.5 to 0.9, masks 0.02."""
LEAST_SLICES = 12
"""Of a plane: with fewer a case says too little, and is left out instead."""

_LAYERS = (
    ("scan", "s", "Scan", True),
    ("truth", "t", "Reference", True),
    ("prediction", "p", "Prediction", True),
    ("fill", "f", "Fill", True),
    ("errors", "e", "Errors", False),
    ("entropy", "u", "Uncertainty", False),
    ("cross", "x", "Cross", True),
)
_ERRORS = (("#56b4e9", "missed"), ("#f06e32", "too much"), ("#f0e442", "another class"))


def atlases(shown: Sequence[Shown], budget: int) -> tuple[list[dict[str, Any]], list[Shown], list[str]]:
    """The cases' atlases within ``budget`` bytes.

    Every case gets an equal share. Where its slices take more, every second of them is left out, then every third and so on,
    down to 12 a plane; where that is still too much, the last cases are left out and the others' share grows.

    Returns:
        The cases for the script, those that are shown, and sentences on what was left out.
    """
    for count in range(len(shown), 0, -1):
        share = budget // count
        found = [_fitted(one, share) for one in shown[:count]]
        kept = [(one, case) for one, case in zip(shown, found, strict=False) if case is not None]
        if len(kept) == count or count == 1:
            break
    else:
        return [], [], []
    words = []
    thinned = [one for one, case in kept if _is_thinned(one, case)]
    if thinned:
        words.append(
            f"Slices of {counted(len(thinned), 'case')}: shown are every so-many-th, evenly, so that the file stays small "
            f"({', '.join(_thinning(one, case) for one, case in kept if _is_thinned(one, case))})."
        )
    lost = [one.case.masks.case_id for one in shown if one not in [a for a, _ in kept]]
    if lost:
        words.append(f"Slices of {', '.join(lost)}: they would have made the file too large.")
    return [case for _, case in kept], [one for one, _ in kept], words


def _fitted(one: Shown, share: int) -> dict[str, Any] | None:
    """The case with as many slices as fit into ``share`` bytes, None where 12 a plane do not."""
    most = _most_to_try(one, share)
    while True:
        case = case_json(one.case, most=most)
        size = bytes_of(case)
        if size <= share:
            return case
        longest = max(len(plane["slices"]) for plane in case["planes"])
        if longest <= LEAST_SLICES:
            return None
        most = max(LEAST_SLICES, min(longest - 1, int(longest * share / size)))


def _most_to_try(one: Shown, share: int) -> int:
    """Slices a plane that may fit, so that a large case is not encoded whole only to find that it does not."""
    most = max(one.case.truth.shape)
    least_per_pixel = _LEAST_SCAN_BYTES if one.case.scan is not None else _LEAST_MASK_BYTES
    while most > LEAST_SLICES and pixels_of(one.case, most=most) * least_per_pixel > share:
        most = max(LEAST_SLICES, most * 9 // 10)
    return most


def _is_thinned(one: Shown, case: Mapping[str, Any]) -> bool:
    return any(len(plane["slices"]) < one.case.truth.shape[plane["through"]] for plane in case["planes"])


def _thinning(one: Shown, case: Mapping[str, Any]) -> str:
    shown = " + ".join(str(len(plane["slices"])) for plane in case["planes"])
    there = " + ".join(str(one.case.truth.shape[plane["through"]]) for plane in case["planes"])
    return f"{one.case.masks.case_id}: {shown} of {there}"


def cases_section(content: Content, shown: Sequence[Shown]) -> Html | None:
    """The cards of the shown cases under one bar of switches."""
    if not shown:
        return None
    lead = (
        "The worst cases, the median and the best by mean Dice over classes, and an example of each other kind of failure. "
        "Slices are cropped to the structures and 12 mm around them; the patient's right is on the left."
    )
    if all(one.case.masks.planar for one in shown):
        lead = lead.replace("; the patient's right is on the left", "").replace(
            "Slices are cropped", "Pictures are cropped"
        )
    keys = element(
        "p",
        "Click a slice to move the other planes there. Wheel, arrow keys, Page up and down, Home and End scroll; the letters "
        "on the buttons switch layers while a slice or the bar has the focus.",
        class_="note script-only",
    )
    cards = [_card(content, one, number_) for number_, one in enumerate(shown)]
    return section("cases", "Cases", lead, keys, _bar(shown), _legend(content, shown), *cards)


def _bar(shown: Sequence[Shown]) -> Html:
    has = {
        "scan": any(one.case.scan is not None for one in shown),
        "entropy": any(one.case.entropy is not None for one in shown),
        "cross": not all(one.case.masks.planar for one in shown),
    }
    buttons = [
        element("button", title, element("kbd", letter.upper(), aria_hidden="true"), type="button", data_layer=name,
                data_key=letter, aria_pressed="true" if on else "false", aria_keyshortcuts=letter)
        for name, letter, title, on in _LAYERS
        if has.get(name, True)
    ]  # fmt: skip
    zooms = [
        element("button", text, type="button", data_zoom=factor, aria_label=word)
        for text, factor, word in (("\N{MINUS SIGN}", str(1 / 1.5), "Zoom out"), ("+", "1.5", "Zoom in"))
    ]
    return element("div", buttons, zooms, class_="bar", role="toolbar", aria_label="Layers of all slices")


def _legend(content: Content, shown: Sequence[Shown]) -> Html:
    present = {int(i) for one in shown for i in _indices(one)}
    names = [
        element(
            "li", element("i", style=f"background:rgb{PALETTE[(i - 1) % len(PALETTE)]}"), content.index_names[i - 1]
        )
        for i in sorted(present)
        if 0 < i <= len(content.index_names)
    ]
    how = [element("li", element("i", class_="line"), "outline: reference"), element("li", "filled: prediction")]
    errors = [element("li", element("i", style=f"background:{colour}"), word) for colour, word in _ERRORS]
    return joined(
        element("ul", names, how, class_="legend"),
        element("ul", element("li", "Errors:"), errors, class_="legend", data_errors=True, hidden=True),
    )


def _indices(one: Shown) -> list[int]:
    import numpy as np

    return sorted({int(i) for array in (one.case.truth, one.case.prediction) for i in np.unique(array)})


def _card(content: Content, one: Shown, place: int) -> Html:
    case_id = one.case.masks.case_id
    still = still_png(one.case, PALETTE)
    chips = [element("span", rank, class_="chip") for rank in one.ranks]
    rows = [row for row in content.table.rows if row.case == case_id]
    numbers = [
        element("li", f"{row.class_name} ", [
            joined(f"{metric_label(name).removesuffix(' (mm)')} ", element("b", number(row.values[name])), " ")
            for name in MAIN_METRICS[:3] if row.values.get(name) is not None
        ], row.situation.replace("_", " ") if row.situation != "present" else "")
        for row in rows[:8]
    ]  # fmt: skip
    if len(rows) > 8:
        numbers.append(element("li", f"and {len(rows) - 8} more classes"))
    reasons = [
        element("p", element("b", failure.class_name), f", {failure.kind}: {failure.reason}", class_="reason")
        for failure in content.failures
        if failure.case == case_id
    ][:6]
    picture = element("img", src=data_url(still), alt=f"{case_id}: slices with reference and prediction")
    return element(
        "article",
        element("header", element("h3", case_id), chips),
        element("ul", numbers, class_="numbers"),
        reasons,
        element("div", picture, class_="planes", data_case=str(place)),
        element("p", _caption(one), class_="note"),
        id=f"case-{place}", class_="case",
    )  # fmt: skip


def _caption(one: Shown) -> Child:
    case = one.case
    words = []
    if not case.masks.planar:
        size = " \N{MULTIPLICATION SIGN} ".join(f"{length:.3g}" for length in case.masks.spacing_xyz_mm)
        words.append(f"Voxels of {size} mm (left to right, back to front, bottom to top)")
    if case.scan is not None and case.window is not None and case.scan.ndim == 3:
        words.append(f"grey from {case.window[0]:.4g} to {case.window[1]:.4g}")
    if case.scan is None:
        words.append("masks on blank ground")
    return "; ".join(words) + "." if words else ""
