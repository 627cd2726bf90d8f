"""Checksums of files and of plain values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_BLOCK_BYTES = 1 << 20


def sha256_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """SHA-256 of a plain value (dict, list, text, number, bool, None) in canonical JSON.

    Keys are sorted and floats printed by ``repr``, so equal values hash alike on every machine.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value is not plain.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256_bytes(text.encode())
