"""One model and the requests for it: a bounded queue, one scan in the network at a time, the next one read meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from medseg.errors import EnvironmentFault, InputError, MedsegError, ScanError, UsageError
from medseg.imaging import Volume
from medseg.imaging.label_table import label_table
from medseg.inference.ensemble import MaskMaker
from medseg.inference.infer_case import with_rules
from medseg.inference.measures import measure_classes
from medseg.inference.outputs import OutputSpec, write_outputs
from medseg.inference.quality import Judge
from medseg.runner.isolation import Isolated
from medseg.runner.pool import Outcome
from medseg.serving.limits import ServiceLimits
from medseg.serving.refusal import Refused
from medseg.serving.scan import Upload, read_upload
from medseg.serving.spool import Spool

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
ReadScan = tuple[Volume, tuple[Path, ...]]
Reader = Callable[[str, Upload], Outcome[ReadScan]]

_IN_MEMORY = 2
"""Scans: the one in the network and the one read meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A mask, as it goes back.

    Attributes:
        name: of the file, for its suffix.
        content: its bytes.
        volume_ml: per class but background; empty for pictures.
        warnings: the reader's sentences about the scan, and the input contract's.
        flags: of the mask's quality.
        seconds: per phase: read, compute.
    """

    name: str
    content: bytes
    volume_ml: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Job:
    """A scan that waits for its mask or is worked on.

    Attributes:
        task: gives the answer.
        begun: whether its scan is being read or is in the network; it is worked off then, whoever waits for it.
    """

    task: asyncio.Task[Answer] = field(init=False)
    begun: bool = False

    def give_up(self) -> None:
        """Nobody waits for the mask any more: forgets a job that was not begun."""
        if not self.begun:
            self.task.cancel()


class Service:
    """The model and what works for it; an async context manager, used in one event loop.

    Args:
        engine: loaded; used by one thread at a time.
        limits: of everything.
        spool: entered; bodies lie there.
        read: reads an upload and never raises for it; None reads in a process of its own, so that a scan which brings a
            decoder down costs that request alone.
    """

    def __init__(self, engine: MaskMaker, *, limits: ServiceLimits, spool: Spool, read: Reader | None = None) -> None:
        self.engine, self.limits, self.spool = engine, limits, spool
        self._judge = Judge(engine)
        self._isolated: Isolated[Upload, ReadScan] | None = None
        if read is None:
            self._isolated = Isolated(read_upload, timeout_seconds=limits.read_seconds)
            read = self._isolated.__call__
        self._read = read
        # Threads that live as long as the service: the kernel ends a reading process with the thread that started it.
        self._reader = ThreadPoolExecutor(1, "read")
        self._computer = ThreadPoolExecutor(1, "compute")
        self._in_memory = asyncio.Semaphore(_IN_MEMORY)
        self.busy, self.waiting = 0, 0
        self.stopping, self.computing = False, False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping = True
        if self._isolated is not None:
            self._isolated.close()
        for pool in (self._reader, self._computer):
            pool.shutdown(wait=False, cancel_futures=True)

    def enter(self) -> None:
        """Takes one of the places; :meth:`leave` gives it back.

        Raises:
            Refused: 429 all are taken, 503 the service is stopping.
        """
        if self.stopping:
            raise Refused(503, "service: is stopping; try again later", headers={"Retry-After": "30"})
        if self.busy >= self.limits.queue:
            raise Refused(
                429,
                f"service: has {self.busy} requests, the most that it takes at once; try again in a few seconds",
                headers={"Retry-After": "5"},
            )
        self.busy += 1

    def leave(self) -> None:
        """Gives the place back."""
        self.busy -= 1

    def submit(self, body: Path, folder: Path, spec: OutputSpec) -> Job:
        """Queues the scan in ``body``; requests are worked off in the order in which they come here.

        Args:
            body: as it was sent, in ``folder``.
            folder: the request's own, which is removed when the job ends, as the request's place is given back.
            spec: what kind of file goes back.

        Returns:
            A job, whose task ends in an answer, or in a Refused: 422 the scan can't be used, 503 the machine can't now,
            500 a fault of ours.
        """
        job = Job()
        job.task = asyncio.create_task(self._segment(job, body, folder, spec))
        job.task.add_done_callback(lambda task: self._end(task, folder))
        return job

    def _end(self, task: asyncio.Task[Answer], folder: Path) -> None:
        self.spool.remove(folder)
        self.leave()
        if not task.cancelled():
            task.exception()  # looked at, so that one which nobody waits for any more is not complained of

    async def _segment(self, job: Job, body: Path, folder: Path, spec: OutputSpec) -> Answer:
        self.waiting += 1
        try:
            await self._in_memory.acquire()
        finally:
            self.waiting -= 1
        job.begun = True
        try:
            return await self._worked(body, folder, spec)
        finally:
            self._in_memory.release()

    async def _worked(self, body: Path, folder: Path, spec: OutputSpec) -> Answer:
        loop, began = asyncio.get_running_loop(), time.monotonic()
        upload = Upload(
            body=body,
            folder=folder,
            channels=with_rules(self.engine.plan.channels, self.engine.section.series),
            max_unpacked_bytes=self.limits.max_unpacked_bytes,
            max_files=self.limits.max_files,
            max_voxels=self.limits.max_voxels,
        )
        outcome = await loop.run_in_executor(self._reader, self._read, "scan", upload)
        volume, images = _value(outcome)
        read = time.monotonic()
        made = await loop.run_in_executor(self._computer, self._computed, volume, images, folder, spec)
        seconds = {"read": read - began, "compute": time.monotonic() - read}
        return Answer(**{**made, "seconds": seconds})

    def _computed(self, volume: Volume, images: tuple[Path, ...], folder: Path, spec: OutputSpec) -> dict[str, Any]:
        self.computing = True
        try:
            return self._mask(volume, images, folder, spec)
        except (InputError, UsageError) as error:
            raise Refused(422, _one_line(error)) from error
        except (EnvironmentFault, MemoryError) as error:
            _LOG.exception("a scan could not be computed")
            raise Refused(
                503, "service: lacks memory or disk for this scan; try again later, or crop the scan"
            ) from error
        except MedsegError as error:
            raise Refused(500, _one_line(error)) from error
        finally:
            self.computing = False

    def _mask(self, volume: Volume, images: tuple[Path, ...], folder: Path, spec: OutputSpec) -> dict[str, Any]:
        engine, header = self.engine, volume.header
        if (fault := spec.fault(images, header)) is not None:
            raise UsageError(fault)
        verdict = self._judge.check(volume)
        if verdict.status == "refuse":
            raise ScanError("; ".join(verdict.reasons))
        self._refuse_too_large(volume)
        array, grid = engine.prepare(volume)
        scores = engine.scores(array)
        classes = engine.classes(scores, grid)
        measures = measure_classes(
            classes,
            class_names=engine.class_names,
            affine=volume.affine,
            planar=header is not None and header.planar,
            regions=engine.plan.regions,
        )
        quality = self._judge.assess(scores, grid, measures, image=array)
        names = spec.names("mask", images, engine.class_names)
        write_outputs(
            engine.label_map(classes, affine=volume.affine, header=header),
            folder,
            names,
            spec=spec,
            header=header,
            label_table=label_table(engine.plan.labels, engine.plan.label_table),
            source=images,
        )
        return {
            "name": names[0],
            "content": (folder / names[0]).read_bytes(),
            "volume_ml": {name: round(volume, 3) for name, volume in measures.volume_ml.items()},
            "warnings": (*(header.warnings if header is not None else ()), *verdict.reasons),
            "flags": tuple(quality.flags),
        }

    def _refuse_too_large(self, volume: Volume) -> None:
        """Before anything is allocated: a small scan can ask for a giant grid, by its voxel size."""
        refused = self.engine.peak_bytes(volume.shape, volume.affine).refused
        if refused is not None:
            raise ScanError(refused)


def _value(outcome: Outcome[ReadScan]) -> ReadScan:
    if outcome.value is not None:
        return outcome.value
    if outcome.kind == "refused" and outcome.exit_code == InputError.exit_code:
        raise Refused(422, _one_line(outcome.error))
    if outcome.kind in ("died", "timeout"):
        raise Refused(422, "scan: could not be read (its reader crashed or took too long); check the file")
    _LOG.error("a scan could not be read: %s", outcome.error)
    raise Refused(503, "service: could not read the scan; try again later", headers={"Retry-After": "30"})


def _one_line(error: object) -> str:
    return "; ".join(str(error).splitlines())
