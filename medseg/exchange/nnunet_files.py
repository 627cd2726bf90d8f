"""Where an nnU-Net v2 model's files lie: a results folder, or a zip that nnU-Net exported, which is read without unpacking.

The layout is ``[DatasetXXX_Name/]Trainer__Plans__configuration/{plans.json,dataset.json,fold_0/checkpoint_final.pth,...}``.
"""

from __future__ import annotations

import errno
import json
import lzma
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from medseg.errors import EnvironmentFault, InputError, ModelError, UsageError

MOST_JSON_BYTES = 64 * 2**20
MOST_CHECKPOINT_BYTES = 16 * 2**30
_MOST_MEMBERS = 10_000
_DEEPEST = 4  # folders above a model's own that are looked through
_BLOCK = 1 << 20
# What zipfile raises of a damaged or forged archive: of its directory, its methods, and the three decompressors.
_ZIP_FAULTS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, OSError, RuntimeError,
    ValueError,
)  # fmt: skip


class Files(Protocol):
    """A tree of files: a folder or a zip. Paths are relative, with ``/``."""

    name: str

    def paths(self) -> list[PurePosixPath]:
        """All that may belong to a model, sorted."""

    def json(self, path: PurePosixPath) -> dict[str, Any]:
        """A JSON file's object."""

    def checkpoint(self, path: PurePosixPath) -> Any:
        """A context that gives the path of a file with that content."""


class FolderFiles:
    """A folder on the disk.

    Args:
        folder: the model's, or one above it.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self._top = folder.resolve().name, folder

    def paths(self) -> list[PurePosixPath]:
        """Files named as nnU-Net names them, not too deep down."""
        found: list[Path] = []
        for depth in range(_DEEPEST):
            for pattern in ("plans.json", "fold_*/checkpoint_*.pth"):
                found += self._top.glob("/".join(["*"] * depth + [pattern]))
        return sorted(PurePosixPath(path.relative_to(self._top).as_posix()) for path in found)

    def json(self, path: PurePosixPath) -> dict[str, Any]:
        """See `Files`."""
        try:
            with (self._top / path).open("rb") as stream:
                return _object(stream, path.name)
        except OSError as error:
            raise ModelError(
                f"{path}: can't be read ({type(error).__name__}); copy the nnU-Net folder again"
            ) from error

    @contextmanager
    def checkpoint(self, path: PurePosixPath) -> Iterator[Path]:
        """See `Files`."""
        yield self._top / path


class ZipFiles:
    """A zip. Nothing is unpacked but one checkpoint at a time, into a temporary file.

    Args:
        path: of the zip.

    Raises:
        ModelError: it is no zip, or has members that no exported model has.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_FAULTS as error:
            raise ModelError(f"{path.name}: is no whole zip ({type(error).__name__}); download it again") from error
        members = self._zip.infolist()
        if len(members) > _MOST_MEMBERS:
            raise ModelError(
                f"{path.name}: has {len(members)} members, expected at most {_MOST_MEMBERS}; check the file"
            )
        files = [member for member in members if not member.filename.endswith("/")]
        self._members = {PurePosixPath(member.filename): _sound(member, path.name) for member in files}

    def paths(self) -> list[PurePosixPath]:
        """See `Files`."""
        return sorted(self._members)

    def json(self, path: PurePosixPath) -> dict[str, Any]:
        """See `Files`."""
        if path not in self._members:
            raise ModelError(f"{self.name}: holds no {path}, expected nnU-Net's export; export the model again")
        try:
            with self._zip.open(self._members[path]) as stream:
                return _object(stream, path.name)
        except _ZIP_FAULTS as error:
            raise self._damaged(path, error) from error

    @contextmanager
    def checkpoint(self, path: PurePosixPath) -> Iterator[Path]:
        """See `Files`."""
        member = self._members[path]
        if member.file_size > MOST_CHECKPOINT_BYTES:
            raise ModelError(f"{path}: has {member.file_size} bytes, expected at most {MOST_CHECKPOINT_BYTES}")
        with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
            file = Path(folder) / path.name
            try:
                # zipfile gives no more than the size in the directory and checks it by CRC, so a bomb ends here.
                with self._zip.open(member) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target, _BLOCK)
            except _ZIP_FAULTS as error:
                raise self._damaged(path, error) from error
            yield file

    def _damaged(self, path: PurePosixPath, error: Exception) -> ModelError | EnvironmentFault:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return EnvironmentFault(f"{self.name}: no room for {path.name} in the temporary folder; make room (TMPDIR)")
        return ModelError(f"{self.name}: {path} can't be read ({type(error).__name__}); download the zip again")


def _sound(member: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    path = PurePosixPath(member.filename)
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    leaves = path.is_absolute() or ".." in path.parts or "\\" in member.filename
    if leaves or not path.parts or ":" in path.parts[0] or is_link:
        raise ModelError(
            f"{name}: a member's name leaves the archive or is a link, expected plain files; don't use this zip"
        )
    return member


def _object(stream: IO[bytes], name: str) -> dict[str, Any]:
    data = stream.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise ModelError(f"{name}: has more than {MOST_JSON_BYTES} bytes, expected a few thousand; check the file")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: is no JSON ({type(error).__name__}); copy the nnU-Net folder again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name}: holds no JSON object; copy the nnU-Net folder again")
    return value


def open_files(path: Path) -> Files:
    """A folder or zip as `Files`.

    Raises:
        InputError: there is none.
        ModelError: the zip is damaged or unsafe.
    """
    if path.is_dir():
        return FolderFiles(path)
    if not path.is_file():
        raise InputError(f"{path}: no such folder or zip; check the path")
    return ZipFiles(path)


@dataclass(frozen=True)
class TrainedFolder:
    """One configuration that was trained.

    Attributes:
        files: where it lies.
        path: of its folder, ``Trainer__Plans__configuration`` if nobody renamed it.
        plans, dataset: its ``plans.json`` and ``dataset.json``.
        folds: name of a fold, "0" or "all", to its checkpoints by name, ``final`` or ``best``.
    """

    files: Files
    path: PurePosixPath
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    folds: Mapping[str, Mapping[str, PurePosixPath]]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.name or self.files.name

    @property
    def configuration(self) -> str:
        """By the folder's name; where that was changed, the whole of it."""
        return self.name.split("__")[-1]


def find_trained(files: Files) -> tuple[TrainedFolder, ...]:
    """Every trained configuration of a tree, sorted by path.

    Raises:
        ModelError: there is none; its JSON files can't be read.
    """
    found: dict[PurePosixPath, dict[str, dict[str, PurePosixPath]]] = {}
    for path in files.paths():
        if path.match("fold_*/checkpoint_*.pth"):
            fold, checkpoint = path.parent.name.removeprefix("fold_"), path.stem.removeprefix("checkpoint_")
            found.setdefault(path.parent.parent, {}).setdefault(fold, {})[checkpoint] = path
    if not found:
        raise ModelError(
            f"{files.name}: holds no fold_*/checkpoint_*.pth, expected a folder that nnUNetv2_train wrote, or its zip"
        )
    return tuple(
        TrainedFolder(files, top, files.json(top / "plans.json"), files.json(top / "dataset.json"), folds)
        for top, folds in sorted(found.items())
    )


def choose_trained(found: tuple[TrainedFolder, ...], configuration: str | None) -> TrainedFolder:
    """The only one, or the one of the configuration asked for.

    Where several trainers or plans made the same configuration, none is chosen.

    Raises:
        UsageError: there is not exactly one.
    """
    fitting = [one for one in found if configuration in (None, one.configuration, one.name)]
    if len(fitting) != 1:
        listed = ", ".join(one.name for one in found)
        asked = "" if configuration is None else f" as {configuration}"
        raise UsageError(
            f"{found[0].files.name}: holds {len(fitting)} trained configurations{asked} ({listed}), expected one; "
            "name it with --configuration"
        )
    return fitting[0]


def previous_of(one: TrainedFolder, found: tuple[TrainedFolder, ...], configuration: str) -> TrainedFolder:
    """The first stage of a cascade: of the same trainer and plans, trained beside it.

    Raises:
        ModelError: it is not there.
    """
    name = "__".join([*one.name.split("__")[:-1], configuration])
    for other in found:
        if other.path.parent == one.path.parent and other.name == name:
            return other
    raise ModelError(
        f"{one.name}: is a cascade's second stage and {name} does not lie beside it; name the folder above both, or a zip "
        "that holds both"
    )


def folds_to_take(one: TrainedFolder, folds: tuple[str, ...], checkpoint: str) -> dict[str, PurePosixPath]:
    """Checkpoint file per fold.

    Args:
        one: the trained folder.
        folds: as asked for; empty takes those that nnU-Net would: all numbered ones, or ``all`` where there is nothing else.
        checkpoint: "final" or "best".

    Raises:
        ModelError: a fold has no such checkpoint.
    """
    there = {fold for fold, own in one.folds.items() if checkpoint in own}
    chosen = folds or tuple(sorted(there - {"all"}, key=_number)) or tuple(there)
    missing = [fold for fold in chosen if fold not in there]
    if missing or not chosen:
        have = ", ".join(f"fold {fold}: {' and '.join(sorted(own))}" for fold, own in sorted(one.folds.items()))
        wanted = missing[0] if missing else "any"
        other = "best" if checkpoint == "final" else "final"
        there_is = any(other in one.folds.get(fold, {}) for fold in missing or one.folds)
        advice = f"; take the other with --checkpoint {other}" if there_is else ""
        raise ModelError(
            f"{one.name}: has no checkpoint_{checkpoint}.pth for fold {wanted}, expected one ({have}){advice}"
        )
    return {fold: one.folds[fold][checkpoint] for fold in chosen}


def _number(fold: str) -> int:
    return int(fold) if fold.isdigit() else 1 << 30
