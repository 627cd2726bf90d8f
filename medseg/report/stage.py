"""Making the report of a folder of scores, once for the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from medseg.durable import FolderLock, read_json, sha256_bytes, sha256_file, sha256_json, write_json, write_text
from medseg.errors import InputError
from medseg.evaluation.case import file_stamp
from medseg.evaluation.matching import CasePaths
from medseg.report.content import ReportInputs, gather
from medseg.report.judged import REPORT_NAME, map_path
from medseg.report.markdown import markdown
from medseg.report.page import page
from medseg.report.unsure import FILE_NAME

HTML_NAME, MARKDOWN_NAME = "report.html", "report.md"
_RECORD_NAME = "report.json"
_RECORD_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """The report of a folder of scores.

    Attributes:
        html, markdown: its two files.
        made: False where they were there already, made of the same.
    """

    html: Path
    markdown: Path
    made: bool


def make_report(inputs: ReportInputs, *, again: bool = False) -> ReportFiles:
    """Writes ``report.html`` and ``report.md`` beside the scores, each atomically.

    Equal inputs give equal bytes. ``report.json`` beside them keeps a key over all inputs; while it holds and the files are
    whole, nothing is read but checksums.

    Args:
        inputs: what it is made of.
        again: make it even if it is there.

    Raises:
        InputError: the scores can't be read.
        LockedError: another process writes the folder.
        EnvironmentFault: the folder can't be written.
    """
    folder = inputs.scores
    html, text, record = folder / HTML_NAME, folder / MARKDOWN_NAME, folder / _RECORD_NAME
    with FolderLock(folder):
        inputs_key = _key(inputs)
        if not again and _is_whole(record, inputs_key, (html, text)):
            return ReportFiles(html=html, markdown=text, made=False)
        content = gather(inputs)
        write_text(html, page(content))
        write_text(text, markdown(content))
        hashes = {path.name: sha256_file(path) for path in (html, text)}
        write_json(record, {"format": _RECORD_FORMAT, "key": inputs_key, "files": hashes})
    return ReportFiles(html=html, markdown=text, made=True)


def _is_whole(record: Path, inputs_key: str, paths: tuple[Path, ...]) -> bool:
    try:
        known = read_json(record)
        return known.get("key") == inputs_key and all(
            path.is_file() and known["files"].get(path.name) == sha256_file(path) for path in paths
        )
    except (InputError, AttributeError, KeyError, TypeError):
        return False


def _key(inputs: ReportInputs) -> str:
    """Over everything the report is made of: small files by their content, scans and maps by size and time of change."""
    small = [inputs.scores / "metrics.json", inputs.scores / "cases.csv", inputs.scores / FILE_NAME]
    small += [folder / "model.json" for folder in inputs.models] + ([inputs.plan] if inputs.plan else [])
    small += [folder / "plan.yaml" for folder in inputs.models]
    pairs = inputs.cases.pairs if inputs.cases is not None else ()
    folders = sorted({pair.prediction.parent for pair in pairs if pair.prediction is not None})
    small += [folder / REPORT_NAME for folder in folders]
    scans = inputs.cases.scans if inputs.cases is not None and inputs.show_scans else {}
    return sha256_json({
        "code": _code_sha256(),
        "versions": {name: version(name) for name in ("matplotlib", "pillow", "numpy")},
        "small": [sha256_file(path) if path.is_file() else "" for path in small],
        "pairs": [_stamps(pair) for pair in pairs],
        "scans": {case: _stamp(path) for case, path in sorted(scans.items())},
        "settings": [inputs.show_scans, inputs.why_no_scans, inputs.hounsfield, inputs.cases is None],
    })  # fmt: skip


def _stamps(pair: CasePaths) -> list[object]:
    paths = [pair.prediction, pair.reference]
    if pair.prediction is not None:
        paths += [
            map_path(pair.prediction, pair.case_id, kind) for kind in ("entropy", "disagreement", "probabilities")
        ]
    return [pair.case_id, *(_stamp(path) for path in paths)]


def _stamp(path: Path | None) -> list[int]:
    return list(file_stamp(path)) if path is not None and path.is_file() else []


@cache
def _code_sha256() -> str:
    folder = files("medseg.report")
    return sha256_json({
        one.name: sha256_bytes(one.read_bytes())
        for one in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if one.name.endswith((".py", ".css", ".js"))
    })  # fmt: skip
