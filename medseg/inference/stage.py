"""Many scans through a model: read ahead, compute, write behind, and one report line each.

A thread reads and prepares the next scans while the network works on this one, and another writes the last mask. What
is in flight is bounded: ``_AHEAD`` prepared scans, and the class scores of the scan being computed and of the two being
written. A case that can't be done is reported and passed over; what stops everything is a fault of the output folder
(a full disk fails every further case alike) or a signal.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from medseg.durable import FolderLock, remove_stale_temporaries
from medseg.errors import EnvironmentFault, MedsegError, ScanError
from medseg.imaging import Header, write_label_map
from medseg.imaging.volume import Affine
from medseg.inference.cases import InferCase, refuse_same_names
from medseg.inference.ensemble import MaskMaker
from medseg.inference.inputs import InputFiles
from medseg.inference.measures import measure_classes
from medseg.inference.report import CaseReport, ReportFile
from medseg.preparation.case import load_case
from medseg.runner.progress import CaseProgress
from medseg.runner.sidecar import Origin, is_done, read_sidecar, write_sidecar

_LOG = logging.getLogger(__name__)

_AHEAD = 2
_BEHIND = 1


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A scan ready for the network, and what its mask needs to know of it; the voxels as read are let go."""

    array: Any
    grid: Any
    affine: Affine
    header: Header | None
    origin: Origin
    seconds: float


def infer_folder(engine: MaskMaker, cases: Sequence[InferCase], *, output: Path) -> list[CaseReport]:
    """As :func:`run_infer`, with all that belongs to a folder: its lock, its ``report.jsonl``, and progress.

    Raises:
        LockedError: another process writes this folder.
        UsageError, EnvironmentFault: as ``run_infer``.
    """
    refuse_same_names(cases)
    reports: list[CaseReport] = []
    with (
        FolderLock(output),
        ReportFile(output, [case.id for case in cases]) as lines,
        CaseProgress("infer", len(cases)) as progress,
        closing(run_infer(engine, cases, output=output)) as run,
    ):
        for report in run:
            lines.add(report)
            reports.append(report)
            progress.advance()
            if report.reason is not None:
                _LOG.warning("%s: %s", report.status, report.reason)
    return reports


def run_infer(engine: MaskMaker, cases: Sequence[InferCase], *, output: Path) -> Generator[CaseReport, None, None]:
    """Writes a mask and its sidecar for every case, and yields one report per case, in order.

    A case whose sidecar matches its input, the models and the settings, and whose mask still has the bytes it had, is
    kept: its scan is hashed but not opened.

    Args:
        engine: the models and how they are applied.
        cases: with file names that differ.
        output: folder of the masks; made if it is not there.

    Yields:
        A :class:`CaseReport` as soon as the case's mask is on the disk.

    Raises:
        UsageError: two masks would have one name, or there is no case; nothing was written.
        EnvironmentFault: the output can't be written.
    """
    refuse_same_names(cases)
    output.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(output)
    settings = engine.settings()
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    try:
        yield from _stream(engine, cases, output, settings, reader, writer)
    finally:
        # Also on a signal: what is being written is finished, what was only queued is not begun.
        for pool in (reader, writer):
            pool.shutdown(wait=True, cancel_futures=True)


def _stream(
    engine: MaskMaker,
    cases: Sequence[InferCase],
    output: Path,
    settings: dict[str, str],
    reader: ThreadPoolExecutor,
    writer: ThreadPoolExecutor,
) -> Iterator[CaseReport]:
    waiting = deque(cases)
    ahead: deque[tuple[InferCase, Future[_Prepared | CaseReport]]] = deque()
    behind: deque[Future[CaseReport]] = deque()
    while waiting or ahead:
        while waiting and len(ahead) < _AHEAD:
            case = waiting.popleft()
            read = partial(_read, engine, case, output, settings)
            ahead.append((case, reader.submit(_isolated, case, read)))
        case, reading = ahead.popleft()
        behind.append(_computed(engine, case, reading, output, writer))
        while len(behind) > _BEHIND or (behind and behind[0].done()):
            yield behind.popleft().result()
    while behind:
        yield behind.popleft().result()


def _computed(
    engine: MaskMaker,
    case: InferCase,
    reading: Future[_Prepared | CaseReport],
    output: Path,
    writer: ThreadPoolExecutor,
) -> Future[CaseReport]:
    """Computes in this thread and leaves the rest to the writer; a case that is through already only keeps its turn."""
    prepared = reading.result()
    if isinstance(prepared, CaseReport):
        return _settled(prepared)
    began = time.monotonic()
    scores = _isolated(case, partial(engine.scores, prepared.array))
    if isinstance(scores, CaseReport):
        return _settled(scores)
    seconds = {"read": prepared.seconds, "compute": time.monotonic() - began}
    rest = replace(prepared, array=None)
    write = partial(_write, engine, case, rest, scores, output, seconds)
    return writer.submit(_isolated, case, write, environment_stops=True)


def _settled(report: CaseReport) -> Future[CaseReport]:
    future: Future[CaseReport] = Future()
    future.set_result(report)
    return future


def _isolated(case: InferCase, work: Callable[[], T], *, environment_stops: bool = False) -> T | CaseReport:
    """What ``work`` gives, or the report of a case that went wrong in it."""
    try:
        return work()
    except MedsegError as error:
        if environment_stops and isinstance(error, EnvironmentFault):
            raise
        return CaseReport(id=case.id, status="refused", reason="; ".join(str(error).splitlines()))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this case's, and the next ones must go on
        _LOG.debug("%s: failed", case.id, exc_info=True)
        reason = f"{case.id}: ended in {type(error).__name__}; run with --verbose for the traceback"
        return CaseReport(id=case.id, status="failed", reason=reason)


def _read(engine: MaskMaker, case: InferCase, output: Path, settings: dict[str, str]) -> _Prepared | CaseReport:
    began = time.monotonic()
    if case.fault is not None:
        raise ScanError(case.fault)
    files = InputFiles(case.images)
    origin = Origin(inputs=files.sha256s(), settings=settings)
    if is_done(output / case.output_name, origin):
        return _kept(case, output)
    volume = load_case(case.images, engine.plan.channels)
    files.check_unchanged()
    array, grid = engine.prepare(volume)
    seconds = time.monotonic() - began
    return _Prepared(array=array, grid=grid, affine=volume.affine, header=volume.header, origin=origin, seconds=seconds)


def _kept(case: InferCase, output: Path) -> CaseReport:
    sidecar = read_sidecar(output / case.output_name)
    if sidecar is None:
        raise ScanError(f"{case.output_name}: its sidecar vanished; run again")
    extra = dict(sidecar.extra)
    return CaseReport(
        id=case.id,
        status="kept",
        output=case.output_name,
        sha256=sidecar.output_sha256,
        voxels=extra.get("voxels", {}),
        volume_ml=extra.get("volume_ml", {}),
        touches_border=extra.get("touches_border", {}),
        warnings=tuple(extra.get("warnings", ())),
    )


def _write(
    engine: MaskMaker, case: InferCase, prepared: _Prepared, scores: Any, output: Path, seconds: dict[str, float]
) -> CaseReport:
    began = time.monotonic()
    header = prepared.header
    classes = engine.classes(scores, prepared.grid)
    planar = header is not None and header.planar
    measures = measure_classes(
        classes, class_names=engine.class_names, affine=prepared.affine, planar=planar, regions=engine.plan.regions
    )
    label_map = engine.label_map(classes, affine=prepared.affine, header=header)
    path = output / case.output_name
    write_label_map(label_map, path, like=header)
    warnings = header.warnings if header is not None else ()
    # Only what follows from the scan and the model: a mask made again has the same sidecar, byte for byte.
    extra = {**asdict(measures), "warnings": list(warnings)}
    sidecar = write_sidecar(path, prepared.origin, versions=engine.versions(), extra=extra)
    seconds = {**seconds, "write": time.monotonic() - began}
    return CaseReport(
        id=case.id,
        status="ok",
        output=path.name,
        sha256=sidecar.output_sha256,
        seconds={phase: round(value, 3) for phase, value in seconds.items()},
        voxels=measures.voxels,
        volume_ml=measures.volume_ml,
        touches_border=measures.touches_border,
        warnings=tuple(warnings),
    )
