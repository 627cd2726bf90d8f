"""``medseg tune``: search stated ranges for a better config, on training patients set aside for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb

if TYPE_CHECKING:
    from medseg.search.stage import Search, Trial, TrialResult
    from medseg.tracking.run import TrackedRun
    from medseg.tracking.tracker import Tracker
    from medseg.training.loop import EpochResult

_PURPOSE = "Search stated ranges for a better config by successive halving, on training patients set aside for it."
_STOPPED = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Searches; 0 when the winner is written, 143 when a signal stopped it."""
    return run_verb("tune", argv, body=_tune, add_arguments=_arguments, description=_PURPOSE, graceful=True)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--space", type=Path, required=True, metavar="FILE", help="what may change, and its ranges (YAML)"
    )
    parser.add_argument("--minutes", type=float, required=True, metavar="M", help="of training in all")
    parser.add_argument("--candidates", type=int, default=9, metavar="N", help="the default among them [%(default)s]")
    parser.add_argument("--inner-share", type=float, default=0.2, metavar="S", help="patients set aside [%(default)s]")


def _tune(context: Context) -> int:
    from medseg.durable import FolderLock
    from medseg.networks.precision import choose_device
    from medseg.search.stage import run_search
    from medseg.tracking.tracker import open_tracker

    search, config = _search(context), context.experiment
    with (
        FolderLock(search.folder),
        open_tracker(config.tracking, work=context.work, experiment=config.name, config=config.plain()) as tracker,
        tracker.run("tune", "tune", resume_file=search.folder / "tracking.json") as run,
    ):
        results = run_search(
            search,
            device=choose_device(context.device),
            allow_changed=context.args.allow_changed,
            stop=lambda: bool(context.stop),
            watch=_watch(tracker, run),
        )
        found = [_shown(result) for result in results]
        finished = (search.folder / "winner.yaml").exists()
        if not finished:
            run.finish("KILLED", "a signal")
        elif not all(result.kept for result in found) or not run.finished_before:
            for name in ("report.md", "winner.yaml", "results.json"):
                run.log_file(search.folder / name)
    if not finished:
        sys.stdout.write(f"{search.folder}: stopped; the same command goes on\n")
        return _STOPPED
    sys.stdout.write((search.folder / "report.md").read_text(encoding="utf-8").split("\n", 2)[2])
    sys.stdout.write(f"{search.folder / 'winner.yaml'}: written\n")
    return 0


def _search(context: Context) -> Search:
    from medseg.errors import UsageError
    from medseg.manifest import load_manifest
    from medseg.preparation.store import PreparedData
    from medseg.search.halving import plan_rounds
    from medseg.search.space import candidate_config, draw_candidates, load_space
    from medseg.search.stage import Search

    args, config = context.args, context.experiment
    if not 0 < args.inner_share <= 0.5:
        raise UsageError(f"tune: --inner-share is {args.inner_share:g}, expected more than 0 and 0.5 at most")
    space, rounds = load_space(args.space), plan_rounds(args.candidates, args.minutes)
    values = draw_candidates(space, args.candidates, config.seed)
    assert context.manifest_path is not None
    return Search(
        folder=_folder(context.work, fresh=args.fresh),
        config_path=args.config,
        configs=[candidate_config(args.config, tuple(args.overrides), drawn) for drawn in values],
        values=values,
        rounds=rounds,
        manifest=load_manifest(context.manifest_path),
        prepared=PreparedData.open(context.work / "prepared"),
        inner_share=args.inner_share,
    )


def _folder(work: Path, *, fresh: bool) -> Path:
    """``<work>/tune``, after ``--fresh`` ``tune-2`` and so on; without it the newest."""
    numbers = [int(p.name[5:]) for p in work.glob("tune-*") if p.name[5:].isdigit()]
    newest = max(numbers, default=1)
    if fresh and (work / "tune").exists():
        newest += 1
    return work / ("tune" if newest == 1 else f"tune-{newest}")


def _watch(
    tracker: Tracker, parent: TrackedRun
) -> Callable[[Trial], AbstractContextManager[Callable[[EpochResult], None]]]:
    @contextmanager
    def watch(trial: Trial) -> Iterator[Callable[[EpochResult], None]]:
        sys.stderr.write(f"{trial.name}: {trial.minutes:.2f} min, {_values(trial)}\n")
        with tracker.run(
            "tune", trial.name, params=trial.values, parent=parent, resume_file=trial.folder / "tracking.json"
        ) as run:

            def observe(epoch: EpochResult) -> None:
                if epoch.complete:
                    run.log_metrics(epoch.metrics(), step=epoch.step)

            yield observe

    return watch


def _values(trial: Trial) -> str:
    return ", ".join(f"{key}={value}" for key, value in trial.values.items()) or "the config as it is"


def _shown(result: TrialResult) -> TrialResult:
    score = f"inner Dice {result.dice:.4f}" if result.dice is not None else f"failed: {result.failure}"
    sys.stderr.write(f"{result.trial.name}: {score}{', kept' if result.kept else ''}\n")
    return result
