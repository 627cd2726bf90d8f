"""HTML by nested calls: text is escaped unless it is `Html` already, so a case called ``<script>`` stays text."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable

_VOID = frozenset({"br", "col", "hr", "img", "input", "meta"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Iterable[str] | None


def element(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """``<name attribute="...">children</name>``.

    Args:
        name: of the element.
        children: text (escaped), `Html` (as it is), a sequence of either, or None for nothing.
        attributes: ``class_`` and ``for_`` lose their underscore, other underscores become ``-``; True writes the name
            alone, False and None write nothing.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Html:
    """The children's markup, one after the other."""
    return Html("".join(_markup(child) for child in children))


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, str):
        return child if isinstance(child, Html) else html.escape(child, quote=False)
    return "".join(_markup(one) for one in child)


def _attribute(key: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value), quote=True)}"'


def script_json(value: object) -> Html:
    """A plain value as JSON that can stand in a ``<script>`` element: no ``<`` is left that could end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def table(heads: Iterable[Child], rows: Iterable[Iterable[Child]], *, numeric_from: int = 1, **attributes: str) -> Html:
    """A table in a box that scrolls sideways where the page is narrow.

    Args:
        heads: one cell each.
        rows: of cells; the first is the row's head.
        numeric_from: the columns from this one on are set flush right.
        attributes: of the table.
    """
    titles = list(heads)

    def kind(column: int) -> str | None:
        return "n" if column >= numeric_from else None

    head = [element("th", title, scope="col", class_=kind(column)) for column, title in enumerate(titles)]
    body = [
        element("tr", [
            element("td" if column else "th", cell, class_=kind(column), scope=None if column else "row")
            for column, cell in enumerate(row)
        ])
        for row in rows
    ]  # fmt: skip
    inner = element("table", element("thead", element("tr", head)), element("tbody", body), **attributes)
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label="table")
