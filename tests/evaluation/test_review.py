from dataclasses import replace

import pytest

from medseg.evaluation.aggregate import summarise
from medseg.evaluation.case import ClassScores
from medseg.evaluation.protocol import make_protocol
from medseg.evaluation.registry import metric_names
from medseg.evaluation.report import Scores
from medseg.evaluation.review import by_dice, case_words, headline, score_table, worst_table


def _row(name, dice):
    values = dict.fromkeys(metric_names()) | {"dice": dice, "nsd": dice, "hd95_mm": None if dice is None else 2.0}
    counts = {"true_positive": 1, "false_positive": 0, "false_negative": 0}
    situation = "both_empty" if dice is None else "present"
    return ClassScores(class_name=name, situation=situation, diagonal_mm=9.0, values=values, **counts)


def _scores(rows):
    names = [row.class_name for row in next(iter(rows.values()))]
    protocol = make_protocol(labels={"background": (0,), **{name: (k + 1,) for k, name in enumerate(names)}})
    # The interval is set, so that what these tests ask for does not hang on the method of intervals.
    classes = [
        replace(one, metrics={**one.metrics, "dice": replace(one.metrics["dice"], mean_low=0.61, mean_high=0.95)})
        if one.metrics["dice"].mean_low is not None
        else one
        for one in summarise(rows, names, protocol.policy)
    ]
    return Scores(
        name="testing", rows=rows, classes=classes, missing=(), extra=(), failed={},
        inputs={}, protocol=protocol,
    )  # fmt: skip


@pytest.fixture
def two_classes():
    return _scores(
        {
            "a": (_row("organ", 0.8), _row("tumour", 0.2)),
            "b": (_row("organ", 0.6), _row("tumour", 0.0)),
            "c": (_row("organ", 1.0), _row("tumour", None)),
        }
    )


def test_the_headline_has_the_mean_and_each_class_with_its_interval(two_classes):
    found = headline(two_classes)
    assert found["dice/organ"] == pytest.approx(0.8)
    assert found["dice_low/organ"] == 0.61
    assert found["dice_high/organ"] == 0.95
    assert found["dice/tumour"] == pytest.approx(0.1)
    assert found["dice"] == pytest.approx(0.45)
    assert found["hd95_mm"] == pytest.approx(2.0)


def test_tables_in_words(two_classes):
    heads, organ, tumour, mean = score_table(two_classes)
    assert heads[:3] == ("class", "Dice", "95 % interval")
    assert organ == ("organ", "0.8000", "0.6100 to 0.9500", "0.8000", "2.00", "3", "0", "0")
    assert tumour[:2] == ("tumour", "0.1000")
    assert mean[:2] == ("mean of classes", "0.4500")
    assert worst_table(two_classes, most=2) == [
        ("case", "mean Dice", "organ", "tumour"),
        ("b", "0.3000", "0.6000", "0.0000"),
        ("a", "0.5000", "0.8000", "0.2000"),
    ]


def test_one_class_needs_no_mean_and_an_undefined_case_no_rank():
    scores = _scores({"a": (_row("organ", 0.5),), "b": (_row("organ", None),)})
    assert len(score_table(scores)) == 2
    assert score_table(scores)[1][2] == "-"
    assert worst_table(scores) == [("case", "Dice"), ("a", "0.5000")]
    assert by_dice(scores.rows) == [("a", 0.5)]


def test_a_case_in_words():
    assert case_words((_row("organ", 0.8), _row("tumour", None))) == "Dice 0.800 (organ 0.800, tumour -)"
    assert case_words((_row("organ", 0.5),)) == "Dice 0.500"
    assert case_words((_row("organ", None),)) == "Dice -"
