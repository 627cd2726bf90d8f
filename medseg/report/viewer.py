"""The cards of the cases with slices, under one bar of switches; the page's script fills them."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.report.atlas import data_url
from medseg.report.charts import metric_label
from medseg.report.content import Content
from medseg.report.html import Child, Html, element, joined
from medseg.report.numbers import number
from medseg.report.sections import MAIN_METRICS, section
from medseg.report.shown import PALETTE, Shown

_LAYERS = (
    ("scan", "s", "Scan", True),
    ("truth", "t", "Reference", True),
    ("prediction", "p", "Prediction", True),
    ("fill", "f", "Fill", True),
    ("errors", "e", "Errors", False),
    ("entropy", "u", "Uncertainty", False),
    ("cross", "x", "Cross", True),
)
_KEYS = (
    "Click a slice to move the other planes there. Wheel, arrow keys, Page up and down, Home and End scroll; the letters on "
    "the buttons switch layers while a slice or the bar has the focus."
)
_PICTURE_KEYS = "The letters on the buttons switch layers while a picture or the bar has the focus; + and - zoom."
_ERRORS = (("#56b4e9", "missed"), ("#f06e32", "too much"), ("#f0e442", "another class"))


def cases_section(content: Content, shown: Sequence[Shown]) -> Html | None:
    """The cards of the shown cases under one bar of switches."""
    if not shown:
        return None
    lead = (
        "The worst cases, the median and the best by mean Dice over classes, and an example of each other kind of failure. "
        "Slices are cropped to the structures and 12 mm around them; the patient's right is on the left."
    )
    planar = all(one.planar for one in shown)
    if planar:
        lead = lead.replace("; the patient's right is on the left", "").replace(
            "Slices are cropped", "Pictures are cropped"
        )
    keys = element("p", _PICTURE_KEYS if planar else _KEYS, class_="note script-only")
    cards = [_card(content, one, number_) for number_, one in enumerate(shown)]
    return section("cases", "Cases", lead, keys, _bar(shown), _legend(content, shown), *cards)


def _bar(shown: Sequence[Shown]) -> Html:
    has = {
        "scan": any(one.has("scan") for one in shown),
        "entropy": any(one.has("entropy") for one in shown),
        "cross": not all(one.planar for one in shown),
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
    present = {index for one in shown for index in one.indices}
    names = [
        element(
            "li", element("i", style=f"background:rgb{PALETTE[(i - 1) % len(PALETTE)]}"), content.index_names[i - 1]
        )
        for i in sorted(present)
        if 0 < i <= len(content.index_names)
    ]
    how = [element("li", element("i", class_="line"), "outline: reference"), element("li", "filled: prediction")]
    errors = [element("li", element("i", style=f"background:{colour}"), word) for colour, word in _ERRORS]
    white = element("li", "outline: reference; dashed: prediction")
    return joined(
        element("ul", names, how, class_="legend", data_legend="classes"),
        element("ul", element("li", "Errors:"), errors, white, class_="legend", data_legend="errors", hidden=True),
        element(
            "ul",
            element("li", "Uncertainty:"),
            element("li", "0", element("i", class_="ramp"), "1"),
            white,
            class_="legend",
            data_legend="entropy",
            hidden=True,
        ),
    )


def _card(content: Content, one: Shown, place: int) -> Html:
    case_id = one.case_id
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
    picture = element("img", src=data_url(one.still), alt=f"{case_id}: slices with reference and prediction")
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
    words = []
    if not one.planar:
        size = " \N{MULTIPLICATION SIGN} ".join(f"{length:.3g}" for length in one.spacing_xyz_mm)
        words.append(f"Voxels of {size} mm (left to right, back to front, bottom to top)")
    if one.window is not None:
        words.append(f"shown from {one.window[0]:.4g} to {one.window[1]:.4g}")
    else:
        words.append("masks on blank ground")
    text = "; ".join(words)
    return f"{text[:1].upper()}{text[1:]}."
