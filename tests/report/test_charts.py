import re

import pytest

from medseg.report import charts
from medseg.report.scores import Row, ScoreTable


def table(values, *, summary=None, name="organ"):
    rows = [Row(case=f"c{i}", class_name=name, situation="present", values=one) for i, one in enumerate(values)]
    metrics = {"classes": {name: {"metrics": {"dice": summary or {}}}}}
    return ScoreTable(metrics=metrics, rows=rows, columns=())


def volumes(*pairs):
    return table([{"volume_prediction_ml": p, "volume_reference_ml": r} for p, r in pairs])


def words(svg):
    return re.findall(r">([^<>]+)</t(?:ext|span)>", svg)


def test_bland_altman_states_bias_and_limits():
    # Differences 1 and 3: mean 2, SD 1.414, limits 2 +- 2.77.
    drawn = charts.bland_altman(volumes((11, 10), (23, 20)), "organ", 0)
    assert 'aria-label="Bland-Altman plot of organ: mean difference 2 ml, SD 1.41 ml"' in drawn
    assert {"mean", "+2", "+1.96 SD", "+4.77", "\N{MINUS SIGN}1.96 SD", "\N{MINUS SIGN}0.772"} <= set(words(drawn))


def test_volumes_that_agree_are_not_magnified():
    drawn = charts.bland_altman(volumes((10, 10), (20, 20 + 1e-15)), "organ", 0)
    assert not any("e" in word for word in words(drawn) if re.search(r"\d", word))
    assert {"0", "\N{PLUS-MINUS SIGN} 0"} <= set(words(drawn))


def test_a_hundred_learning_curves_have_no_legend_and_a_hypoglossus_is_no_loss():
    few = {f"Dice {name}": [(1, 0.5), (2, 0.6)] for name in ("hypoglossus", "tongue")}
    assert charts.learning_curves(few, 0, loss=True) is None
    assert "Dice hypoglossus" in charts.learning_curves(few, 0, loss=False)
    many = {f"Dice {k}": [(1, 0.5), (2, 0.6)] for k in range(100)}
    assert "Dice 50" not in charts.learning_curves(many, 0, loss=False)


def test_nothing_to_draw():
    assert charts.bland_altman(volumes((1, 1)), "organ", 0) is None
    assert charts.bland_altman(volumes((0, 0), (0, 0)), "organ", 0) is None
    assert charts.dice_by_volume(volumes((1, 1))) is None
    assert charts.distribution(volumes((1, 1)), "dice") is None
    assert charts.reliability({"organ": []}) is None
    assert charts.learning_curves({"training loss": [(1, 1.0)]}, 0, loss=False) is None


def test_a_figure_takes_colours_and_typeface_from_the_page_and_is_the_same_each_time():
    one = table(
        [{"dice": 0.1 * i} for i in range(9)], summary={"mean": 0.4, "mean_low": 0.2, "mean_high": 0.6}, name="a$b$ <i>"
    )
    drawn = charts.distribution(one, "dice")
    assert drawn == charts.distribution(one, "dice")
    assert "var(--c1)" in drawn
    assert "var(--ink)" in drawn
    assert not re.search(r"#12\d{4}|DejaVu|<metadata|<style|xmlns|http", drawn)
    assert "a$b$ &lt;i&gt;" in words(drawn)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', drawn))
    assert used == set(re.findall(r' id="([^"]+)"', drawn))
    assert all(name.startswith("box-dice-") for name in used)


@pytest.mark.parametrize(("classes", "most"), [(1, 300), (20, 300), (60, 100), (5000, 12)])
def test_points_are_thinned_by_rank(classes, most):
    assert charts.most_points(classes) == most
    shown = charts.some(range(1000), most)
    assert (len(shown), shown[0], shown[-1]) == (most, 0, 999)
