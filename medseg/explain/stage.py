"""Many scans: each one's maps written with a sidecar, done ones kept, what can't be done named."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.durable import FolderLock, remove_stale_temporaries, sha256_file, sha256_json, write_text
from medseg.errors import EnvironmentFault, MedsegError, ScanError, UsageError
from medseg.explain.case import ExplainOptions, explain_volume, region_file_of, region_sha256
from medseg.explain.scan_maps import write_map, write_overview
from medseg.imaging import Volume
from medseg.imaging.label_table import structure_file_names
from medseg.inference.cases import InferCase, refuse_same_names
from medseg.inference.decoding import CaseReader, ReaderFault
from medseg.inference.ensemble import MaskMaker
from medseg.inference.inputs import InputFiles
from medseg.inference.outputs import are_whole
from medseg.inference.quality import Judge
from medseg.runner.progress import CaseProgress
from medseg.runner.sidecar import Origin, is_done, read_sidecar, write_sidecar

_LOG = logging.getLogger(__name__)

TABLE_NAME = "explain.csv"
COLUMNS = (
    "case", "class", "method", "status", "output", "region_voxels", "score", "highest", "inside", "shuffled_correlation",
    "layer", "box_mm", "stride_mm", "reason",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExplainReport:
    """What became of a case.

    Attributes:
        id: of the case.
        rows: one per class and method: status "ok", "kept" or "empty" (the region has no voxel), and its numbers.
        reason: why there is none; None where all went well.
    """

    id: str
    rows: tuple[dict[str, Any], ...] = field(default_factory=tuple)
    reason: str | None = None

    @property
    def good(self) -> bool:
        """Whether every map that was asked for is there."""
        return self.reason is None and all(row["status"] != "empty" for row in self.rows)


def explain_folder(
    maker: MaskMaker, cases: Sequence[InferCase], *, output: Path, options: ExplainOptions
) -> list[ExplainReport]:
    """Writes ``<case>_<class>_<method>.nii.gz`` with a sidecar for every case, and ``explain.csv``.

    A map whose sidecar names the same scan, region, models and settings, and which still has the bytes it had, is kept.

    Args:
        maker: the models.
        cases: with names that differ.
        output: made if it is not there.
        options: what is asked for.

    Returns:
        A report per case, in their order.

    Raises:
        LockedError: another process writes there.
        UsageError: the models have no such class.
        EnvironmentFault: the output can't be written.
    """
    refuse_same_names(cases)
    pairs = _pairs(maker, options)
    with FolderLock(output), CaseProgress("explain", len(cases)) as progress:
        remove_stale_temporaries(output)
        reader, judge, reports = CaseReader(isolation="auto", timeout_seconds=900.0), Judge(maker), []
        try:
            for case in cases:
                work = _Work(maker, judge, reader, output, options)
                reports.append(_isolated(case, lambda case=case, work=work: work.report(case, pairs)))  # type: ignore[misc]
                progress.advance()
                if reports[-1].reason is not None:
                    _LOG.warning("%s", reports[-1].reason)
        finally:
            reader.close()
        write_text(output / TABLE_NAME, table(reports))
    return reports


def _pairs(maker: MaskMaker, options: ExplainOptions) -> tuple[tuple[str, str], ...]:
    known = maker.class_names[1:]
    if strangers := [name for name in options.classes if name not in known]:
        raise UsageError(f"--class: is {strangers[0]!r}, expected one of {', '.join(known)}")
    return tuple((name, method) for name in options.classes or known for method in options.methods)


def _isolated(case: InferCase, work: Callable[[], ExplainReport]) -> ExplainReport:
    try:
        return work()
    except (EnvironmentFault, UsageError):
        raise  # every further case would fail alike
    except MedsegError as error:
        return ExplainReport(id=case.id, reason="; ".join(str(error).splitlines()))
    except ReaderFault as error:
        return ExplainReport(id=case.id, reason=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this case's, and the next ones must go on
        _LOG.debug("%s: failed", case.id, exc_info=True)
        return ExplainReport(
            id=case.id, reason=f"{case.id}: ended in {type(error).__name__}; run with --verbose for the traceback"
        )


@dataclass(frozen=True)
class _Work:
    """One case's way from its files to its maps."""

    maker: MaskMaker
    judge: Judge
    reader: CaseReader
    output: Path
    options: ExplainOptions

    def report(self, case: InferCase, pairs: Sequence[tuple[str, str]]) -> ExplainReport:
        if case.fault is not None:
            raise ScanError(case.fault)
        files = InputFiles(case.images, case.files)
        region = region_file_of(self.options.region, case.id)
        origins = dict(self._origins(files.sha256s() | region_sha256(region), pairs))
        kept = {pair: row for pair in pairs if (row := self._kept(case, pair, origins[pair])) is not None}
        waiting = [pair for pair in pairs if pair not in kept]
        made = self._made(case, files, waiting, region, origins) if waiting else {}
        rows = [
            {"case": case.id, "class": name, "method": method, **(kept | made).get((name, method), {"status": "empty"})}
            for name, method in pairs
        ]
        return ExplainReport(id=case.id, rows=tuple(rows))

    def _origins(
        self, inputs: dict[str, str], pairs: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[tuple[str, str], Origin]]:
        for name, method in pairs:
            own = {"explain": sha256_json(self.options.settings(name, method))}
            yield (name, method), Origin(inputs=inputs, settings=self.maker.settings() | own)

    def _path(self, case: InferCase, pair: tuple[str, str]) -> Path:
        known = self.maker.class_names[1:]
        shown = dict(zip(known, structure_file_names(known), strict=True))[pair[0]]
        return self.output / f"{case.id}_{shown}_{pair[1]}.nii.gz"

    def _kept(self, case: InferCase, pair: tuple[str, str], origin: Origin) -> dict[str, Any] | None:
        path = self._path(case, pair)
        if self.options.overwrite or not is_done(path, origin) or (sidecar := read_sidecar(path)) is None:
            return None
        extra = dict(sidecar.extra)
        files = extra.pop("files", {})
        if (self.options.png and not files) or not are_whole(self.output, files):
            return None
        return {"status": "kept", "output": path.name, **extra}

    def _made(
        self,
        case: InferCase,
        files: InputFiles,
        pairs: Sequence[tuple[str, str]],
        region: Path | None,
        origins: dict[tuple[str, str], Origin],
    ) -> dict[tuple[str, str], dict[str, Any]]:
        volume = self._read(case, files)
        found = explain_volume(self.maker, volume, self.options, pairs, region_file=region)
        rows = {}
        for pair, (total, mask) in found.items():
            path, extra = self._path(case, pair), total.row(mask)
            write_map(total.values, volume.affine, path, method=pair[1])
            written = {}
            if self.options.png:
                picture = path.with_name(path.name.removesuffix(".nii.gz") + ".png")
                planar = volume.header is not None and volume.header.planar
                write_overview(volume.array[0], total.values, mask, picture, planar=planar)
                written = {"files": {picture.name: sha256_file(picture)}}
            write_sidecar(path, origins[pair], versions=self.maker.versions(), extra=extra | written)
            rows[pair] = {"status": "ok", "output": path.name, **extra}
        return rows

    def _read(self, case: InferCase, files: InputFiles) -> Volume:
        volume = self.reader(case.id, case.images, case.channels(self.maker.plan.channels, self.maker.section.series))
        files.check_unchanged()
        verdict = self.judge.check(volume)
        if verdict.status == "refuse":
            raise ScanError(f"{case.id}: {'; '.join(verdict.reasons)}")
        return volume


def table(reports: Sequence[ExplainReport]) -> str:
    """The text of ``explain.csv``: a line per case, class and method; a case that failed has one with its reason."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for report in reports:
        for row in report.rows or ({"case": report.id, "status": "failed", "reason": report.reason},):
            writer.writerow({key: "" if value is None else value for key, value in row.items()})
    return stream.getvalue()


def exit_code(reports: Sequence[ExplainReport]) -> int:
    """0 where every map is there, 4 where some are, 3 where none is."""
    if all(report.good for report in reports):
        return 0
    return 4 if any(row["status"] != "empty" for report in reports for row in report.rows) else 3
