"""The small JSON file beside an output that says what the output was made of, and so whether it has to be made again.

It is written last: an output without its sidecar does not count as done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from medseg.durable import read_json, sha256_file, write_json
from medseg.errors import InputError

_FORMAT = 1
_SUFFIX = ".sidecar.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """All that an output depends on.

    Attributes:
        inputs: what was read, as name (never a path) to sha256.
        settings: what was done with it, as name to sha256 or short text: model, config, format version.
    """

    inputs: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What a sidecar file holds.

    Attributes:
        origin: what the output was made of.
        output_sha256: of the output's bytes.
        versions: of the programs that made it; they do not decide whether it is done.
        extra: plain values for whoever reads it (seconds, volumes).
    """

    origin: Origin
    output_sha256: str
    versions: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def sidecar_path(output: Path) -> Path:
    """Where the sidecar of ``output`` lies: beside it, its name plus ``.sidecar.json``."""
    return output.with_name(output.name + _SUFFIX)


def write_sidecar(
    output: Path,
    origin: Origin,
    *,
    versions: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Sidecar:
    """Hashes ``output``, which must be in its final place, and writes its sidecar atomically."""
    sidecar = Sidecar(
        origin=origin, output_sha256=sha256_file(output), versions=dict(versions or {}), extra=dict(extra or {})
    )
    write_json(sidecar_path(output), {"format": _FORMAT, **asdict(sidecar)})
    return sidecar


def read_sidecar(output: Path) -> Sidecar | None:
    """The sidecar of ``output``; None where there is none or it is not whole.

    Raises:
        InputError: a newer medseg wrote it.
    """
    path = sidecar_path(output)
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except InputError:
        return None
    try:
        if int(content["format"]) > _FORMAT:
            _refuse_newer(path, content["format"])
        origin = Origin(inputs=dict(content["origin"]["inputs"]), settings=dict(content["origin"]["settings"]))
        return Sidecar(
            origin=origin,
            output_sha256=str(content["output_sha256"]),
            versions=dict(content["versions"]),
            extra=dict(content["extra"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _refuse_newer(path: Path, version: object) -> NoReturn:
    raise InputError(f"{path.name}: has format {version}, expected at most {_FORMAT}; use a newer medseg")


def is_done(output: Path, expected: Origin) -> bool:
    """Whether ``output`` is there, was made of exactly ``expected``, and still has the bytes it had then.

    The output is hashed again, so a damaged, cut or edited file counts as not done.

    Raises:
        InputError: a newer medseg wrote the sidecar.
    """
    if not output.is_file():
        return False
    sidecar = read_sidecar(output)
    if sidecar is None or not _same(sidecar.origin, expected):
        return False
    return sha256_file(output) == sidecar.output_sha256


def _same(a: Origin, b: Origin) -> bool:
    return dict(a.inputs) == dict(b.inputs) and dict(a.settings) == dict(b.settings)
