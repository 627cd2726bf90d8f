"""The one place that decides what may be logged.

Log lines, stage records and the tracker are shared with people who may not know whose scans these are, and folders are
often named after patients. So absolute paths, the login name, the home folder and the host name never get that far, and
control characters of a file name can't forge a log line or drive a terminal.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import json
import logging
import re
import socket
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARAM_CHARACTERS = 6000
"""MLflow's longest parameter value."""
NAME_CHARACTERS = 250
"""MLflow's longest name of a parameter or metric."""
ARTIFACT_SUFFIXES = frozenset(
    {".csv", ".html", ".json", ".jsonl", ".md", ".onnx", ".safetensors", ".txt", ".yaml", ".yml"}
)
"""Files that may be logged as they are. No scan, mask or picture format is among them."""
_ARTIFACT_NAMES = frozenset({"LICENSE"})

# C0, DEL, C1, direction marks, line and paragraph separators, and lone surrogates (undecodable bytes of a file name).
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_QUOTED_PATH = re.compile(
    r"""(?P<quote>['"`])(?:file://)?(?P<path>(?:/|~/|[A-Za-z]:\\|\\\\)(?:(?!(?P=quote)).)*)(?P=quote)"""
)
# Folder names may hold a few blanks ("/data/Jane van Doe/scan.nii"); a word that is not followed by "/" ends the path.
_PART = r"""[^\s/'"`<>|]+"""
_BARE_PATH = re.compile(rf"(?<![\w.:/<>\\-])(?:file://(?=/)|~(?=/))?/(?:{_PART}(?: {_PART}){{0,3}}/+)*(?:{_PART})?")
_WINDOWS_PATH = re.compile(rf"(?<![\w<>])(?:[A-Za-z]:\\|\\\\)(?:{_PART})")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")
_COMMON_NAMES = frozenset(
    {"admin", "docker", "guest", "host", "home", "linux", "local", "localhost", "main", "nobody", "node", "root", "runner",
     "server", "test", "train", "ubuntu", "user", "work"}
)  # fmt: skip
_HIDDEN = "<path>"


def may_be_logged(path: Path) -> bool:
    """Whether a file may be logged as it is, by its name."""
    return path.suffix in ARTIFACT_SUFFIXES or path.name in _ARTIFACT_NAMES


def escape_control(text: str) -> str:
    r"""``text`` with control, direction and line-separating characters written as ``\xNN`` or ``\uNNNN``."""

    def code(match: re.Match[str]) -> str:
        point = ord(match[0])
        known = {9: r"\t", 10: r"\n", 13: r"\r"}
        return known.get(point) or (f"\\x{point:02x}" if point < 256 else f"\\u{point:04x}")

    return _CONTROL.sub(code, text)


class Scrubber:
    """Removes from text what tells where, by whom or on which machine a command ran.

    Args:
        home: home folder; None for none.
        names: login and host names. Those shorter than 3 characters or in everyday use ("root", "node") are left, since
            taking them out would mangle ordinary sentences and they tell nobody anything.
        shown: folder -> label. A path below such a folder is shown from there on, with the label in front;
            every other absolute path becomes ``<path>``.
    """

    def __init__(self, *, home: Path | None, names: tuple[str, ...], shown: Mapping[Path, str]) -> None:
        self._home = str(home) if home and len(home.parts) > 2 else None
        self._shown: dict[str, str] = {}
        for folder, label in shown.items():
            self.show(folder, label)
        telling = sorted({n for n in names if len(n) > 2 and n.lower() not in _COMMON_NAMES}, key=len, reverse=True)
        joined = "|".join(map(re.escape, telling))
        self._names = re.compile(rf"(?<![A-Za-z0-9])(?:{joined})(?![A-Za-z0-9])", re.IGNORECASE) if telling else None

    def show(self, folder: Path, label: str) -> None:
        """From now on paths below ``folder`` are shown as ``label`` and what follows."""
        for form in {str(folder.absolute()), str(folder.resolve())}:
            self._shown[form] = label
        self._shown = dict(sorted(self._shown.items(), key=lambda item: -len(item[0])))

    def _label(self, path: str) -> str:
        for root, label in self._shown.items():
            if path == root or path.startswith(root + "/"):
                return (label + path[len(root) :]).lstrip("/") if not label else label + path[len(root) :]
        return _HIDDEN

    def _bare(self, match: re.Match[str]) -> str:
        text = match[0].removeprefix("file://")
        core = text.rstrip(".,:;)]}")
        if not any(c.isalpha() for c in core):  # "1 / 2" and "/5" are no paths
            return match[0]
        return self._label(core) + text[len(core) :]

    def line(self, text: str) -> str:
        """One line of text, escaped and freed of paths and names."""
        return self.paths_and_names(escape_control(text))

    def lines(self, text: str) -> str:
        """Text of several lines that keeps its line breaks, such as a traceback."""
        return "\n".join(self.line(line) for line in text.split("\n"))

    def paths_and_names(self, text: str) -> str:
        """``text`` without absolute paths, credentials in addresses, and the names given."""
        if "/" in text or "\\" in text:
            text = _CREDENTIALS.sub("", text)
            text = _QUOTED_PATH.sub(lambda m: m["quote"] + self._label(m["path"]) + m["quote"], text)
            text = _BARE_PATH.sub(self._bare, text)
            text = _WINDOWS_PATH.sub(_HIDDEN, text)
        if self._home and self._home in text:
            text = text.replace(self._home, "<home>")
        return self._names.sub("<name>", text) if self._names else text


def _machine_names() -> tuple[str, ...]:
    names: list[str] = []
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.append(getpass.getuser())
    with contextlib.suppress(OSError):
        host = socket.gethostname()
        names += [host, host.split(".")[0]]
    return tuple(names)


def _code_folders() -> dict[Path, str]:
    package = Path(__file__).resolve().parents[1]
    folders = {package: "medseg", package.parent / "pipelines": "pipelines"}
    folders |= {Path(sysconfig.get_path(kind)): "" for kind in ("purelib", "platlib")}
    return folders | {Path(sysconfig.get_path("stdlib")): "python"}


@functools.cache
def this_machine() -> Scrubber:
    """The scrubber for this process: its home, login and host names; only paths of code are shown."""
    home: Path | None = None
    with contextlib.suppress(RuntimeError, OSError):
        home = Path.home()
    return Scrubber(home=home, names=_machine_names(), shown=_code_folders())


def show_folder(folder: Path, label: str) -> None:
    """Lets paths below ``folder`` be logged as ``label/...``; meant for the work folder, whose names are all ours."""
    this_machine().show(folder, label)


def scrub(text: str) -> str:
    """``text`` as one line that may be logged: control characters escaped, paths and names removed."""
    return this_machine().line(text)


def scrub_lines(text: str) -> str:
    """As :func:`scrub`, for text that keeps its line breaks, such as a description."""
    return this_machine().lines(text)


def safe_value(value: Any) -> Any:
    """A plain value (dict, list, tuple, text, number, bool, None) with every text in it scrubbed, keys included."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {scrub(str(key)): safe_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [safe_value(item) for item in value]
    return value


def safe_name(name: str) -> str:
    """A name that MLflow accepts for a metric, parameter or artifact: letters, digits and ``_ - . / blank``."""
    cleaned = re.sub(r"[^\w\-. /]", "_", scrub(name), flags=re.ASCII)
    cleaned = "/".join(
        part for part in cleaned.split("/") if part.strip(". ")
    )  # neither absolute, nor "..", nor "a//b"
    return cleaned[:NAME_CHARACTERS] or "_"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{name}.")
        else:
            result[name] = value
    return result


def safe_params(config: Mapping[str, Any]) -> dict[str, str]:
    """A nested config as flat text values, ``train.budget.minutes`` -> ``"45"``, scrubbed and cut to MLflow's limits.

    Lists become JSON, None ``null``; an empty mapping gives ``{}``.
    """
    result: dict[str, str] = {}
    for key, value in _flat(config).items():
        text = value if isinstance(value, str) else json.dumps(safe_value(value), ensure_ascii=False, default=str)
        result[safe_name(key)] = scrub(text)[:PARAM_CHARACTERS]
    return result


class PrivacyFilter(logging.Filter):
    """Put on every handler: makes a record fit to be seen, its exception and stack text included."""

    def __init__(self, scrubber: Scrubber | None = None) -> None:
        super().__init__()
        self._scrubber = scrubber

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record in place (once more changes nothing) and lets it pass."""
        scrubber = self._scrubber or this_machine()
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a wrong number of arguments must not stop a stage, nor show them raw
            message = f"{record.msg!r} (its arguments do not fit)"
        record.msg, record.args = scrubber.line(message), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        record.exc_info = None
        if record.exc_text:
            record.exc_text = scrubber.lines(record.exc_text)
        if record.stack_info:
            record.stack_info = scrubber.lines(record.stack_info)
        record.pathname = record.filename
        return True
