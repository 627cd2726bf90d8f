"""The report's last sections: what its words mean, what the numbers are of, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.report import charts
from medseg.report.content import Content
from medseg.report.html import Child, Html, element, table
from medseg.report.numbers import NONE
from medseg.report.sections import section


def definitions(content: Content) -> Html:
    """What every word of the tables means, as ``metrics.json`` states it."""
    known = content.table.metrics.get("definitions", {})
    metrics, empty = known.get("metrics", {}), known.get("empty_masks", {})
    terms = [(name.replace("_", " "), text) for name, text in known.items() if isinstance(text, str)]
    rows = [
        [charts.metric_label(name), one.get("definition", ""), one.get("better") or NONE]
        for name, one in metrics.items()
    ]
    per_metric = empty.get("per_metric", {})
    situations = list(dict.fromkeys(key_ for one in per_metric.values() for key_ in one))
    policy = [[charts.metric_label(name), *(one.get(s, "") for s in situations)] for name, one in per_metric.items()]
    return section(
        "definitions", "Definitions", "Open tools differ in all of these; compare numbers only where they agree.",
        table(["metric", "definition", "better"], rows, numeric_from=9),
        element("details", element("summary", "Conventions"), facts_table(terms)),
        element("details", element("summary", f"Empty masks: {empty.get('policy', '')}"),
                element("p", str(empty.get("rule", "")), class_="note"),
                table(["metric", *(name.replace("_", " ") for name in situations)], policy, numeric_from=9)),
    )  # fmt: skip


def facts_table(pairs: Sequence[tuple[str, str]]) -> Html:
    """Terms and values."""
    rows = [element("tr", element("th", term, scope="row"), element("td", _value(value))) for term, value in pairs]
    return element("div", element("table", element("tbody", rows), class_="facts"), class_="scroll")


def _value(value: str) -> Child:
    # A checksum is set in the typeface in which it can be compared.
    return element("code", value) if len(value) >= 40 and " " not in value.strip() else value


def identity(content: Content) -> Html:
    """Data, model and plan."""
    scores, facts = content.table.metrics, content.facts
    own = scores.get("identity", {})
    data = [
        (name.removesuffix("_sha256").replace("_", " "), value) for name, value in own.items() if isinstance(value, str)
    ]
    data += [("versions", ", ".join(f"{name} {value}" for name, value in (own.get("versions") or {}).items()))]
    labels = ", ".join(f"{name} = {'+'.join(map(str, values))}" for name, values in scores.get("labels", {}).items())
    tolerance = ", ".join(f"{name} {value:g} mm" for name, value in (scores.get("tolerance_mm") or {}).items())
    data += [("labels", labels), ("tolerance of NSD", tolerance)]
    parts: list[Child] = [element("h3", "Scores"), facts_table(data)]
    if facts.predictions:
        parts += [element("h3", "Masks"), facts_table(facts.predictions)]
    for number_, model in enumerate(facts.models, start=1):
        parts += [element("h3", "Model" if len(facts.models) == 1 else f"Model {number_}"), facts_table(model)]
    if facts.plan:
        rows = [[name, value, reason] for name, value, reason in facts.plan]
        parts += [element("h3", "Plan, with reasons"), table(["value", "is", "because"], rows, numeric_from=9)]
    lead = "SHA-256 checksums say which files the numbers are of; equal inputs give this same file, byte for byte."
    return section("identity", "Data and model", lead, *parts)


def left_out(content: Content, more: Sequence[str] = ()) -> Html:
    """What the report does not show."""
    sentences = [*content.left_out, *more]
    body = element("ul", [element("li", text) for text in sentences]) if sentences else element("p", "Nothing.")
    return section("left-out", "Left out", None, body)
