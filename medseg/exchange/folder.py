"""The folder of an export: made under another name and renamed when it is whole, with a record of what is in it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg.durable import read_json, remove_stale_temporaries, sha256_file, write_json
from medseg.durable.writing import temporary_name
from medseg.errors import EnvironmentFault, InputError, UsageError

EXPORT_FORMAT = 1
RECORD = "export.json"
_KIND = "medseg export"
_PACKAGES = ("medseg", "monai", "numpy", "torch")


@dataclass(frozen=True)
class Export:
    """What an export was made of; an equal one need not be made again.

    Attributes:
        what: "bundle", "onnx", "int8" or "container".
        model_sha256: of the model folder's ``model.json``.
        settings: plain values of all else that decides on its content.
    """

    what: str
    model_sha256: str
    settings: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"what": self.what, "model_sha256": self.model_sha256, "settings": dict(self.settings)}


def is_exported(folder: Path, export: Export) -> bool:
    """Whether ``folder`` holds this export, with every file as it was written.

    Raises:
        UsageError: the folder holds something else, which is not overwritten.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = _record(folder)
    if record is None or record.get("kind") != _KIND:
        raise UsageError(f"{folder.name}: is there already and is no export of medseg; name a new folder")
    if record.get("format") != EXPORT_FORMAT:
        raise UsageError(
            f"{folder.name}: has export format {record.get('format')}, this medseg writes {EXPORT_FORMAT}; name a new folder"
        )
    files = record.get("files", {})
    same = all(record.get(key) == value for key, value in export.plain().items())
    if same and all((folder / name).is_file() and sha256_file(folder / name) == sha for name, sha in files.items()):
        return True
    reason = "other settings or of another model" if not same else "a file that was changed"
    raise UsageError(f"{folder.name}: holds an export with {reason}; remove it, or name a new folder")


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_json(folder / RECORD)
    except InputError:
        return None
    return record if isinstance(record, dict) else None


@contextlib.contextmanager
def new_export(folder: Path, export: Export) -> Iterator[Path]:
    """Yields a folder to write into; when the block ends well it becomes ``folder``, with ``export.json`` in it.

    When the block raises, nothing is left; what a killed process left is removed by the next one.

    Args:
        folder: missing or empty.
        export: goes into the record, with the SHA-256 of every file.

    Raises:
        EnvironmentFault: the folder can't be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(folder.parent)
        temporary = temporary_name(folder)
        temporary.mkdir()
        try:
            yield temporary
            files = {path.relative_to(temporary).as_posix(): sha256_file(path) for path in _files(temporary)}
            versions = {name: version(name) for name in _PACKAGES}
            record = {"format": EXPORT_FORMAT, "kind": _KIND, **export.plain(), "versions": versions, "files": files}
            write_json(temporary / RECORD, record)
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder.name}: can't be written ({error.strerror}); check its parent folder"
        ) from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
