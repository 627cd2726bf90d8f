"""Score all folds of an experiment together, decide by out-of-fold evidence, and make one model of them.

    medseg crossval --config configs/hippocampus.yaml --data-root DATA
    medseg crossval --config configs/hippocampus.yaml --data-root DATA --choose work/full work/slices

``medseg train --fold all`` trains the folds and then does the first of these. With ``--choose`` the folds of the named
work folders, and pairs of them, are compared; the results go to this experiment's own work folder. The same command again
keeps what is done.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb

if TYPE_CHECKING:
    from medseg.crossvalidation.outoffold import DataPlace
    from medseg.crossvalidation.stage import CrossValidation
    from medseg.tracking.run import TrackedRun

_LOG = logging.getLogger(__name__)
_PURPOSE = "Score all folds together, decide by out-of-fold evidence, make one model."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns its exit code."""
    return run_verb("crossval", argv, body=_crossval, add_arguments=_arguments, description=_PURPOSE)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--choose", nargs="+", type=Path, metavar="WORK", help="work folders to choose between [--work]"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="cases at a time [by cores and free memory]")


def _crossval(context: Context) -> int:
    from medseg.cli.review import log_case_table
    from medseg.crossvalidation.candidates import find_candidates
    from medseg.crossvalidation.report import finding_lines, write_report
    from medseg.crossvalidation.stage import Settings, run_crossvalidation
    from medseg.evaluation import flat_metrics, terminal_table
    from medseg.networks.precision import choose_device
    from medseg.tracking.record import write_stage_record
    from medseg.tracking.tracker import open_tracker

    started, config, args = time.monotonic(), context.experiment, context.args
    output, place = context.work / "crossvalidation", _place(context)
    candidates = find_candidates(args.choose or [context.work])
    settings = Settings(
        infer=None if args.choose else config.infer,
        seed=config.seed,
        device=choose_device(context.device),
        processes=args.processes,
    )
    with ExitStack() as stack:
        tracker = open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain())
        resume_file = output / "tracking.json"
        tracked = stack.enter_context(tracker).run("crossval", "crossvalidation", resume_file=resume_file)
        run = stack.enter_context(tracked)
        result = run_crossvalidation(candidates, place, output, settings=settings)
        changed = not (output / "crossvalidation.json").exists() or not run.finished_before
        write_report(result, output)
        inputs = {"manifest": place.manifest.sha256, "model": result.model_sha256, **result.reported.identity()}
        seconds = time.monotonic() - started
        write_stage_record(output, stage="crossval", config=config.plain(), inputs=inputs, seconds=seconds)
        if changed:
            run.log_metrics(flat_metrics(result.reported), step=0)
            log_case_table(run, result.reported)
            run.log_file(output / "crossvalidation.md")
            run.log_file(output / "crossvalidation.json")
            _review(run, context, result, output)
    _show(result, output, terminal_table(result.reported), finding_lines(result.final))
    return result.exit_code


def _review(run: TrackedRun, context: Context, result: CrossValidation, output: Path) -> None:
    from medseg.cli.review import crossval_note, log_evidence, log_scores
    from medseg.crossvalidation.report import dice_by_fold
    from medseg.durable import sha256_file

    by_fold, name = dice_by_fold(result), context.experiment.tracking.registered_model
    known = {fold: mean for fold, mean in by_fold.items() if mean is not None}
    for fold, mean in known.items():
        run.log_metrics({"fold/dice": mean}, step=int(fold))
    note, scored = crossval_note(context, result, by_fold), output / "scores" / "reported"
    log_scores(run, context, result.reported, scored, note, name="crossvalidation")
    if known:
        extremes = {"best_fold": max(known, key=known.__getitem__), "worst_fold": min(known, key=known.__getitem__)}
        run.set_tags(extremes)
        spread = {f"crossvalidation/{end}_fold_dice": known[extremes[f"{end}_fold"]] for end in ("best", "worst")}
        run.log_headline(spread, tags=extremes)
    if name is not None:  # its members are artifacts of the folds' runs already
        tags = {"folds": str(len(by_fold)), "experiment": context.experiment.name}
        run.log_model(result.model, registered_as=name, tags=tags, description=note)
    log_evidence(run, sha256_file(result.model / "model.json"), result.reported, scored)


def _place(context: Context) -> DataPlace:
    from medseg.crossvalidation.candidates import folds_of
    from medseg.crossvalidation.outoffold import DataPlace
    from medseg.manifest import load_manifest

    assert context.manifest_path is not None
    manifest = load_manifest(context.manifest_path)
    return DataPlace(
        manifest=manifest,
        folds=folds_of(manifest),
        data_root=context.data_root,
        allow_outside=context.args.allow_outside,
        evaluate=context.experiment.evaluate,
    )


def _show(result: CrossValidation, output: Path, table: object, lines: Sequence[str]) -> None:
    from rich.console import Console

    Console().print(table)
    for line in lines:
        sys.stdout.write(f"{line}\n")
    if len(result.candidates) > 1:
        sys.stdout.write(f"configuration: {result.final.choice.name}\n")
    sys.stdout.write(
        f"{output}: {len(result.reported.rows)} cases out of fold; model/ holds {len(result.place.folds)} folds\n"
    )


if __name__ == "__main__":
    sys.exit(main())
