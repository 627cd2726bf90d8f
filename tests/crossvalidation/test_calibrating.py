"""Expected Dice and its bound, on masks whose Dice follows a known rule."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from medseg.crossvalidation import judged
from medseg.crossvalidation.calibrating import (
    JudgedCase,
    conformal_margin,
    figures,
    fit_calibration,
    fit_temperature,
    found_share,
    predict_left_out,
    promised_errors_ml,
    risk_coverage,
)
from medseg.crossvalidation.judged import calibrate, risk_coverage_png
from medseg.durable import write_json
from medseg.errors import ModelError
from medseg.inference.calibration import Calibration, read_calibration, risk_of
from medseg.inference.uncertainty import BINS, doubt_centres

CLASSES = ("organ",)


def case(number, *, doubt, error, groups=5):
    features = {
        "volume_ml": 10.0, "soft_dice": 1 - doubt, "entropy": 0.1, "rim_mm": 0.5, "outside": 0.05, "compactness": 6.0,
        "contact": 0.0, "length_x_mm": 20.0, "length_y_mm": 20.0, "length_z_mm": 20.0,
    }  # fmt: skip
    return JudgedCase(
        id=f"case_{number:04d}", group=number % groups, structures={"organ": features}, inside=(0,) * BINS,
        outside=(0,) * BINS, voxel_ml=0.001, dice={"organ": 1 - error}, wrong_ml=0.0,
    )  # fmt: skip


def cases(count, *, noise=0.3, seed=0):
    """Masks whose log error is 0.3 + the log doubt + noise."""
    rng = np.random.default_rng(seed)
    doubts = np.exp(rng.uniform(math.log(0.03), math.log(0.3), count))
    errors = np.minimum(np.exp(0.3 + np.log(doubts) + noise * rng.normal(size=count)), 0.99)
    return [case(n, doubt=float(d), error=float(e)) for n, (d, e) in enumerate(zip(doubts, errors, strict=True))]


def test_the_margin_is_the_order_statistic_of_the_paper():
    residuals = list(range(1, 20))  # 19 of them: (19 + 1) 0.9 = 18
    assert conformal_margin(residuals, 0.9) == 18
    assert conformal_margin(residuals[:9], 0.9) == 9
    assert conformal_margin(residuals[:8], 0.9) is None


def test_the_bound_covers_as_often_as_it_says_and_risk_finds_the_worst():
    found = cases(400)
    told = figures(predict_left_out(found, CLASSES), found)
    assert told["coverage"]["found"] == pytest.approx(0.9, abs=0.03)
    assert told["mean_absolute_error"]["expected_dice"] < 0.5 * told["mean_absolute_error"]["always_the_mean"]
    assert told["rank_correlation"] > 0.8
    assert told["found_of_worst_tenth"] > 0.8
    assert told["risk_coverage"][0]["dice"] < told["risk_coverage"][10]["dice"] <= told["risk_coverage"][10]["best"]


def test_where_nothing_can_be_told_the_mean_is_said_and_the_bound_still_covers():
    rng = np.random.default_rng(1)
    found = [case(n, doubt=float(d), error=float(e)) for n, (d, e) in enumerate(rng.uniform(0.05, 0.3, (300, 2)))]
    told = figures(predict_left_out(found, CLASSES), found)
    assert told["coverage"]["found"] == pytest.approx(0.9, abs=0.03)
    error = told["mean_absolute_error"]
    assert error["expected_dice"] == pytest.approx(error["always_the_mean"], abs=0.005)


def looked_at(count, seed=0):
    """Masks of which the doubt tells nothing, and how bright the scan is there all but everything."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        brightness, other = rng.normal(), rng.normal(size=3)
        one = case(number, doubt=float(rng.uniform(0.05, 0.2)), error=float(np.exp(-2 + 0.4 * brightness)))
        names = ("brightness", "spread", "texture", "edge")
        look = dict(zip(names, (float(brightness), *map(float, other)), strict=True))
        found.append(replace(one, structures={"organ": {**one.structures["organ"], **look}}))
    return found


def test_what_the_scan_looks_like_is_taken_where_it_tells():
    found = looked_at(150)
    fitted = fit_calibration(found, CLASSES, model_sha256="x")
    assert "brightness" in fitted.classes["organ"].names
    assert figures(predict_left_out(found, CLASSES), found)["found_of_worst_tenth"] > 0.8
    # A mask that an older medseg made lacks it: no estimate; and so does a set of masks, of which one lacks it.
    old = case(0, doubt=0.1, error=0.1)
    assert fitted.estimate(old.structures, "organ") is None
    assert fitted.estimate(found[0].structures, "organ") is not None
    mixed = fit_calibration([*found, old], CLASSES, model_sha256="x")
    assert "brightness" not in mixed.classes["organ"].names
    # With few masks few features, whatever is there: ten masks for each.
    few = fit_calibration(found[:30], CLASSES, model_sha256="x")
    assert few.classes["organ"].names == ("doubt", "unusual")


def test_few_cases_give_no_bound_and_too_few_no_calibration():
    assert fit_calibration(cases(7), CLASSES, model_sha256="x").classes == {}
    few = fit_calibration(cases(8), CLASSES, model_sha256="x").classes["organ"]
    assert (few.margin, few.names) == (None, ("doubt", "unusual"))
    assert few.bound(dict.fromkeys(few.names, 0.0)) == 0
    assert predict_left_out([case(0, doubt=0.1, error=0.1)], CLASSES) == ()


def test_an_estimate_is_the_formula_of_its_docstring():
    calibration = fit_calibration(cases(60), CLASSES, model_sha256="x")
    assert calibration.estimate({"organ": {"volume_ml": 0.0}}, "organ") is None
    doubtful, sure = (calibration.estimate(case(0, doubt=d, error=0).structures, "organ") for d in (0.3, 0.05))
    assert sure[0] == pytest.approx(1 - math.exp(0.3 + 0.045) * 0.05, abs=0.03)
    assert doubtful[0] < sure[0]
    assert doubtful[1] < doubtful[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_makes_promised_errors_true(temperature):
    rng = np.random.default_rng(2)
    doubtful = rng.integers(1, 1000, BINS).astype(float) * 0.001
    one = case(0, doubt=0.1, error=0.1)
    judged = JudgedCase(
        **{
            **vars(one),
            "inside": tuple(int(v) for v in doubtful * 1000),
            "wrong_ml": promised_errors_ml(doubtful, temperature),
        }
    )
    assert fit_temperature([judged]) == pytest.approx(temperature, rel=1e-3)
    assert promised_errors_ml(doubtful, 1.0) == pytest.approx(float((doubtful * doubt_centres()).sum()))


def test_review_figures_on_paper():
    risk, quality = np.array([0.9, 0.8, 0.1, 0.2, 0.3]), np.array([0.1, 0.9, 0.8, 0.7, 0.6])
    assert found_share(risk, quality, reviewed=0.2, worst=0.2) == 1
    assert found_share(risk, quality, reviewed=0.2, worst=0.4) == 0.5
    points = risk_coverage(risk, quality)
    assert points[4] == {"reviewed": 0.2, "dice": 0.75, "best": 0.75}
    assert points[8] == {"reviewed": 0.4, "dice": 0.7, "best": 0.8}
    assert risk_of({"a": 0.9, "b": None}, {"a": 0.5}) == 0.1
    assert risk_of({"a": None}, {"a": 0.5, "b": None}) == 0.5
    assert risk_of({}, {}) is None


def test_a_calibration_lies_in_the_model_folder_of_its_model_only(tmp_path, monkeypatch):
    monkeypatch.setattr(judged, "risk_coverage_png", lambda points: b"drawn")
    model, output = tmp_path / "model", tmp_path / "report"
    write_json(model / "model.json", {"kind": "medseg model"})
    assert read_calibration(model) is None
    told = calibrate(model, cases(40), CLASSES, output, expected=40)
    calibration = read_calibration(model)
    assert Calibration.from_plain(calibration.plain()) == calibration
    assert calibration.evidence["cases"] == told["cases"] == 40
    rows = list(csv.DictReader(io.StringIO((output / "quality_cases.csv").read_text())))
    assert (len(rows), rows[0]["case"]) == (40, "case_0000")
    before = {path: path.stat().st_mtime_ns for path in (model / "quality.json", output / "risk_coverage.png")}
    calibrate(model, cases(40), CLASSES, output, expected=40)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert calibrate(model, cases(40), CLASSES, output, expected=100) == {}
    write_json(model / "model.json", {"kind": "medseg model", "other": 1})
    with pytest.raises(ModelError, match="is of another model"):
        read_calibration(model)
    (model / "quality.json").write_text((model / "quality.json").read_text().replace("0.9", "0.8"))
    with pytest.raises(ModelError, match="does not have its checksum"):
        read_calibration(model)


@pytest.mark.slow
def test_the_figure_is_drawn():
    points = risk_coverage(np.linspace(0, 1, 40), np.linspace(1, 0, 40))
    assert risk_coverage_png(points).startswith(b"\x89PNG")
