"""Cases read, computed and written at the same time, over queues that are bounded in bytes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from medseg.errors import EnvironmentFault, ScanError
from medseg.imaging import Header
from medseg.inference.appearance import seen_image
from medseg.inference.cases import InferCase
from medseg.inference.decoding import Isolation, estimated_bytes, quick_header
from medseg.inference.ensemble import MaskMaker
from medseg.inference.onecase import DeviceLost, Prepared, Terms, class_scores, isolated, read_case, write_case
from medseg.inference.outputs import OutputSpec
from medseg.inference.report import CaseReport
from medseg.inference.shards import Shard
from medseg.runner.budget import ByteBudget
from medseg.runner.peak import PeakMemory
from medseg.runner.resources import available_cores, available_memory_bytes, total_memory_bytes

_LOG = logging.getLogger(__name__)

_READING_SHARE = 0.125
_COMPUTING_SHARE = 0.75
_CORES_PER_THREAD = 4
_MOST_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How cases are run; but for ``spec`` nothing here changes a mask.

    Attributes:
        spec: which files a mask is written into.
        overwrite: make every mask anew, whatever is there.
        shard: the part of the cases that this process does; None does all.
        readers, writers: threads; None is one per four cores, at most four.
        isolation: which decoders run in processes of their own.
        read_seconds: longest time for one case in such a process.
        memory_bytes: for all scans in work; None is three quarters of what is free.
    """

    spec: OutputSpec = field(default_factory=OutputSpec)
    overwrite: bool = False
    shard: Shard | None = None
    readers: int | None = None
    writers: int | None = None
    isolation: Isolation = "auto"
    read_seconds: float | None = 900.0
    memory_bytes: int | None = None


DEFAULT = RunOptions()


class Pipeline:
    """Readers, this thread, writers, and the bounded queues between them."""

    def __init__(self, terms: Terms, options: RunOptions) -> None:
        self._terms = terms
        readers, writers = options.readers or _threads(), options.writers or _threads()
        self._readers, self._writers = ThreadPoolExecutor(readers, "read"), ThreadPoolExecutor(writers, "write")
        self._most_ahead, self._most_behind = readers + 1, writers
        free = options.memory_bytes or available_memory_bytes()
        self._ahead = ByteBudget(int(_READING_SHARE * free))
        self._behind = ByteBudget(
            int(_COMPUTING_SHARE * free) if options.memory_bytes is None else options.memory_bytes
        )
        self._peak = PeakMemory()
        _LOG.info(
            "at most %d scans (%.1f GB) are read ahead, and %.1f GB of scans are computed and written at a time",
            self._most_ahead,
            self._ahead.limit_bytes / 1e9,
            self._behind.limit_bytes / 1e9,
        )

    def run(self, cases: Sequence[InferCase], begun: Callable[[str], None]) -> Iterator[CaseReport]:
        """One report per case, in order."""
        waiting = deque(enumerate(cases))
        ahead: deque[tuple[int, InferCase, Future[Prepared | CaseReport]]] = deque()
        behind: deque[Future[CaseReport]] = deque()
        while waiting or ahead:
            while waiting and len(ahead) < self._most_ahead:
                turn, case = waiting.popleft()
                begun(case.id)
                self._ahead.enter(turn)
                ahead.append((turn, case, self._readers.submit(self._read, turn, case)))
            turn, case, reading = ahead.popleft()
            behind.append(self._computed(turn, case, reading))
            while len(behind) > self._most_behind or (behind and behind[0].done()):
                yield behind.popleft().result()
        while behind:
            yield behind.popleft().result()

    def close(self) -> None:
        """Ends the threads; waits for files that are being written."""
        self._ahead.close()
        self._behind.close()
        for pool in (self._readers, self._writers):
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, turn: int, case: InferCase) -> Prepared | CaseReport:
        def room() -> None:
            header = quick_header(case.images)
            if header is not None:
                self._refuse_giant(case, header)
            self._ahead.take(turn, estimated_bytes(case.images, header, self._terms.engine.plan, only=case.files))

        prepared = isolated(case, lambda: read_case(self._terms, case, room=room))
        if isinstance(prepared, CaseReport):
            self._ahead.leave(turn)
        else:
            self._ahead.correct(turn, _size_bytes(prepared.array))
        return prepared

    def _refuse_giant(self, case: InferCase, header: Header) -> None:
        """Refuses what this machine could not hold if nothing else were there, before it is opened."""
        needed, total = self._terms.engine.peak_bytes(header.shape, header.affine).host_bytes, total_memory_bytes()
        if needed > total:
            shape = "x".join(map(str, header.shape))
            raise ScanError(
                f"{case.id}: a scan of {shape} voxels takes {needed / 1e9:.1f} GB, expected at most {total / 1e9:.1f} GB, "
                "all that there is; use a larger one, or crop the scan"
            )

    def _computed(self, turn: int, case: InferCase, reading: Future[Prepared | CaseReport]) -> Future[CaseReport]:
        """Computes in this thread and leaves the rest to a writer; a case that is through already only keeps its turn."""
        prepared = reading.result()
        if isinstance(prepared, CaseReport):
            return _settled(prepared)
        engine = self._terms.engine
        predicted = isolated(case, lambda: _predicted_bytes(engine, prepared, self._behind.limit_bytes))
        if isinstance(predicted, CaseReport):
            self._ahead.leave(turn)
            return _settled(predicted)
        self._behind.take(turn, predicted)
        self._peak.begin(turn)
        began = time.monotonic()
        _reset_device_peak()
        scores = isolated(case, lambda: class_scores(engine, prepared.array), stops=(DeviceLost,))
        # Judging the mask looks at the scan again; in half precision that is less than the windows took.
        rest = replace(prepared, array=seen_image(prepared.array) if engine.section.quality else None)
        seconds = {"read": prepared.seconds, "compute": time.monotonic() - began}
        self._ahead.leave(turn)
        if isinstance(scores, CaseReport):
            self._left(turn)
            return _settled(scores)
        effort, device_bytes = engine.effort(), _device_peak_bytes()
        # As lists that are emptied: neither this frame nor the future may keep scores alive until the next case's are there.
        return self._writers.submit(
            self._write, turn, case, rest, [scores], seconds, {**effort, "device_bytes": device_bytes}
        )

    def _write(
        self,
        turn: int,
        case: InferCase,
        prepared: Prepared,
        scores: list[Any],
        seconds: dict[str, float],
        effort: dict[str, Any],
    ) -> CaseReport:
        device_bytes = effort.pop("device_bytes")
        peaks = {"device": device_bytes} if device_bytes else {}
        try:
            report = isolated(
                case,
                lambda: write_case(self._terms, case, prepared, scores.pop(), seconds, effort=effort),
                stops=(EnvironmentFault,),
            )
        finally:
            scores.clear()
            peak = self._left(turn)
        return replace(report, peak_memory_bytes={"host": peak} | peaks)

    def _left(self, turn: int) -> int:
        self._behind.leave(turn)
        return self._peak.end(turn)


def _threads() -> int:
    return max(1, min(_MOST_THREADS, available_cores() // _CORES_PER_THREAD))


def _predicted_bytes(engine: MaskMaker, prepared: Prepared, limit_bytes: int) -> int:
    grid = prepared.grid[0] if isinstance(prepared.grid, tuple) else prepared.grid
    predicted = engine.peak_bytes(grid.original_shape, prepared.affine)
    # What would not fit beside its neighbours is computed when they are through.
    return limit_bytes + 1 if predicted.refused else predicted.host_bytes


def _size_bytes(array: Any) -> int:
    if isinstance(array, tuple):
        return sum(map(_size_bytes, array))
    return int(getattr(array, "nbytes", 0))


def _device_peak_bytes() -> int:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0
    return max(int(torch.cuda.max_memory_allocated(device)) for device in range(torch.cuda.device_count()))


def _reset_device_peak() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def _settled(report: CaseReport) -> Future[CaseReport]:
    future: Future[CaseReport] = Future()
    future.set_result(report)
    return future
