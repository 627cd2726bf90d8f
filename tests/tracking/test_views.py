import json

from medseg.tracking.views import view_with


def _state(tag):
    return json.loads(json.loads(tag)["state"])


def test_a_view_sorts_by_the_first_metric_and_shows_all_but_ends_of_intervals():
    names = [
        "testing/dice",
        "testing/dice_low",
        "testing/hd95_mm",
        "testing/dice/organ",
        "testing/dice_low/organ",
        "testing/dice_high/organ",
    ]
    tag = view_with(None, names, ms=5)
    assert {key: json.loads(tag)[key] for key in ("name", "createdAt")} == {
        "name": "Scores, best first",
        "createdAt": 5,
    }
    state = _state(tag)
    assert state["orderByKey"] == "metrics.`testing/dice`"
    assert state["orderByAsc"] is False
    assert state["selectedColumns"] == [
        "metrics.`testing/dice`",
        "metrics.`testing/hd95_mm`",
        "metrics.`testing/dice/organ`",
    ]
    assert state["searchFilter"] == "tags.`medseg.stage` = 'experiment'"


def test_further_metrics_come_behind_and_a_repeat_changes_nothing():
    first = view_with(None, ["fold_0/dice"], ms=5)
    second = view_with(first, ["crossvalidation/dice", "fold_0/dice"], ms=9)
    assert _state(second)["selectedColumns"] == ["metrics.`fold_0/dice`", "metrics.`crossvalidation/dice`"]
    assert view_with(second, ["fold_0/dice"], ms=11) == second


def test_what_somebody_else_wrote_there_is_replaced():
    for other in ("deflate;abc", "[]", '{"state": "{}"}', '{"state": 3, "createdAt": 1}'):
        assert view_with(other, ["a/dice"], ms=5) == view_with(None, ["a/dice"], ms=5)


def test_there_are_no_more_columns_than_a_page_has_room_for():
    tag = view_with(None, [f"testing/dice/{k}" for k in range(100)], ms=5)
    assert len(_state(tag)["selectedColumns"]) == 14
    assert len(tag) < 5000  # MLflow's longest tag of an experiment
