"""One case from its files to its mask and report, in three phases that a run may overlap: read, compute, write.

`infer_case` does them one after the other, which is all that a worker of a cluster needs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from medseg.durable import remove_stale_temporaries
from medseg.errors import EnvironmentFault, MedsegError, ScanError
from medseg.imaging import Header
from medseg.imaging.label_table import LabelTable
from medseg.imaging.opening import printable
from medseg.imaging.volume import Affine
from medseg.inference.cases import InferCase
from medseg.inference.contract import Verdict
from medseg.inference.decoding import LoadScan, ReaderFault
from medseg.inference.ensemble import MaskMaker
from medseg.inference.inputs import InputFiles
from medseg.inference.measures import Measures, measure_classes
from medseg.inference.outputs import OutputSpec, are_whole, write_outputs
from medseg.inference.quality import CaseQuality, Judge, map_names, write_maps
from medseg.inference.report import CaseReport
from medseg.runner.sidecar import Origin, Sidecar, is_done, read_sidecar, write_sidecar

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all cases of a run share.

    Attributes:
        engine: the models and how they are applied.
        judge: of scans and masks.
        output: folder of the masks.
        load: reads a case's files.
        spec: which files a mask is written into.
        label_table: names and colours of the structures.
        overwrite: make every mask anew, whatever is there.
        settings: all that a mask depends on beside its scan.
    """

    engine: MaskMaker
    judge: Judge
    output: Path
    load: LoadScan
    spec: OutputSpec
    label_table: LabelTable
    overwrite: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)

    def names(self, case: InferCase) -> tuple[str, ...]:
        """The mask's files below ``output``; the first one's sidecar answers for all."""
        return self.spec.names(case.id, case.images, self.engine.class_names)

    def maps(self, case: InferCase) -> tuple[str, ...]:
        """Names of the probability and uncertainty maps that are asked for."""
        section = self.engine.section
        return map_names(case.id, probabilities=section.probabilities, uncertainty=section.uncertainty)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A scan ready for the network, and what its mask needs to know of it; the voxels as read are let go.

    Attributes:
        array, grid: what the engine's ``prepare`` gave.
        affine, header: of the scan.
        origin: what the mask will have been made of.
        verdict: of the input contract.
        seconds: reading and preparing took.
    """

    array: Any
    grid: Any
    affine: Affine
    header: Header | None
    origin: Origin
    verdict: Verdict
    seconds: float


def infer_case(terms: Terms, case: InferCase) -> CaseReport:
    """One case, phase after phase, in this thread; the report says what became of it.

    Raises:
        EnvironmentFault: the output can't be written, or the device is lost.
    """
    prepared = isolated(case, lambda: read_case(terms, case))
    if isinstance(prepared, CaseReport):
        return prepared
    began = time.monotonic()
    scores = isolated(case, lambda: class_scores(terms.engine, prepared.array), stops=(DeviceLost,))
    if isinstance(scores, CaseReport):
        return scores
    seconds = {"read": prepared.seconds, "compute": time.monotonic() - began}
    effort = terms.engine.effort()
    return isolated(
        case, lambda: write_case(terms, case, prepared, scores, seconds, effort=effort), stops=(EnvironmentFault,)
    )


class DeviceLost(EnvironmentFault):
    """The accelerator answers no more; every further case would fail alike."""


def class_scores(engine: MaskMaker, array: Any) -> Any:
    """The engine's class scores.

    Raises:
        DeviceLost: a fault of the accelerator, after which no call of this process to it succeeds.
    """
    try:
        return engine.scores(array)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not str(error).startswith("CUDA error"):
            raise
        reason = str(error).splitlines()[0].removeprefix("CUDA error: ")
        raise DeviceLost(
            f"device: stopped working ({reason}), expected answers; run the same command again, which keeps what is done"
        ) from error


def isolated(case: InferCase, work: Callable[[], T], *, stops: tuple[type[MedsegError], ...] = ()) -> T | CaseReport:
    """What ``work`` gives, or the report of a case that went wrong in it; faults of the kinds ``stops`` are raised."""
    try:
        return work()
    except MedsegError as error:
        if isinstance(error, stops):
            raise
        return CaseReport(id=case.id, status="refused", reason=printable("; ".join(str(error).splitlines())))
    except ReaderFault as error:
        return CaseReport(id=case.id, status="failed", reason=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this case's, and the next ones must go on
        _LOG.debug("%s: failed", case.id, exc_info=True)
        reason = f"{case.id}: ended in {type(error).__name__}; run with --verbose for the traceback"
        return CaseReport(id=case.id, status="failed", reason=reason)


def read_case(terms: Terms, case: InferCase, *, room: Callable[[], None] | None = None) -> Prepared | CaseReport:
    """Reads, checks and prepares a scan; a case that is done already gives its report, and its scan is hashed only.

    Args:
        terms: of the run.
        case: to read.
        room: called before the scan is opened; waits until there is memory for it.

    Raises:
        MedsegError: the scan can't be used.
        ReaderFault: its decoder crashed or took too long.
    """
    began = time.monotonic()
    if case.fault is not None:
        raise ScanError(case.fault)
    files = InputFiles(case.images, case.files)
    origin = Origin(inputs=files.sha256s(), settings=terms.settings)
    if not terms.overwrite and (sidecar := whole_output(terms, case, origin)) is not None:
        try:
            return _kept(terms, case, sidecar)
        except (AttributeError, KeyError, TypeError, ValueError):
            _LOG.info("%s: its sidecar's numbers can't be read; its mask is made again", case.id)
    waiting = time.monotonic()
    if room is not None:
        room()
    began += time.monotonic() - waiting  # a queue's time is no reading
    volume = terms.load(case.id, case.images, case.channels(terms.engine.plan.channels, terms.engine.section.series))
    files.check_unchanged()
    if (fault := terms.spec.fault(case.images, volume.header)) is not None:
        raise ScanError(fault)
    verdict = terms.judge.check(volume)
    if verdict.status == "refuse":
        return CaseReport(
            id=case.id,
            status="refused",
            reason="; ".join(verdict.reasons),
            contract=verdict.status,
            contract_reasons=verdict.reasons,
        )
    array, grid = terms.engine.prepare(volume)
    return Prepared(
        array=array,
        grid=grid,
        affine=volume.affine,
        header=volume.header,
        origin=origin,
        verdict=verdict,
        seconds=time.monotonic() - began,
    )


def whole_output(terms: Terms, case: InferCase, origin: Origin) -> Sidecar | None:
    """The sidecar of a case's mask if all its files are there, whole, and made of ``origin``; else None."""
    main = terms.output / terms.names(case)[0]
    if not is_done(main, origin):
        return None
    sidecar = read_sidecar(main)
    files = {} if sidecar is None else dict(sidecar.extra.get("files", {}))
    if not set(terms.maps(case)) <= files.keys() or not are_whole(terms.output, files):
        return None
    return sidecar


def _kept(terms: Terms, case: InferCase, sidecar: Sidecar) -> CaseReport:
    extra = dict(sidecar.extra)
    measures = Measures(**{name: extra.get(name, {}) for name in ("voxels", "volume_ml", "touches_border")})
    quality = terms.judge.again(extra.get("quality", {}), measures)
    contract = extra.get("contract", {})
    return CaseReport(
        id=case.id,
        status="kept",
        output=terms.names(case)[0],
        sha256=sidecar.output_sha256,
        warnings=tuple(extra.get("warnings", ())),
        contract=contract.get("status"),
        contract_reasons=tuple(contract.get("reasons", ())),
        quality=quality.reported(),
        flags=quality.flags,
        **asdict(measures),
    )


def write_case(
    terms: Terms,
    case: InferCase,
    prepared: Prepared,
    scores: Any,
    seconds: Mapping[str, float],
    *,
    effort: Mapping[str, Any],
) -> CaseReport:
    """From class scores to the files and the sidecar, which comes last and makes the case done.

    Args:
        terms: of the run.
        case: whose scan it is.
        prepared: of its scan.
        scores: what the engine's ``scores`` gave.
        seconds: of the phases before.
        effort: of the engine, for the report.

    Raises:
        EnvironmentFault: the output can't be written.
        MedsegError: the format can't hold this mask.
    """
    began, header, engine = time.monotonic(), prepared.header, terms.engine
    classes = engine.classes(scores, prepared.grid)
    planar = header is not None and header.planar
    measures = measure_classes(
        classes, class_names=engine.class_names, affine=prepared.affine, planar=planar, regions=engine.plan.regions
    )
    quality = terms.judge.assess(scores, prepared.grid, measures, image=prepared.array)
    label_map = engine.label_map(classes, affine=prepared.affine, header=header)
    names = terms.names(case)
    path = terms.output / names[0]
    if path.parent != terms.output:
        remove_stale_temporaries(path.parent)
    calibration = terms.judge.calibration
    maps = terms.maps(case)
    files = dict(write_maps(engine, scores, prepared.grid, maps, folder=terms.output, calibration=calibration))
    files |= write_outputs(
        label_map,
        terms.output,
        names,
        spec=terms.spec,
        header=header,
        label_table=terms.label_table,
        source=case.images,
    )
    extra = _extra(terms, prepared, measures, quality, files)
    sidecar = write_sidecar(path, prepared.origin, versions=engine.versions(), extra=extra)
    seconds = {**seconds, "write": time.monotonic() - began}
    return CaseReport(
        id=case.id,
        status="ok",
        output=names[0],
        sha256=sidecar.output_sha256,
        seconds={phase: round(value, 3) for phase, value in seconds.items()},
        warnings=tuple(extra["warnings"]),
        contract=prepared.verdict.status,
        contract_reasons=prepared.verdict.reasons,
        quality=quality.reported(),
        flags=quality.flags,
        effort=dict(effort),
        **asdict(measures),
    )


def _extra(
    terms: Terms, prepared: Prepared, measures: Measures, quality: CaseQuality, files: Mapping[str, str]
) -> dict[str, Any]:
    """Only what follows from the scan and the model: a mask made again has the same sidecar, byte for byte."""
    header, verdict = prepared.header, prepared.verdict
    extra: dict[str, Any] = {**asdict(measures), "warnings": list(header.warnings if header is not None else ())}
    if verdict.status != "ok":
        extra["contract"] = {"status": verdict.status, "reasons": list(verdict.reasons)}
    if plain := terms.judge.plain(quality):
        extra["quality"] = plain
    if files:
        extra["files"] = dict(files)
    return extra
