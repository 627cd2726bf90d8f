"""Masks with scores become the cases a calibration is made of, and the calibration becomes files."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.crossvalidation.calibrating import (
    COVERAGE,
    JudgedCase,
    Prediction,
    figures,
    fit_calibration,
    predict_left_out,
)
from medseg.durable import sha256_file, write_bytes, write_json
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.report import Scores
from medseg.inference.calibration import QUALITY_FILE, Calibration, read_calibration, write_calibration
from medseg.inference.quality import evidence_from_plain
from medseg.runner.sidecar import read_sidecar

_LOG = logging.getLogger(__name__)
_LEAST_SHARE = 0.5


def judged_cases(
    pairs: Sequence[CasePaths], groups: Mapping[str, int], *, scores: Scores, drawn: Scores
) -> tuple[JudgedCase, ...]:
    """The scored cases whose masks' sidecars tell what the network said of them.

    Args:
        pairs: of the masks as ``medseg infer`` wrote them.
        groups: case id to what is left out together: its fold.
        scores: of the masks as they are used, after post-processing; their Dice is what is predicted.
        drawn: of the masks as the networks drew them, for the temperature.
    """
    found = []
    for pair in pairs:
        sidecar = None if pair.prediction is None else read_sidecar(pair.prediction)
        evidence = None if sidecar is None else evidence_from_plain(sidecar.extra.get("quality", {}))
        if sidecar is None or evidence is None or pair.case_id not in scores.rows or pair.case_id not in drawn.rows:
            continue
        dice = {row.class_name: value for row in scores.rows[pair.case_id] if (value := row.values["dice"]) is not None}
        wrong = sum(row.false_positive + row.false_negative for row in drawn.rows[pair.case_id])
        found.append(
            JudgedCase(
                id=pair.case_id,
                group=groups[pair.case_id],
                structures=evidence.structures,
                inside=evidence.inside,
                outside=evidence.outside,
                voxel_ml=evidence.voxel_ml,
                dice=dice,
                wrong_ml=wrong * _voxel_ml(sidecar.extra, evidence.voxel_ml),
            )
        )
    return tuple(found)


def _voxel_ml(extra: Mapping[str, Any], otherwise: float) -> float:
    """Volume of a voxel of the mask, from what the sidecar says of its structures."""
    for name, volume in extra.get("volume_ml", {}).items():
        if count := extra["voxels"].get(name):
            return float(volume) / int(count)
    return otherwise


def calibrate(
    model: Path,
    cases: Sequence[JudgedCase],
    class_names: Sequence[str],
    output: Path,
    *,
    expected: int,
    coverage: float = COVERAGE,
) -> dict[str, Any]:
    """Fits a calibration, puts it into the model folder, and writes how well it does on cases left out.

    ``output`` gets ``quality_cases.csv`` (per structure the expected Dice, bound and true Dice, by calibrations of the other
    groups), ``quality.json`` (the figures) and ``risk_coverage.png``. What is there already with the same content stays.

    Args:
        model: folder, single or ensemble.
        cases: with masks of networks that did not see them.
        class_names: without background.
        output: folder of the report.
        expected: how many cases were scored; with evidence for less than half of them nothing is done.
        coverage: see `fit_calibration`.

    Returns:
        The figures, {} where nothing could be calibrated.
    """
    if len(cases) < max(1, _LEAST_SHARE * expected):
        _LOG.info(
            "quality: %d of %d masks say how sure the network was; expected Dice is not calibrated",
            len(cases),
            expected,
        )
        return {}
    predictions = predict_left_out(cases, class_names, coverage=coverage)
    found = figures(predictions, cases, coverage=coverage)
    calibration = fit_calibration(
        cases, class_names, model_sha256=sha256_file(model / "model.json"), coverage=coverage,
        evidence={name: value for name, value in found.items() if name != "risk_coverage"},
    )  # fmt: skip
    if not calibration.classes:
        _LOG.info("quality: no class is in 8 masks or more; expected Dice is not calibrated")
        return {}
    _write_once(model, calibration)
    if predictions:
        changed = _write_changed(output / "quality_cases.csv", _table(predictions))
        write_json(output / QUALITY_FILE, found)
        if changed or not (output / "risk_coverage.png").is_file():
            write_bytes(output / "risk_coverage.png", risk_coverage_png(found["risk_coverage"]))
    return found


def _write_once(model: Path, calibration: Calibration) -> None:
    from medseg.errors import ModelError

    try:
        if read_calibration(model) == Calibration.from_plain(calibration.plain()):
            return
    except ModelError:
        _LOG.info("quality: %s of %s is replaced", QUALITY_FILE, model.name)
    write_calibration(model, calibration)


def _write_changed(path: Path, text: str) -> bool:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_bytes(path, text.encode())
    return True


def _table(predictions: Sequence[Prediction]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("case", "class", "expected_dice", "dice_bound", "dice"))
    for one in predictions:
        writer.writerow((one.case, one.name, f"{one.expected:.4f}", f"{one.bound:.4f}", f"{one.dice:.4f}"))
    return stream.getvalue()


def risk_coverage_png(points: Sequence[Mapping[str, float]]) -> bytes:
    """The mean Dice of the masks that are not reviewed, against the share that is, riskiest first.

    Args:
        points: of `calibrating.risk_coverage`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    reviewed = [100 * point["reviewed"] for point in points]
    axes.plot(reviewed, [point["best"] for point in points], color="grey", linestyle=":", label="best order there is")
    axes.plot(reviewed, [point["dice"] for point in points], label="riskiest first")
    axes.axhline(points[0]["dice"], color="grey", linestyle="--", label="any order")
    axes.set(xlabel="masks reviewed, %", ylabel="mean Dice of the others")
    axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
