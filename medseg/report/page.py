"""The HTML file: one page with its style, script, figures and slices inside, that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from medseg.report import groups, provenance, sections
from medseg.report.content import Content
from medseg.report.html import Html, element, joined, script_json
from medseg.report.shown import PALETTE, Shown
from medseg.report.viewer import cases_section

MOST_BYTES = 20_000_000
"""Of the file: what a browser opens without a pause and a mail server may still take."""


def page(content: Content, *, most_bytes: int = MOST_BYTES) -> str:
    """The report as HTML of at most ``most_bytes`` bytes; slices are left out until it fits, and the report says so."""
    fixed = _sections(content)
    shown, words = list(content.shown), list[str]()
    while True:
        text = _document(content, fixed, shown, words)
        if len(text.encode()) <= most_bytes or not shown:
            return text
        lost = shown.pop()
        words.append(f"Slices of {lost.case_id}: they would have made the file too large.")


def _sections(content: Content) -> dict[str, Html | None]:
    """Every section but the cases; drawn once however often the slices have to be fitted."""
    return {
        "Summary": sections.summary(content),
        "Distributions": sections.distributions(content),
        "Volumes": sections.volumes(content),
        "Confidence": sections.confidence(content),
        "Uncertainty": groups.uncertainty(content),
        "Lesions": groups.lesions(content),
        "Groups": groups.groups(content),
        "Readers": groups.raters(content),
        "Cases": None,
        "Failures": sections.failure_list(content),
        "Training": sections.learning(content),
        "All rows": sections.all_rows(content),
        "Definitions": provenance.definitions(content),
        "Data and model": provenance.identity(content),
    }


_ANCHORS = {
    "Summary": "summary",
    "Distributions": "distributions",
    "Volumes": "volumes",
    "Confidence": "confidence",
    "Uncertainty": "uncertainty",
    "Lesions": "lesions",
    "Groups": "groups",
    "Readers": "raters",
    "Cases": "cases",
    "Failures": "failures",
    "Training": "learning",
    "All rows": "rows",
    "Definitions": "definitions",
    "Data and model": "identity",
    "Left out": "left-out",
}
"""Title in the navigation to the section's id."""


def _document(content: Content, fixed: dict[str, Html | None], shown: Sequence[Shown], words: Sequence[str]) -> str:
    parts = fixed | {"Cases": cases_section(content, shown), "Left out": provenance.left_out(content, words)}
    style, script = (
        files("medseg.report").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    name = content.table.name
    data = None
    if shown:
        data = element(
            "script",
            script_json({"cases": [one.data for one in shown], "palette": PALETTE}),
            type="application/json",
            id="cases-data",
        )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{name}, medseg report"),
        element("style", Html(style)),
    )
    links = [element("li", element("a", title, href=f"#{_ANCHORS[title]}")) for title, part in parts.items() if part]
    cases_count = content.table.metrics["cases"]["scored"]
    classes = ", ".join(content.table.class_names[:8]) + (" …" if len(content.table.class_names) > 8 else "")
    body = element(
        "body",
        element("a", "Skip to the summary", href="#summary", class_="skip"),
        element("header",
                element("div", element("h1", f"Scores of {name}"),
                        element("p", f"{cases_count:,} cases; {classes}", class_="lead")),
                element("button", "Dark", type="button", id="theme", class_="script-only", aria_label="Switch light and dark"),
                class_="top"),
        element("nav", element("ul", links), aria_label="Sections"),
        element("main", [part for part in parts.values() if part], _footer(content)),
        data,
        element("script", Html(script)),
    )  # fmt: skip
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en", class_="no-js") + "\n"


def _policy(script: str) -> str:
    """Nothing may be fetched, and no script but the page's own may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def _footer(content: Content) -> Html:
    versions = (content.table.metrics.get("identity") or {}).get("versions") or {}
    made = f"Made by medseg {versions['medseg']}" if "medseg" in versions else "Made by medseg"
    return element(
        "footer", joined(f"{made}. Research software, no medical device: base no diagnosis or treatment on it.")
    )
