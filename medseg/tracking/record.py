"""``stage.json``: what a stage did, with what, from what, in how long.

It holds no host, user or absolute path, so that it can travel with the results.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.durable import read_json, sha256_bytes, sha256_json, write_json
from medseg.errors import InputError
from medseg.tracking.privacy import safe_value

FORMAT = 1
RECORD_NAME = "stage.json"
_PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "medseg", "torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "pillow", "blosc2",
    "safetensors", "pydantic", "mlflow",
)  # fmt: skip


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on, those installed; nothing is imported for it."""
    return dict(_versions())


@functools.cache
def code_commit() -> str | None:
    """The git commit that the code was checked out from, read without git; None outside a checkout of medseg."""
    root = _PACKAGE.parent
    if not (root / "pyproject.toml").is_file():  # an installed copy, perhaps inside somebody's own repository
        return None
    with contextlib.suppress(OSError, ValueError):
        folder = root / ".git"
        if folder.is_file():  # a worktree's pointer
            folder = (root / folder.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (folder / "HEAD").read_text().strip()
        commit = _resolve(folder, head.removeprefix("ref: ")) if head.startswith("ref: ") else head
        return commit if commit and len(commit) >= 40 else None
    return None


def _resolve(folder: Path, reference: str) -> str | None:
    common = folder
    if (folder / "commondir").is_file():
        common = (folder / (folder / "commondir").read_text().strip()).resolve()
    for place in (folder, common):
        if (place / reference).is_file():
            return (place / reference).read_text().strip()
    packed = common / "packed-refs"
    for line in packed.read_text().splitlines() if packed.is_file() else ():
        commit, _, name = line.partition(" ")
        if name == reference:
            return commit
    return None


@functools.cache
def code_sha256() -> str:
    """One hash over the source of package and pipelines, equal in a checkout and an installed copy of the same code."""
    parts: dict[str, str] = {}
    pipelines = _pipelines()
    for label, folder in [("medseg", _PACKAGE)] + ([("pipelines", pipelines)] if pipelines else []):
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            if label == "medseg" and name.startswith("pipelines/"):  # where the wheel puts them
                continue
            parts[f"{label}/{name}"] = sha256_bytes(path.read_bytes())
    return sha256_json(parts)


def _pipelines() -> Path | None:
    # Beside the package in a checkout, inside it in an installed copy.
    folder = _PACKAGE / "pipelines"
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        folder = _PACKAGE.parent / "pipelines"
    return folder if folder.is_dir() else None


def write_stage_record(
    folder: Path,
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    seconds: float,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``<folder>/stage.json`` atomically.

    Args:
        folder: the stage's output folder.
        stage: prepare, train, infer or evaluate.
        config: the resolved config as plain values.
        inputs: what was read, name -> SHA-256; names are ids or paths relative to the data root.
        seconds: how long the stage took, over all its resumed parts as far as the stage knows.
        extra: further plain values of the stage; no name that the record uses itself.

    Returns:
        the file's path.

    Raises:
        EnvironmentFault: the folder can't be written.
        ValueError: a value is NaN, infinite, or ``extra`` uses a name of the record.
    """
    record: dict[str, Any] = {
        "format": FORMAT,
        "stage": stage,
        "config": safe_value(config),
        "config_sha256": sha256_json(dict(config)),
        "inputs": safe_value(inputs),
        "versions": versions(),
        "code": {"commit": code_commit(), "sha256": code_sha256()},
        "platform": f"{platform.system()} {platform.machine()}",
        "seconds": round(seconds, 3),
    }
    if clash := record.keys() & (extra or {}).keys():
        raise ValueError(f"stage record: {sorted(clash)} are set by the record itself; choose other names")
    path = folder / RECORD_NAME
    write_json(path, record | safe_value(extra or {}))
    return path


def read_stage_record(folder: Path) -> dict[str, Any]:
    """Reads ``<folder>/stage.json``.

    Raises:
        InputError: it is missing, no JSON object, or of a newer format.
    """
    record = read_json(folder / RECORD_NAME)
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise InputError(f"{folder.name}/{RECORD_NAME}: is no stage record; run the stage again")
    if record["format"] > FORMAT:
        raise InputError(
            f"{folder.name}/{RECORD_NAME}: has format {record['format']}, expected at most {FORMAT}; use a newer medseg"
        )
    return record
