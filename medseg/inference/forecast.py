"""What a run would do, how long and in how much memory, before anything is written: ``medseg infer --dry-run``."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import MedsegError
from medseg.imaging import Volume, read_header
from medseg.inference.cases import InferCase
from medseg.inference.decoding import CaseReader, ReaderFault
from medseg.inference.ensemble import MaskMaker
from medseg.inference.pipeline import DEFAULT, RunOptions
from medseg.runner.peak import resident_bytes
from medseg.runner.progress import plain_duration
from medseg.runner.resources import available_memory_bytes
from medseg.runner.sidecar import read_sidecar

_LOG = logging.getLogger(__name__)

_LOOKED_AT = 200
_SHOWN = 5
_NOISE_MEAN, _NOISE_SD = 100.0, 50.0


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a case's header tells.

    Attributes:
        case: the case.
        shape: of its scan.
        windows: forward passes.
        host_bytes, device_bytes: at most.
        refused: why it would be refused, or None.
    """

    case: InferCase
    shape: tuple[int, ...] = ()
    windows: int = 0
    host_bytes: int = 0
    device_bytes: int = 0
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run would do.

    Attributes:
        cases: in all, of this shard.
        done: have a mask made of these models and settings, by their sidecars; their scans are not hashed for it.
        faulty: sentences about cases that can't be read, of those looked at.
        to_do: the rest.
        scans: those of them whose headers were looked at, at most 200, evenly spaced.
        seconds: in all, None where nothing could be measured.
        resident_bytes: of this process with its models.
        free_bytes: of the machine.
    """

    cases: int
    done: int
    to_do: int
    faulty: tuple[str, ...]
    scans: tuple[Scan, ...]
    seconds: float | None
    resident_bytes: int
    free_bytes: int

    def text(self) -> str:
        """As lines for people."""
        lines = [f"{self.cases} cases: {self.to_do} to do, {self.done} have their mask by their sidecars"]
        sizes = [scan for scan in self.scans if scan.refused is None]
        if len(self.scans) < self.to_do:
            lines.append(f"looked at the headers of {len(self.scans)} of them, evenly spaced")
        if sizes:
            largest = max(sizes, key=lambda scan: scan.host_bytes)
            shape, need = "x".join(map(str, largest.shape)), largest.host_bytes + self.resident_bytes
            lines.append(
                f"memory: at most {_gb(need)} on the host with the largest scan ({largest.case.id}, {shape}), "
                f"{_gb(self.free_bytes + self.resident_bytes)} to be had"
            )
            if device := max(scan.device_bytes for scan in sizes):
                lines.append(f"memory: at most {_gb(device)} on the device")
            lines.append(f"windows: {statistics.median(scan.windows for scan in sizes):.0f} in the middle scan")
        if self.seconds is not None:
            lines.append(f"time: about {plain_duration(self.seconds)}")
        lines += [f"refused: {sentence}" for sentence in self.faulty[:_SHOWN]]
        if len(self.faulty) > _SHOWN:
            lines.append(f"refused: {len(self.faulty) - _SHOWN} more")
        return "\n".join([*lines, "nothing was written"])


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def forecast(engine: MaskMaker, cases: Sequence[InferCase], *, output: Path, options: RunOptions = DEFAULT) -> Forecast:
    """Looks at sidecars and headers, reads one scan and computes a few windows of noise; writes nothing.

    Args:
        engine: the models and how they are applied.
        cases: of the folder.
        output: folder of the masks; need not exist.
        options: as for the run.
    """
    part = list(cases if options.shard is None else options.shard.part(cases))
    faulty = [case.fault for case in part if case.fault is not None]
    settings = engine.settings() | options.spec.settings()
    open_cases = [case for case in part if case.fault is None]
    if not options.overwrite:
        open_cases = [case for case in open_cases if not _has_mask(engine, case, output, settings, options)]
    step = max(1, -(-len(open_cases) // _LOOKED_AT))
    scans = tuple(_looked_at(engine, case) for case in open_cases[::step])
    faulty += [scan.refused for scan in scans if scan.refused is not None]
    good = [scan for scan in scans if scan.refused is None]
    return Forecast(
        cases=len(part),
        done=len(part) - len(open_cases) - sum(case.fault is not None for case in part),
        to_do=len(open_cases),
        faulty=tuple(faulty),
        scans=scans,
        seconds=_seconds(engine, good, len(open_cases), options) if good else None,
        resident_bytes=resident_bytes(),
        free_bytes=options.memory_bytes or available_memory_bytes(),
    )


def _has_mask(engine: MaskMaker, case: InferCase, output: Path, settings: dict[str, str], options: RunOptions) -> bool:
    main = output / options.spec.names(case.id, case.images, engine.class_names)[0]
    sidecar = read_sidecar(main) if main.is_file() else None
    return sidecar is not None and dict(sidecar.origin.settings) == settings


def _looked_at(engine: MaskMaker, case: InferCase) -> Scan:
    channels = case.channels(engine.plan.channels, engine.section.series)
    try:
        header = read_header(case.images[0], series=channels[0].series)
        predicted = engine.peak_bytes(header.shape, header.affine)
    except MedsegError as error:
        return Scan(case=case, refused=str(error))
    return Scan(
        case=case,
        shape=header.shape,
        windows=predicted.windows,
        host_bytes=predicted.host_bytes,
        device_bytes=predicted.device_bytes,
        refused=predicted.refused,
    )


def _seconds(engine: MaskMaker, scans: Sequence[Scan], cases: int, options: RunOptions) -> float | None:
    """Of all cases: reading as the middle scan was read, a window as one of noise was computed, and the way back likewise."""
    pace = _pace(engine)
    if pace is None:
        return None
    a_window, a_voxel = pace
    share = cases / len(scans)
    voxels = [float(np.prod(scan.shape)) for scan in scans]
    computing = share * a_window * sum(scan.windows for scan in scans)
    writing = share * a_voxel * sum(voxels)
    reading = share * _reading_seconds_a_voxel(engine, scans, options) * sum(voxels)
    # On a CPU all phases share the cores; an accelerator's work hides the others or is hidden by them.
    on_cpu = engine.versions().get("device") == "cpu"
    return computing + reading + writing if on_cpu else max(computing, reading + writing)


def _pace(engine: MaskMaker) -> tuple[float, float] | None:
    """(seconds a window, seconds a voxel back on the scan's grid) on a scan of noise that is one window; None if unknown."""
    plan, rng = engine.plan, np.random.default_rng(0)
    affine = np.diag([*plan.spacing_xyz_mm, 1.0])
    noise = rng.normal(_NOISE_MEAN, _NOISE_SD, (len(plan.channels), *plan.patch_size_xyz)).astype(np.float32)
    volume = Volume(noise, affine)
    windows = engine.peak_bytes(volume.shape, affine).windows
    if windows < 1:
        return None
    try:
        array, grid = engine.prepare(volume)
        engine.scores(array)  # the first one also loads libraries and chooses algorithms
        began = time.monotonic()
        scores = engine.scores(array)
        computed = time.monotonic()
        engine.classes(scores, grid)
        back = time.monotonic()
    except MedsegError as error:
        _LOG.warning("no time is predicted: %s", error)
        return None
    return (computed - began) / windows, (back - computed) / float(np.prod(volume.shape))


def _reading_seconds_a_voxel(engine: MaskMaker, scans: Sequence[Scan], options: RunOptions) -> float:
    middle = sorted(scans, key=lambda scan: float(np.prod(scan.shape)))[len(scans) // 2]
    reader = CaseReader(isolation=options.isolation, timeout_seconds=options.read_seconds)
    began = time.monotonic()
    try:
        volume = reader(
            middle.case.id, middle.case.images, middle.case.channels(engine.plan.channels, engine.section.series)
        )
        engine.prepare(volume)
    except (MedsegError, ReaderFault):
        return 0.0
    finally:
        reader.close()
    return (time.monotonic() - began) / float(np.prod(middle.shape))
