"""What a report is made of: of an experiment's work folder, or of any folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.config.sections import InferSection
from medseg.errors import InputError, UsageError
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.matching import CasePaths, match_folders
from medseg.evaluation.protocol import Protocol, make_protocol
from medseg.imaging import is_scan, suffix_of
from medseg.manifest import Manifest
from medseg.report.content import ReportInputs
from medseg.report.scores import read_scores

_NO_CONFIG = "no folder of scans was given"
_TRACKING_OFF = "tracking.images is off"


def experiment_inputs(
    scores: Path,
    cases: CaseSet,
    *,
    work: Path,
    fold: int | None,
    section: InferSection,
    manifest: Manifest,
    images: bool,
) -> ReportInputs:
    """Of a set of an experiment.

    Args:
        scores: the set's folder of scores.
        cases: its cases, ``scans`` among them.
        work: with ``prepared/`` and ``runs/``.
        fold: of the config's data.
        section: the config's ``infer``, which says whose models predict.
        manifest: names the first channel.
        images: ``tracking.images``.
    """
    from medseg.inference.runs import latest_run

    folders = tuple(latest_run(work, one) / "model" for one in section.ensemble or (fold,))
    return ReportInputs(
        scores=scores,
        cases=cases,
        show_scans=images,
        why_no_scans="" if images else _TRACKING_OFF,
        hounsfield=is_hounsfield(manifest),
        plan=work / "prepared" / "plan.yaml",
        models=tuple(folder for folder in folders if (folder / "model.json").is_file()),
    )


def is_hounsfield(manifest: Manifest) -> bool:
    """Whether the first channel, which is shown, is CT, by the name that decides its normalisation too."""
    return bool(manifest.channels) and "CT" in (
        manifest.channels[0].name.upper(),
        (manifest.channels[0].unit or "").upper(),
    )


def folder_inputs(
    scores: Path,
    cases: CaseSet | None,
    *,
    scans: Path | None = None,
    models: Sequence[Path] = (),
) -> ReportInputs:
    """Of folders without a config.

    Args:
        scores: folder of scores.
        cases: their masks, or None.
        scans: folder with the scans, named after the cases; who gives it wants them shown.
        models: model folders that made the masks.

    Raises:
        UsageError: a folder is missing.
    """
    for folder in models:
        if not (folder / "model.json").is_file():
            raise UsageError(f"--model: {folder.name} is no model folder; check the path")
    if cases is not None and scans is not None:
        cases = replace(cases, scans=scans_of(scans, cases.pairs))
    return ReportInputs(
        scores=scores,
        cases=cases,
        show_scans=scans is not None,
        why_no_scans="" if scans is not None else _NO_CONFIG,
        models=tuple(models),
    )


def scans_of(folder: Path, pairs: Sequence[CasePaths]) -> dict[str, Path]:
    """Case id to its scan in a folder: ``<case>.nii.gz`` and the like, nnU-Net's ``<case>_0000``, or a folder ``<case>``.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"--scans: {folder.name} is no folder; check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or is_scan(path)):
            continue
        stem = path.name if path.is_dir() else path.name[: -len(suffix_of(path) or "")]
        found.setdefault(stem.removesuffix("_0000"), path)
    return {pair.case_id: found[pair.case_id] for pair in pairs if pair.case_id in found}


def scored_folders(scores: Path, *, predictions: Path, references: Path) -> CaseSet:
    """Two folders of masks as the scores say that they were scored.

    Raises:
        InputError: the scores can't be read, or nothing matches.
    """
    table = read_scores(scores)
    return CaseSet(
        name=table.name, pairs=match_folders(predictions, references), protocol=_protocol(table.metrics, scores)
    )


def _protocol(metrics: object, scores: Path) -> Protocol:
    assert isinstance(metrics, dict)
    try:
        return make_protocol(
            labels={str(name): tuple(int(value) for value in values) for name, values in metrics["labels"].items()},
            ignore=metrics["ignore"],
            tolerance_mm={str(name): float(value) for name, value in metrics["tolerance_mm"].items()},
            empty=metrics["definitions"]["empty_masks"]["policy"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{scores.name}/metrics.json: lacks {error}, expected the protocol; evaluate again") from error
