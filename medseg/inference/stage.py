"""Many scans: read, computed and written at the same time, each case on its own, done ones kept.

Threads read and prepare the next scans and write the last masks while this one's scores are computed. The queues between them
are bounded in bytes, so memory holds what fits, whatever the number of cases. A case that can't be done is reported and passed
over; what stops everything is a fault of the output folder (a full disk fails every further case alike) or a signal.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

from medseg.durable import remove_stale_temporaries
from medseg.imaging.label_table import label_table
from medseg.inference.cases import InferCase, refuse_output, refuse_overwriting, refuse_same_names
from medseg.inference.decoding import CaseReader
from medseg.inference.ensemble import MaskMaker
from medseg.inference.inwork import InWork
from medseg.inference.onecase import Terms
from medseg.inference.pipeline import DEFAULT, Pipeline, RunOptions
from medseg.inference.quality import Judge
from medseg.inference.report import CaseReport, ReportFile
from medseg.inference.shards import Shard, folder_lock
from medseg.runner.progress import CaseProgress

__all__ = ["CaseRun", "RunOptions", "infer_folder", "report_folder", "run_infer", "terms_of"]

_LOG = logging.getLogger(__name__)

CaseRun = Callable[[Sequence[InferCase]], Generator[CaseReport, None, None]]
"""What does the cases of a folder, here or on other machines: one report per case, in any order, as they end."""


def infer_folder(
    engine: MaskMaker, cases: Sequence[InferCase], *, output: Path, options: RunOptions = DEFAULT
) -> list[CaseReport]:
    """As :func:`run_infer`, with all that belongs to a folder: its lock, its reports, and progress.

    Args:
        engine: the models and how they are applied.
        cases: of the folder; a shard does its part of them.
        output: folder of the masks; made if it is not there.
        options: how.

    Returns:
        A report per case of this shard, in the order of the cases.

    Raises:
        LockedError: another process writes this folder.
        UsageError, EnvironmentFault: as ``run_infer``.
    """
    refuse_output(cases, output, options.spec, engine.class_names, overwrite=options.overwrite)
    with InWork(output, options.shard) as in_work:

        def run(part: Sequence[InferCase]) -> Generator[CaseReport, None, None]:
            part = in_work.last(part)
            return run_infer(engine, part, output=output, options=options, begun=in_work.begun)

        return report_folder(run, cases, output=output, shard=options.shard, ended=in_work.ended)


def report_folder(
    run: CaseRun,
    cases: Sequence[InferCase],
    *,
    output: Path,
    shard: Shard | None = None,
    ended: Callable[[str], None] | None = None,
) -> list[CaseReport]:
    """Runs cases, wherever that happens, under the folder's lock and into its reports, with progress.

    Args:
        run: does the cases that it is given.
        cases: of the folder; ``run`` is given the shard's part of them.
        output: folder of the masks.
        shard: see :class:`RunOptions`.
        ended: told of every case that is through.

    Returns:
        A report per case of this shard, in the order of the cases.

    Raises:
        LockedError: another process writes this folder.
    """
    part = cases if shard is None else shard.part(cases)
    reports: dict[str, CaseReport] = {}
    with (
        folder_lock(output, shard),
        ReportFile(output, [case.id for case in cases], shard=shard) as lines,
        CaseProgress("infer", len(part)) as progress,
        closing(run(part)) as running,
    ):
        for report in running:
            lines.add(report)
            if ended is not None:
                ended(report.id)
            reports[report.id] = report
            progress.advance(free=report.status == "kept")
            if report.reason is not None:
                # Reasons that speak of the scan rather than of a file name nobody who reads the log can place.
                named = re.search(rf"(?<!\w){re.escape(report.id)}(?!\w)", report.reason)
                _LOG.warning("%s: %s%s", report.status, "" if named else f"{report.id}: ", report.reason)
    return [reports[case.id] for case in part if case.id in reports]


def terms_of(engine: MaskMaker, *, output: Path, reader: CaseReader, options: RunOptions = DEFAULT) -> Terms:
    """What the cases of a run share; with it `onecase.infer_case` does a single case, on whatever machine."""
    return Terms(
        engine=engine,
        judge=Judge(engine),
        output=output,
        load=reader,
        spec=options.spec,
        label_table=label_table(engine.plan.labels, engine.plan.label_table),
        overwrite=options.overwrite,
        settings=engine.settings() | options.spec.settings(),
    )


def run_infer(
    engine: MaskMaker,
    cases: Sequence[InferCase],
    *,
    output: Path,
    options: RunOptions = DEFAULT,
    begun: Callable[[str], None] | None = None,
) -> Generator[CaseReport, None, None]:
    """Writes a mask and its sidecar for every case, and yields one report per case, in order.

    A case whose sidecar matches its input, the models and the settings, and whose files still have the bytes they had, is
    kept: its scan is hashed but not opened.

    Args:
        engine: the models and how they are applied.
        cases: with file names that differ; all are done, whatever ``options.shard`` says.
        output: folder of the masks; made if it is not there.
        options: how.
        begun: told of every case before it is read, in the thread that iterates.

    Yields:
        A :class:`CaseReport` as soon as the case's files are on the disk.

    Raises:
        UsageError: two masks would have one name, or there is no case; nothing was written.
        EnvironmentFault: the output can't be written.
    """
    refuse_same_names(cases, options.spec)
    refuse_overwriting(cases, output, options.spec, engine.class_names)
    output.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(output)
    reader = CaseReader(isolation=options.isolation, timeout_seconds=options.read_seconds)
    pipeline = Pipeline(terms_of(engine, output=output, reader=reader, options=options), options)
    try:
        yield from pipeline.run(cases, begun or (lambda _case_id: None))
    finally:
        # Also on a signal: what is being written is finished, what was only queued is not begun.
        reader.close()
        pipeline.close()
