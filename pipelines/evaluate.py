"""Score masks against references.

    medseg evaluate --config configs/hippocampus.yaml --data-root DATA
    medseg evaluate --predictions DIR --references DIR --labels liver=1,tumour=2 --output DIR

The second form takes any two folders of label maps (NIfTI, NRRD, MHA, PNG, TIFF, DICOM-SEG), paired by name without suffix.
The same command again scores only what is new or changed. Beside the scores it makes a report (docs/report.md).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.errors import InputError, MedsegError, UsageError
from medseg.runner.cluster_flags import add_cluster_flags, open_cluster

if TYPE_CHECKING:
    from medseg.evaluation.experiment import CaseSet
    from medseg.evaluation.report import Scores
    from medseg.report.content import ReportInputs
    from medseg.report.stage import ReportFiles
    from medseg.runner.cluster import Cluster
    from medseg.tracking.run import TrackedRun

_LOG = logging.getLogger(__name__)

_WITHOUT_CONFIG = ("references", "labels", "ignore", "tolerance", "empty", "metrics")
_OF_FOLDERS = (*_WITHOUT_CONFIG, "scans")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns its exit code."""
    purpose = "Score masks against references."
    return run_verb("evaluate", argv, body=_evaluate, add_arguments=_arguments, description=purpose, needs_config=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="masks to score [with a config: infer's]")
    parser.add_argument("--references", type=Path, metavar="DIR", help="masks to score them against")
    parser.add_argument("--labels", metavar="NAME=VALUE,...", help="classes, e.g. liver=1,tumour=2+3; 0 is background")
    parser.add_argument("--ignore", type=int, metavar="VALUE", help="reference value that counts for nothing")
    parser.add_argument("--tolerance", metavar="MM", help="of NSD, for all classes or as liver=2,tumour=1 [1]")
    parser.add_argument("--empty", metavar="POLICY", help="what empty masks count: standard or exclude [standard]")
    parser.add_argument(
        "--metrics", metavar="NAME,...", help="besides the default ones, e.g. surface_elements,hd99_mm or all"
    )
    parser.add_argument(
        "--scans", type=Path, metavar="DIR", help="scans named after the cases, to be shown in the report"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the scores")
    parser.add_argument(
        "--error-maps", action="store_true", help="write where each mask is right, too much, too little"
    )
    parser.add_argument("--no-report", action="store_true", help="make no report.html and report.md")
    parser.add_argument("--processes", type=int, metavar="N", help="cases at a time [by cores and free memory]")
    add_cluster_flags(parser)


def _evaluate(context: Context) -> int:
    sets = _folder_set(context) if context.config is None else config_sets(context)
    with open_cluster(context.args) as cluster:
        codes = {_score(context, output, cases, cluster) for output, cases in sets.items()}
    return codes.pop() if len(codes) == 1 else 4


def _folder_set(context: Context) -> dict[Path, CaseSet]:
    from medseg.evaluation.experiment import folder_set

    args = context.args
    if not (args.predictions and args.references and args.labels and args.output):
        raise UsageError(
            "evaluate: expected --config FILE, or --predictions DIR --references DIR --labels NAME=VALUE,... "
            "--output DIR; see medseg evaluate --help"
        )
    given = {flag: getattr(args, flag) for flag in ("predictions", *_WITHOUT_CONFIG)}
    return {args.output: folder_set(args.predictions.resolve().name, **given)}


def config_sets(context: Context) -> dict[Path, CaseSet]:
    """Folder of scores to the cases of each set that the config evaluates.

    Raises:
        UsageError: flags of the other form were given too.
        InputError: no case has a label.
    """
    from medseg.evaluation.experiment import first_series, manifest_set
    from medseg.inference.experiment import experiment_cases
    from medseg.manifest import load_manifest

    args, config = context.args, context.experiment
    if given := [f"--{flag}" for flag in _OF_FOLDERS if getattr(args, flag, None) is not None]:
        raise UsageError(f"evaluate: has --config and {', '.join(given)}, expected one or the other; see --set")
    assert context.manifest_path is not None
    manifest = load_manifest(context.manifest_path)
    paths = {"data_root": context.data_root, "allow_outside": args.allow_outside}
    series = first_series(manifest, infer=config.infer, data=config.data)
    found: dict[Path, CaseSet] = {}
    for name, cases in experiment_cases(config.infer, manifest, fold=config.data.fold, **paths).items():
        predictions = args.predictions or context.work / "predictions" / name
        ids = [case.id for case in cases]
        scored = manifest_set(name, manifest, ids, config.evaluate, predictions=predictions, **paths)
        if scored is None:
            _LOG.warning("%s: none of its %d cases has a label, so there is nothing to score", name, len(ids))
        else:
            scans = {case.id: case.images[0] for case in cases if case.images}
            found[(args.output or context.work / "scores") / name] = replace(scored, scans=scans, series=series)
    if not found:
        raise InputError(
            f"{manifest.path.name}: none of the predicted cases has a label; expected some to score against"
        )
    return found


def _score(context: Context, output: Path, cases: CaseSet, cluster: Cluster | None) -> int:
    from rich.console import Console

    from medseg.evaluation import run_evaluate, score_lines, terminal_table
    from medseg.evaluation.experiment import as_scored
    from medseg.tracking.record import write_stage_record
    from medseg.tracking.tracker import open_tracker

    started, config = time.monotonic(), context.config
    wanted = not context.args.no_report and (config is None or config.evaluate.report)
    # Before hours of scoring, so that a flag that is wrong is said at once.
    of_report = report_inputs(context, output, cases) if wanted else None
    with ExitStack() as stack:
        run = None
        if config is not None:
            tracker = open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain())
            name, resume_file = f"evaluate {cases.name}", output / "tracking.json"
            run = stack.enter_context(stack.enter_context(tracker).run("evaluate", name, resume_file=resume_file))
        run_elsewhere = None if cluster is None else cluster.on(output.absolute())
        maps = context.args.error_maps or (config is not None and config.evaluate.error_maps)
        report = run_evaluate(
            cases, output=output, processes=context.args.processes, run=run_elsewhere, error_maps=maps
        )
        cases = as_scored(cases, output)
        made = None if of_report is None else _made(_with_masks_of(of_report, cases))
        if run is not None and (report.scored or not run.finished_before):
            _record(run, context, cases, report.scores, output, reported=made is not None)
        plain = config.plain() if config is not None else {"evaluate": cases.protocol.plain()}
        inputs = {**cases.inputs, **report.scores.identity()}
        seconds = time.monotonic() - started
        write_stage_record(output, stage="evaluate", config=plain, inputs=inputs, seconds=seconds)
    Console().print(terminal_table(report.scores))
    sys.stdout.writelines(f"{line}\n" for line in score_lines(report.scores))
    sys.stdout.write(f"{output}: {report.scored} cases scored, {report.kept} kept\n")
    if made is not None:
        sys.stdout.write(f"{made.html}\n")
    for fault in report.faults:
        _LOG.error("%s", fault)
    return report.exit_code


def _record(run: TrackedRun, context: Context, cases: CaseSet, scores: Scores, output: Path, *, reported: bool) -> None:
    """What the tracker gets of a scored set."""
    from medseg.cli.review import (
        evaluate_note,
        log_case_table,
        log_evidence,
        log_overlays,
        log_scores,
        predicted_by,
    )
    from medseg.evaluation import flat_metrics

    run.log_metrics(flat_metrics(scores), step=0)
    log_case_table(run, scores)
    run.log_file(output / "metrics.json")
    pictures: list[str] = []
    if context.experiment.tracking.images:
        with run.best_effort("the pictures"):
            pictures = log_overlays(run, cases, scores)
    note = evaluate_note(context, scores, pictures=pictures)
    log_scores(run, context, scores, output, note, report=reported)
    if model := predicted_by(cases):
        log_evidence(run, model, scores, output)


def _with_masks_of(inputs: ReportInputs, cases: CaseSet) -> ReportInputs:
    """The report's inputs with the references that were scored against, and the scans that it had."""
    assert inputs.cases is not None
    return replace(inputs, cases=replace(cases, scans=inputs.cases.scans))


def _made(inputs: ReportInputs) -> ReportFiles | None:
    """The report; None where it can't be made, which must not keep the scores from being recorded."""
    from medseg.report.stage import make_report

    try:
        return make_report(inputs)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the scores are right
        reason = str(error) if isinstance(error, MedsegError) else type(error).__name__
        _LOG.error("report: is not made (%s); the scores are whole, medseg report makes it again", reason)
        _LOG.debug("report", exc_info=error)
        return None


def report_inputs(context: Context, output: Path, cases: CaseSet) -> ReportInputs:
    """What the report of a set of scores is made of.

    Raises:
        UsageError: ``--scans`` is no folder.
    """
    from medseg.manifest import load_manifest
    from medseg.report.experiment import experiment_inputs, folder_inputs

    if context.config is None or context.manifest_path is None:
        return folder_inputs(output, cases, scans=context.args.scans)
    config = context.config
    return experiment_inputs(
        output,
        cases,
        work=context.work,
        fold=config.data.fold,
        section=config.infer,
        manifest=load_manifest(context.manifest_path),
        images=config.tracking.images,
    )


if __name__ == "__main__":
    sys.exit(main())
