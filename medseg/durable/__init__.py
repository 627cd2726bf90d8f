"""Files that survive a kill: the one atomic writer, strict JSON, checksums and the folder lock."""

from medseg.durable.hashing import sha256_bytes, sha256_file, sha256_json
from medseg.durable.lock import FolderLock
from medseg.durable.writing import (
    atomic_path,
    read_json,
    remove_stale_temporaries,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "FolderLock",
    "atomic_path",
    "read_json",
    "remove_stale_temporaries",
    "sha256_bytes",
    "sha256_file",
    "sha256_json",
    "write_bytes",
    "write_json",
    "write_text",
]
