"""The licence text that a model folder carries: ``LICENSE`` beside the weights, named in ``model.json`` with its SHA-256.

An ensemble's members bring theirs along, and the ensemble's own folder says what holds for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.durable import sha256_bytes, write_bytes
from medseg.errors import ModelError, UsageError

LICENCE = "LICENSE"
"""The file's name, spelt as everybody who looks for one spells it."""
_MOST_BYTES = 1 << 20
_NONE = "No licence text came with these: ask whoever trained them.\n"


def read_licence(path: Path, *, key: str) -> bytes:
    """The text that a config or a flag names, byte for byte.

    Args:
        path: of a text file in UTF-8, at most 1 MiB.
        key: what named it, for the message.

    Raises:
        UsageError: it is no such file, or an empty one.
    """
    rule = "expected a text file with the whole licence"
    if not path.is_file():
        raise UsageError(f"{key}: {path.name} is no file, {rule}; save the text there, or correct the path")
    try:
        text = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b"\0"
    except OSError as error:
        raise UsageError(f"{key}: {path.name} can't be read ({error.strerror}); check its permissions") from error
    try:
        plain = b"\0" not in text and bool(text.decode("utf-8").strip())
    except UnicodeDecodeError:
        plain = False
    if not plain:
        raise UsageError(
            f"{key}: {path.name} is empty, no UTF-8 text or over {_MOST_BYTES:,} bytes, {rule}; replace it"
        )
    return text


def write_licence(folder: Path, text: bytes | None) -> dict[str, str]:
    """Writes ``LICENSE`` into a model folder, or removes what an earlier model left there.

    Returns:
        Its line of ``model.json``'s ``files``; {} where there is none.
    """
    if text is None:
        (folder / LICENCE).unlink(missing_ok=True)
        return {}
    write_bytes(folder / LICENCE, text)
    return {LICENCE: sha256_bytes(text)}


def licence_of(folder: Path, info: Mapping[str, Any]) -> bytes | None:
    """The licence text of a model folder; None where it carries none, as folders from before there were any.

    Args:
        folder: of a single model or an ensemble.
        info: its ``model.json``.

    Raises:
        ModelError: the file is missing, or another than the model was saved with.
    """
    known = info.get("files", {}).get(LICENCE)
    if known is None:
        return None
    try:
        text = (folder / LICENCE).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder.name}: {LICENCE} is missing or unreadable; copy the model folder again") from error
    if sha256_bytes(text) != known:
        raise ModelError(f"{folder.name}: {LICENCE} does not have its checksum; copy the model folder again")
    return text


def joined_licences(texts: Mapping[str, bytes | None]) -> bytes | None:
    """What an ensemble's folder says, given its members' texts by name.

    Returns:
        The one text that all have; None where none has any; else each text under a line that names its members.
    """
    if not any(texts.values()):
        return None
    members: dict[bytes, list[str]] = {}
    for name, text in texts.items():
        members.setdefault(text or _NONE.encode(), []).append(name)
    if len(members) == 1:
        return next(iter(members))
    parts = (f"{'=' * 20} {', '.join(names)} {'=' * 20}\n\n".encode() + text for text, names in members.items())
    return b"\n\n".join(part.rstrip(b"\n") for part in parts) + b"\n"
