"""From a matplotlib figure to an SVG that takes its colours and its typeface from the page, in light and in dark.

Figures are drawn in stand-in colours, which become CSS variables here. Text stays text (small, searchable, in the page's own
typeface). Equal figures give equal bytes: no date, no version, and ids are hashes of what they name.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medseg.report.html import Html, element

INK, MUTED, GRID, SURFACE = "#120001", "#120002", "#120003", "#120004"
SERIES_COUNT = 7
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", SURFACE: "--surface"}
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")
_NO_TURN = re.compile(r' transform="rotate\(-?0 [^"]+\)"')
_STYLE: Any = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.facecolor": SURFACE,
    "legend.edgecolor": GRID,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "medseg",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


def series(index: int) -> str:
    """The stand-in colour of the ``index``-th class, from 0; after seven they begin again."""
    return f"#1200{16 + index % SERIES_COUNT:02x}"


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches in the report's style; draw and call `inline_svg` inside the block."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A class name may be in a script that the measuring typeface lacks; the page's has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(width, height), layout="constrained")


def inline_svg(figure: Any, name: str, label: str) -> Html:
    """The figure as an ``<svg>`` element.

    Args:
        figure: drawn with stand-in colours.
        name: unlike any other figure's of the page; ids begin with it.
        label: what it shows, for those who can't see it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL
    )  # it is for all elements of the page
    text = re.sub(r"<defs>\s*</defs>", "", text)
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None
    head = element("svg", viewBox=view_box[1], class_="chart", role="img", aria_label=label)
    body = text[text.index(">") + 1 :]
    return Html(head.removesuffix("</svg>") + _themed(_own_ids(body, name)))


def _own_ids(text: str, name: str) -> str:
    """Ids that nothing points at are dropped, the others made the figure's own."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    return re.sub(r"\s*<!--.*?-->", "", re.sub(r"\n\s*", "\n", text), flags=re.DOTALL)


def _themed(text: str) -> str:
    def variable(match: re.Match[str]) -> str:
        colour = match[0].lower()
        known = _VARIABLES.get(colour)
        return f"var({known})" if known else f"var(--c{int(colour[5:], 16) - 15})"

    text = re.sub(r"#1200[0-9a-f]{2}\b", variable, text)
    text = re.sub(r"<[^>]+>", lambda tag: _DECIMALS.sub(r"\1", _NO_TURN.sub("", tag[0])), text)
    text = re.sub(r"font: ([\d.]+)px '?DejaVu Sans'?(, [^;\"]+)?", r"font-size: \1px", text)
    text = re.sub(
        r"font: (?:bold|700) ([\d.]+)px '?DejaVu Sans'?(, [^;\"]+)?", r"font-weight: 600; font-size: \1px", text
    )
    return re.sub(r"font-family: [^;\"]+;? ?", "", text)
