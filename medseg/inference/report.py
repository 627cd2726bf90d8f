"""``report.jsonl`` and ``report.csv``: one line per case of an output folder, whatever happened to it."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO, TypeVar

from medseg.durable import FolderLock, write_text
from medseg.errors import LockedError
from medseg.inference.review import write_review
from medseg.inference.shards import Shard

if TYPE_CHECKING:
    from medseg.inference.quality import CaseQuality

REPORT_NAME = "report.jsonl"
TABLE_NAME = "report.csv"
_JOURNALS = "report-*-of-*.jsonl"
_MERGE_SECONDS = 120.0
# What a table of patients' cases must not hand to a spreadsheet as a formula.
_FORMULA = ("=", "+", "-", "@")

T = TypeVar("T")
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
        seconds: per phase: read, compute, write; phases of several cases overlap.
        peak_memory_bytes: "host": the most resident memory of the process while the case was in work, its neighbours in the
            pipeline included; "device": of the accelerator, where there is one.
        voxels: per class but background, how many.
        volume_ml: the same in millilitres; empty for pictures, which have no depth.
        touches_border: per class but background, whether it reaches a face of the scan and may go on beyond it.
        warnings: the reader's sentences about the scan.
        contract: how the scan compares with the training scans: "ok", "warn" or "refuse"; None where it was not compared.
        contract_reasons: in which ways it differs, one sentence each.
        quality: expected Dice, its bound and uncertainty per class; None where there is no mask.
        flags: what is odd about the mask, one sentence each.
        effort: of the engine: windows, windows skipped as background, where scores were gathered.
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
    peak_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    contract: str | None = None
    contract_reasons: tuple[str, ...] = ()
    quality: CaseQuality | None = None
    flags: tuple[str, ...] = ()
    effort: Mapping[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether the case has its mask."""
        return self.status in ("ok", "kept")

    def row(self) -> dict[str, Any]:
        """One flat row of a table: what happened, and per class the volume and whether the scan cuts it off."""
        return flat_row(asdict(self))


def flat_row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the report as one row of a table; what a case lacks has no column."""
    row: dict[str, Any] = {"case": line["id"], "status": line["status"], "reason": line.get("reason") or ""}
    row |= {"output": line["output"]} if line.get("output") else {}
    row |= {f"{phase}_seconds": value for phase, value in line.get("seconds", {}).items()}
    row |= {f"{where}_peak_mb": round(size / 1e6, 1) for where, size in line.get("peak_memory_bytes", {}).items()}
    for name, ending in (("voxels", "voxels"), ("volume_ml", "ml"), ("touches_border", "touches_border")):
        row |= {f"{label}_{ending}": value for label, value in line.get(name, {}).items()}
    for name, values in (line.get("quality") or {}).items():
        if name in ("expected_dice", "dice_bound", "uncertainty", "disagreement"):
            row |= {f"{label}_{name}": value for label, value in values.items() if value is not None}
    if line.get("contract"):
        row["contract"] = line["contract"]
    sentences = {name: "; ".join(line.get(name) or ()) for name in ("flags", "contract_reasons", "warnings")}
    return row | {name: text for name, text in sentences.items() if text}


def exit_code(reports: Sequence[CaseReport]) -> int:
    """What a command ends with: 0 all cases have their mask, 4 some do; where none does, 3 if all were refused, else 1."""
    good = sum(report.good for report in reports)
    if good == len(reports):
        return 0
    if good > 0:
        return 4
    return 3 if all(report.status == "refused" for report in reports) else 1


def summary(reports: Sequence[CaseReport]) -> str:
    """One sentence: how many cases ended in which way, those there are, and how many are to be looked at."""
    counts = Counter(report.status for report in reports)
    order: tuple[Status, ...] = ("ok", "kept", "refused", "failed")
    words = ", ".join(f"{counts[status]} {status}" for status in order if counts[status])
    flagged = sum(report.good and (bool(report.flags) or report.contract == "warn") for report in reports)
    return f"{words} of {len(reports)} cases" + (f" ({flagged} with flags)" if flagged else "")


class ReportFile:
    """The report of one folder while a run adds to it; a context manager.

    A line is appended as soon as its case is through. A line cut by a kill is dropped at the next start. At the end the file is
    written anew, atomically, with the cases in the run's order, and the table beside it. Lines of cases that this run was not
    asked for stay, after those.

    A shard appends to a journal of its own, ``report-<i>-of-<n>.jsonl``, and merges it into the folder's report at its end,
    one shard at a time. Journals that killed shards left are merged by whoever works on the folder next.

    Args:
        folder: with the masks.
        ids: of all cases of the folder, in their order; of all shards.
        shard: which part of them this run does; None does all.
    """

    def __init__(self, folder: Path, ids: Iterable[str], *, shard: Shard | None = None) -> None:
        self.path = folder / REPORT_NAME
        self._shard = shard
        self._journal = self.path if shard is None else folder / f"report-{shard.label}.jsonl"
        self._order = tuple(ids)
        self._lines: dict[str, dict[str, Any]] = {}
        self._new: dict[str, dict[str, Any]] = {}
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        self._merge()
        # A shard's journal begins empty: what a killed run had left in it is merged by now.
        self._stream = self._journal.open("a", encoding="utf-8")
        return self

    def add(self, report: CaseReport) -> None:
        """Adds a case's line. A kept case keeps the line it has, with the seconds of the run that made its mask.

        Only what is expected of it may be new: the model was calibrated since.
        """
        line = asdict(report)
        if report.status == "kept":
            line["status"] = "ok"
            known = self._lines.get(report.id, {})
            if known.get("status") == "ok" and known.get("sha256") == report.sha256:
                judged = {name: json.loads(json.dumps(line[name])) for name in ("quality", "flags")}
                if all(known.get(name) == value for name, value in judged.items()):
                    return
                line = known | judged
        self._lines[report.id] = self._new[report.id] = line
        if self._stream is not None:
            self._stream.write(_as_line(line))
            self._stream.flush()

    def _merge(self) -> None:
        """Report and journals that no run writes any more, joined into report and table."""
        if self._shard is None:
            self._write_all(sorted(self.path.parent.glob(_JOURNALS)))
        else:
            _in_turn(self.path.parent, lambda: self._write_all(self._left_over()))

    def _left_over(self) -> list[Path]:
        """This shard's journal, and those of splits into another number, which are over: the folder's locks see to it."""
        assert self._shard is not None
        ending = f"-of-{self._shard.count}.jsonl"
        journals = sorted(self.path.parent.glob(_JOURNALS))
        return [path for path in journals if path == self._journal or not path.name.endswith(ending)]

    def _write_all(self, journals: Sequence[Path]) -> None:
        lines = _read_lines(self.path)
        for journal in journals:
            lines |= _read_lines(journal)
        self._lines = lines | self._new
        asked = [self._lines[case_id] for case_id in self._order if case_id in self._lines]
        order = set(self._order)
        every = [*asked, *(line for case_id, line in self._lines.items() if case_id not in order)]
        write_text(self.path, "".join(_as_line(line) for line in every))
        write_text(self.path.with_name(TABLE_NAME), _as_table(every))
        write_review(self.path.parent, every)
        for journal in journals:
            journal.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._merge()


def _in_turn(folder: Path, work: Callable[[], T]) -> T:
    """``work`` while no other shard merges its report into this folder."""
    deadline = time.monotonic() + _MERGE_SECONDS
    while True:
        try:
            with FolderLock(folder, name=".merge-lock", beating=True):
                return work()
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _as_line(line: Mapping[str, Any]) -> str:
    return _writable(json.dumps(line, ensure_ascii=False, allow_nan=False)) + "\n"


def _writable(text: str) -> str:
    """``text`` with what UTF-8 can't hold, bytes of odd file names, as escapes; those of JSON are the same."""
    return text.encode("utf-8", "backslashreplace").decode()


def _as_table(lines: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a column for whatever any case has, in the order of their first appearance."""
    rows = [flat_row(line) for line in lines]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["case", "status", "reason"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({name: _as_cell(name) for name in columns})  # labels of a foreign model are among them
    writer.writerows({name: _as_cell(value) for name, value in row.items()} for row in rows)
    return _writable(text.getvalue())


def _as_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


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
