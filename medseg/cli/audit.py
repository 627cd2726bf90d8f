"""``medseg audit``: look for scans that are there twice and labels that look wrong, before money is spent on training."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb

if TYPE_CHECKING:
    from rich.table import Table

    from medseg.audit.stage import AuditReport
    from medseg.tracking.run import TrackedRun

_PURPOSE = "Look for scans that are there twice and labels that look wrong, and describe the shape of each label."


def main(argv: Sequence[str] | None = None) -> int:
    """Audits the config's data set; 0, or 4 where a case could not be read."""
    return run_verb("audit", argv, body=_audit, add_arguments=_arguments, description=_PURPOSE)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predictions", action="append", type=Path, metavar="DIR",
        help="masks by models that did not train on these cases [predictions/fold_* of the work folder]",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, metavar="N", help="cases at a time [by cores and free memory]")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many findings to print [%(default)s]")


def _audit(context: Context) -> int:
    from rich.console import Console

    from medseg.audit.stage import run_audit
    from medseg.manifest import load_manifest
    from medseg.tracking.record import write_stage_record
    from medseg.tracking.tracker import open_tracker

    config, args, started = context.experiment, context.args, time.monotonic()
    assert context.manifest_path is not None
    manifest, folder = load_manifest(context.manifest_path).with_series(config.data.series), context.work / "audit"
    predictions = _predictions(context)
    with (
        open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain()) as tracker,
        tracker.run("audit", "audit", resume_file=folder / "tracking.json") as run,
    ):
        report = run_audit(
            manifest, data_root=context.data_root, output=folder, predictions=predictions,
            allow_outside=args.allow_outside, processes=args.processes,
        )  # fmt: skip
        seconds = time.monotonic() - started
        inputs = {"manifest": manifest.sha256}
        write_stage_record(folder, stage="audit", config=config.plain(), inputs=inputs, seconds=seconds)
        _track(run, report, folder, images=config.tracking.images)
    console = Console()
    console.print(_findings_table(report, args.top))
    console.print(_shapes_table(report))
    for note in report.notes:
        sys.stdout.write(f"audit: {note}\n")
    sys.stdout.write(f"{folder}: {report.case_count} cases, {len(report.findings)} findings\n")
    return report.exit_code


def _predictions(context: Context) -> dict[str, Path]:
    """Case id to out-of-fold mask; of a case in several folders the first counts."""
    from medseg.evaluation.matching import label_files

    folders = context.args.predictions or sorted((context.work / "predictions").glob("fold_*"))
    found: dict[str, Path] = {}
    for folder in folders:
        for case_id, path in label_files(folder).items():
            found.setdefault(case_id, path)
    return found


def _track(run: TrackedRun, report: AuditReport, folder: Path, *, images: bool) -> None:
    run.log_metrics({"cases": report.case_count, "findings": len(report.findings)}, step=0)
    rows = [
        {"kind": f.kind, "cases": " ".join(f.cases), "score": f.score, "finding": f.sentence, "also": "; ".join(f.also)}
        for f in report.findings
    ]
    run.log_table(rows, "findings")
    run.log_file(folder / "audit.json")
    if images:
        from medseg.audit.pictures import suspect_slices
        from medseg.tracking.figures import overlay_png

        for name, (image, label, planar) in suspect_slices(report):
            run.log_image(overlay_png(image, label, None, flip_yx=not planar), name, step=0)


def _findings_table(report: AuditReport, top: int) -> Table:
    from rich.table import Table

    table = Table(title="to look at, the most urgent first", title_justify="left")
    for column in ("", "score", "case", "finding"):
        table.add_column(column, justify="right" if column in ("", "score") else "left")
    for rank, finding in enumerate(report.findings[:top], start=1):
        also = f" ({len(finding.also)} more)" if finding.also else ""
        sentence = f"{finding.kind}: {finding.sentence}{also}"
        table.add_row(str(rank), f"{finding.score:.1f}", "\n".join(finding.cases), sentence)
    if len(report.findings) > top:
        table.caption = f"and {len(report.findings) - top} more in audit.json"
    return table


def _shapes_table(report: AuditReport) -> Table:
    from rich.table import Table

    table = Table(title="labels, medians over cases", title_justify="left")
    for column in ("class", "cases", "ml", "pieces", "thick mm", "tube", "hint"):
        table.add_column(column, justify="left" if column in ("class", "hint") else "right")
    for shape in report.shapes:
        median = shape.median
        numbers = ("volume_ml", "components", "thickness_mm", "tube_share")
        cells = [f"{median[key]:.3g}" if median else "" for key in numbers]
        table.add_row(shape.name, f"{shape.present} of {shape.cases}", *cells, "\n".join(shape.hints))
    return table
