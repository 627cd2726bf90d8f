"""``report.jsonl``: one line per case of an output folder, whatever happened to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from medseg.durable import write_text

REPORT_NAME = "report.jsonl"

Status = Literal["ok", "kept", "refused", "failed"]


@dataclass(frozen=True, kw_only=True)
class CaseReport:
    """What became of one case.

    Attributes:
        id: the case.
        status: "ok" (mask written now), "kept" (it was there, made of the same), "refused" (its input can't be used) or
            "failed" (our fault, or the machine's).
        reason: one sentence where there is no mask, else None.
        output: the mask's file name, None where there is none.
        sha256: of the mask file.
        seconds: per phase: read, compute, write.
        voxels: per class but background, how many.
        volume_ml: the same in millilitres; empty for pictures, which have no depth.
        touches_border: per class but background, whether it reaches a face of the scan and may go on beyond it.
        warnings: the reader's sentences about the scan.
    """

    id: str
    status: Status
    reason: str | None = None
    output: str | None = None
    sha256: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    voxels: Mapping[str, int] = field(default_factory=dict)
    volume_ml: Mapping[str, float] = field(default_factory=dict)
    touches_border: Mapping[str, bool] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the case has its mask."""
        return self.status in ("ok", "kept")

    def row(self) -> dict[str, Any]:
        """One flat row of a table: what happened, and per class the volume and whether the scan cuts it off."""
        row: dict[str, Any] = {"case": self.id, "status": self.status, "reason": self.reason or ""}
        row |= {f"{phase}_seconds": value for phase, value in self.seconds.items()}
        row |= {f"{name}_voxels": count for name, count in self.voxels.items()}
        row |= {f"{name}_ml": volume for name, volume in self.volume_ml.items()}
        return row | {f"{name}_touches_border": touches for name, touches in self.touches_border.items()}


def exit_code(reports: Sequence[CaseReport]) -> int:
    """What a command ends with: 0 all cases have their mask, 4 some do; where none does, 3 if all were refused, else 1."""
    good = sum(report.good for report in reports)
    if good == len(reports):
        return 0
    if good > 0:
        return 4
    return 3 if all(report.status == "refused" for report in reports) else 1


def summary(reports: Sequence[CaseReport]) -> str:
    """One sentence: how many cases ended in which way, those there are."""
    counts = Counter(report.status for report in reports)
    order: tuple[Status, ...] = ("ok", "kept", "refused", "failed")
    words = ", ".join(f"{counts[status]} {status}" for status in order if counts[status])
    return f"{words} of {len(reports)} cases"


class ReportFile:
    """The report of one folder while a run adds to it; a context manager.

    A line is appended as soon as its case is through. A line cut by a kill is dropped at the next start, and at the end
    the file is written anew, atomically, with the cases in the run's order. Lines of cases that this run was not asked
    for stay, after those.
    """

    def __init__(self, folder: Path, ids: Iterable[str]) -> None:
        self.path = folder / REPORT_NAME
        self._order = tuple(ids)
        self._lines: dict[str, dict[str, Any]] = {}
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        self._lines = _read_lines(self.path)
        self._write_all()
        self._stream = self.path.open("a", encoding="utf-8")
        return self

    def add(self, report: CaseReport) -> None:
        """Adds a case's line. A kept case keeps the line it has, with the seconds of the run that made its mask."""
        line = asdict(report)
        if report.status == "kept":
            line["status"] = "ok"
            known = self._lines.get(report.id, {})
            if known.get("status") == "ok" and known.get("sha256") == report.sha256:
                return
        self._lines[report.id] = line
        if self._stream is not None:
            self._stream.write(_as_line(line))
            self._stream.flush()

    def _write_all(self) -> None:
        asked = [self._lines[case_id] for case_id in self._order if case_id in self._lines]
        others = [line for case_id, line in self._lines.items() if case_id not in set(self._order)]
        write_text(self.path, "".join(_as_line(line) for line in (*asked, *others)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._write_all()


def _as_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """The whole lines of an earlier report by case id, the last one of a case winning; empty where there is none."""
    if not path.exists():
        return {}
    lines: dict[str, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            lines[str(line["id"])] = line
        except (ValueError, TypeError, KeyError):
            continue
    return lines
