"""Reading and writing a manifest, whichever kind of file it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medseg.durable import sha256_file
from medseg.errors import ManifestError
from medseg.manifest.cases import Manifest
from medseg.manifest.csv_files import read_csv_manifest, write_csv_manifest
from medseg.manifest.json_files import read_json_manifest, write_json_manifest

_READERS = {".json": read_json_manifest, ".csv": read_csv_manifest}
_WRITERS = {".json": write_json_manifest, ".csv": write_csv_manifest}


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise ManifestError([f"{path.name}: suffix is {path.suffix or 'missing'!r}, expected .json or .csv"])
    return suffix


def load_manifest(path: Path) -> Manifest:
    """Reads a manifest and checks all of it that needs no other file.

    No scan is looked at (see :func:`medseg.manifest.resolve`), so a hundred thousand cases take seconds.

    Args:
        path: a ``.json`` or ``.csv`` file.

    Raises:
        ManifestError: every fault of the file, each as ``file: case: what is wrong``.
    """
    reader = _READERS[_suffix(path)]
    try:
        manifest = reader(path)
        return replace(manifest, path=path, sha256=sha256_file(path))
    except OSError as error:
        raise ManifestError([f"{path.name}: can't be read ({error.strerror}); check the path"]) from error


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Writes ``manifest`` as ``.json`` or ``.csv``, atomically; ``load_manifest`` gives the same manifest back.

    Raises:
        ManifestError: the suffix is neither, or a CSV can't hold the manifest.
        EnvironmentFault: the disk is full or the folder not writable.
    """
    _WRITERS[_suffix(path)](manifest, path)
