"""Sections that only some sets of scores have: entropy where masks are wrong, lesions, subgroups, human readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medseg.report import charts
from medseg.report.content import Content
from medseg.report.html import Child, Html, element, joined, table
from medseg.report.numbers import NONE, counted, interval, number
from medseg.report.sections import MAIN_METRICS, figures, key, section
from medseg.report.unsure import beside_dice, class_means

UNSURE_HEADS = ("class", "cases", "mean entropy", "where wrong", "where right", "AUROC")
LESION_HEADS = (
    "class", "true", "predicted", "found", "right", "precision", "recall", "RQ", "SQ", "PQ", "lesion Dice", "FROC", "AP",
)  # fmt: skip
_BY_IOU = ("precision", "recall", "rq", "sq", "pq", "dice")


def uncertainty(content: Content) -> Html | None:
    """Whether entropy is high where the masks are wrong, by voxel and by case."""
    rows = [[joined(key(index), name), *cells] for index, (name, *cells) in enumerate(unsure_rows(content))]
    if not content.unsure:
        return None
    lead = (
        "Is the model unsure where it is wrong? Entropy over the voxels of both masks, means over cases. AUROC is the chance "
        "that a wrong voxel is less sure than a right one: at 0.5 uncertainty tells nothing."
    )
    chart = charts.against_dice(
        beside_dice(content.unsure, content.table), name="entropy", title="Mean entropy beside Dice",
        xlabel="mean entropy of both masks' voxels", diagonal=False,
    )  # fmt: skip
    return section("uncertainty", "Uncertainty where it is wrong", lead, table(UNSURE_HEADS, rows), figures([chart]))


def unsure_rows(content: Content) -> list[list[str]]:
    """A row per class in the order of `UNSURE_HEADS`."""
    found = []
    for name in content.table.class_names:
        cases, means = class_means(content.unsure, name)
        found.append([name, number(cases), *map(number, means)])
    return found


def lesions(content: Content) -> Html | None:
    """The lesions of all cases seen as one set."""
    places = {name: index for index, name in enumerate(content.table.class_names)}
    rows = [[joined(key(places.get(name, 0)), name), *cells] for name, *cells in lesion_rows(content)]
    if not rows:
        return None
    lead = (
        "Connected parts of all cases as one set. Found and right are those that share a voxel with the other mask; the scores "
        "from precision on match lesions at an IoU above 0.5. FROC is the mean sensitivity at 1/8 to 8 false positives a case, "
        "AP the average precision; both need probabilities."
    )
    return section("lesions", "Lesions", lead, table(LESION_HEADS, rows))


def lesion_rows(content: Content) -> list[list[str]]:
    """A row per class with lesions in the order of `LESION_HEADS`; empty where no metric of lesions was chosen."""
    found = []
    for name, one in ((content.table.metrics.get("lesions") or {}).get("classes") or {}).items():
        touched, matched = one.get("any_overlap") or {}, one.get("iou_above_0.5") or {}
        counts = (
            one.get("reference"),
            one.get("predicted"),
            touched.get("reference_found"),
            touched.get("predicted_right"),
        )
        ranked = ((one.get("froc") or {}).get("score"), one.get("average_precision"))
        found.append([str(name), *map(number, (*counts, *(matched.get(score) for score in _BY_IOU), *ranked))])
    return found


def groups(content: Content) -> Html | None:
    """Scores within parts of the cases, a table per column of the manifest."""
    found = content.table.metrics.get("groups") or {}
    parts: list[Child] = []
    for column, one in found.items():
        rows = list(_group_rows(content, one.get("values") or {}))
        if rows:
            heads = [column, "class", *(charts.metric_label(name) for name in MAIN_METRICS)]
            parts += [
                element("h3", str(column)),
                table(heads, rows, numeric_from=2),
                element("p", _group_note(one), class_="note"),
            ]
    lead = (
        "The same scores within parts of the cases, means with their 95 % intervals. Small groups have wide intervals."
    )
    return section("groups", "Groups", lead, *parts) if parts else None


def _group_rows(content: Content, values: Mapping[str, Any]) -> Iterator[list[Child]]:
    for value, group in values.items():
        sizes = [counted(group["cases"], "case")] if "cases" in group else []
        sizes += [counted(group["patients"], "patient")] if "patients" in group else []
        for index, name in enumerate(content.table.class_names):
            summaries = ((group.get("classes") or {}).get(name) or {}).get("metrics") or {}
            cells = [_mean(summaries.get(metric) or {}) for metric in MAIN_METRICS]
            yield [joined(str(value), element("small", ", ".join(sizes))), joined(key(index), name), *cells]


def _mean(found: Mapping[str, Any]) -> Html:
    return joined(number(found.get("mean")), element("small", interval(found, "mean_low", "mean_high")))


def _group_note(one: Mapping[str, Any]) -> str:
    small, without = one.get("small") or {}, one.get("without") or 0
    words = []
    if small.get("groups"):
        count = counted(small["groups"], "group")
        words.append(f"{count} of too few patients ({counted(small['cases'], 'case')}) stay unnamed.")
    if without:
        words.append(f"{counted(without, 'case')} without a value.")
    return " ".join(words)


def raters(content: Content) -> Html | None:
    """How human readers agree with one another, and the model with them."""
    found = content.table.metrics.get("raters") or {}
    rows: list[list[Child]] = []
    for index, name in enumerate(content.table.class_names):
        for metric, one in ((found.get("classes") or {}).get(name) or {}).items():
            gap = one.get("difference") or {}
            ends = interval(gap, "low", "high") or NONE
            rows.append([
                joined(key(index), name), charts.metric_label(metric), _side(one.get("human")), _side(one.get("model")),
                joined(number(gap.get("mean")), element("small", ends)), number(gap.get("p_value")),
            ])  # fmt: skip
    if not rows:
        return None
    heads = ["class", "metric", "reader and reader", "model and reader", "difference", "p"]
    lead = (
        f"{counted(int(found.get('cases', 0)), 'case')} with several references. Two readers do not agree perfectly either: by "
        "these scores, a model that agrees with them as they do with one another can't be told from one more reader."
    )
    return section("raters", "Readers", lead, table(heads, rows, numeric_from=2))


def _side(found: Mapping[str, Any] | None) -> Html:
    known = found or {}
    return joined(number(known.get("mean")), element("small", interval(known, "low", "high")))
