"""Where a mask is wrong, as a label map per class, and whether the model's own uncertainty says so: what lies beside scores.

Both need the voxels of masks whose rows may long be known, so they are made after scoring, case by case, and kept like rows.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.durable import atomic_path, read_json, sha256_file, sha256_json, write_json, write_text
from medseg.errors import GeometryError, InputError, MedsegError
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.reading import read_pair
from medseg.evaluation.unsure import COLUMNS, Unsure, plain_row, unsure_of_classes
from medseg.imaging import IGNORE, grid_difference, read_volume, regions_of, to_classes
from medseg.imaging.label_table import LabelEntry, itk_snap_text, structure_file_names
from medseg.imaging.nifti import write_nifti
from medseg.imaging.volume import Affine

logger = logging.getLogger(__name__)

ClassArray = npt.NDArray[np.uint8]

ERRORS = {"true positive": 1, "false positive": 2, "false negative": 3}
"""Values of an error map; 0 is rightly background, or ignored."""
_COLOURS = {"true positive": (0, 158, 115), "false positive": (213, 94, 0), "false negative": (86, 180, 233)}
FOLDER, TABLE_NAME, MAPS = "errors", "uncertainty.csv", "maps"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class _Classes:
    prediction: ClassArray
    reference: ClassArray
    ignored: npt.NDArray[np.bool_]
    affine: Affine


def entropy_map(pair: CasePaths) -> Path | None:
    """What ``medseg infer --uncertainty`` wrote beside a prediction, ``maps/<case>_entropy.nii.gz``; None without one."""
    if pair.prediction is None:
        return None
    path = pair.prediction.parent / MAPS / f"{pair.case_id}_entropy.nii.gz"
    return path if path.is_file() else None


def write_beside_scores(
    pairs: Sequence[CasePaths],
    inputs: Mapping[str, tuple[str, str]],
    *,
    protocol: Protocol,
    output: Path,
    error_maps: bool,
) -> dict[str, str]:
    """Writes ``errors/<case>_<class>.nii.gz`` where asked, and ``uncertainty.csv`` where there are entropy maps.

    Args:
        pairs: of the set; those that were not scored are passed over.
        inputs: case id to the checksums of both masks, of the scored cases.
        protocol: how they were scored.
        output: folder of the scores.
        error_maps: whether they are wanted.

    Returns:
        Case id to why it has none, where a map does not fit.
    """
    failed: dict[str, str] = {}
    found: dict[str, tuple[Unsure, ...]] = {}
    for pair in pairs:
        entropy = entropy_map(pair)
        if pair.case_id not in inputs or (entropy is None and not error_maps):
            continue
        try:
            work = _Work(pair, inputs[pair.case_id], protocol, output, entropy, error_maps=error_maps)
            rows = work.made() if (kept := work.kept()) is None else kept
        except MedsegError as error:
            failed[pair.case_id] = " ".join(str(error).split())
            continue
        if entropy is not None:
            found[pair.case_id] = rows
    if error_maps:
        _write_names(output / FOLDER)
    if found:
        write_text(output / TABLE_NAME, uncertainty_csv(found))
    else:
        (output / TABLE_NAME).unlink(missing_ok=True)  # of masks that had maps and have none now
    for reason in failed.values():
        logger.warning("%s", reason)
    return failed


def uncertainty_csv(found: Mapping[str, Sequence[Unsure]]) -> str:
    """The table's text: a line per case and class, sorted by case; what is undefined is an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ("case", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    for case_id in sorted(found):
        for one in found[case_id]:
            writer.writerow({key: "" if value is None else value for key, value in plain_row(case_id, one).items()})
    return stream.getvalue()


class _Work:
    """One case: what is kept of it, or both files read again."""

    def __init__(
        self,
        pair: CasePaths,
        sha256s: tuple[str, str],
        protocol: Protocol,
        output: Path,
        entropy: Path | None,
        *,
        error_maps: bool,
    ) -> None:
        self._pair, self._protocol, self._entropy, self._maps = pair, protocol, entropy, error_maps
        self._output = output
        self._names = tuple(n for n in protocol.class_names if pair.labelled is None or n in pair.labelled)
        labels = [[name, list(values)] for name, values in protocol.labels.items()]
        own = None if entropy is None else sha256_file(entropy)
        self._key = sha256_json([_FORMAT, *sha256s, labels, protocol.ignore, list(self._names), error_maps, own])

    @property
    def _path(self) -> Path:
        return self._output / "cases" / "beside" / f"{self._pair.case_id}.json"

    def kept(self) -> tuple[Unsure, ...] | None:
        """The rows, where everything is there and was made of the same."""
        try:
            content = read_json(self._path)
            whole = content["key"] == self._key and all(
                sha256_file(self._output / name) == wanted for name, wanted in content["files"].items()
            )
            return tuple(Unsure(**row) for row in content["rows"]) if whole else None
        except (InputError, OSError, KeyError, TypeError, AttributeError):
            return None

    def made(self) -> tuple[Unsure, ...]:
        """Writes the maps and gives the rows.

        Raises:
            GeometryError: the entropy lies on another grid.
        """
        read = self._read()
        rows = () if self._entropy is None else self._rows(read, self._entropy)
        files = self._write(read) if self._maps else {}
        content: dict[str, Any] = {"format": _FORMAT, "key": self._key, "files": files}
        write_json(self._path, content | {"rows": [asdict(row) for row in rows]})
        return rows

    def _read(self) -> _Classes:
        assert self._pair.prediction is not None
        assert self._pair.reference is not None
        prediction, reference = read_pair(self._pair.prediction, self._pair.reference, naming=self._protocol.naming)
        labels, name = self._protocol.labels, self._pair.case_id
        predicted = to_classes(prediction, labels, ignore=None, name=f"{name}: prediction")
        wanted = to_classes(reference, labels, ignore=self._protocol.ignore, name=f"{name}: reference")
        ignored = np.asarray((wanted == IGNORE) & (self._protocol.ignore is not None), bool)
        predicted[ignored], wanted[ignored] = 0, 0
        return _Classes(prediction=predicted, reference=wanted, ignored=ignored, affine=reference.affine)

    def _rows(self, read: _Classes, path: Path) -> tuple[Unsure, ...]:
        volume = read_volume(path)
        difference = grid_difference(volume.shape, volume.affine, read.reference.shape, read.affine)
        if difference is not None:
            raise GeometryError(
                f"{self._pair.case_id}: {path.name} lies on another grid than the reference ({difference}), expected one "
                "grid; make it anew with medseg infer --uncertainty --overwrite"
            )
        rows = unsure_of_classes(
            volume.array[0],
            read.prediction,
            read.reference,
            class_names=tuple(self._protocol.labels),
            regions=regions_of(self._protocol.labels),
            ignored=read.ignored,
        )
        return tuple(row for row in rows if row.class_name in self._names)

    def _write(self, read: _Classes) -> dict[str, str]:
        """SHA-256 by name below the output folder."""
        shown = dict(zip(self._protocol.class_names, structure_file_names(self._protocol.class_names), strict=True))
        regions, files = regions_of(self._protocol.labels), {}
        (self._output / FOLDER).mkdir(parents=True, exist_ok=True)
        for name in self._names:
            members = (list(self._protocol.labels).index(name),) if regions is None else regions.indices_of(name)
            values = error_map(np.isin(read.prediction, members), np.isin(read.reference, members))
            file = f"{FOLDER}/{self._pair.case_id}_{shown[name]}.nii.gz"
            with atomic_path(self._output / file) as temporary:
                write_nifti(values, read.affine, temporary, like=None)
            files[file] = sha256_file(self._output / file)
        return files


def error_map(prediction: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> ClassArray:
    """``ERRORS`` per voxel of two masks of one shape: uint8."""
    result = np.zeros(prediction.shape, np.uint8)
    result[prediction & reference] = ERRORS["true positive"]
    result[prediction & ~reference] = ERRORS["false positive"]
    result[~prediction & reference] = ERRORS["false negative"]
    return result


def _write_names(folder: Path) -> None:
    """Names and colours for ITK-SNAP, once."""
    table = {name: LabelEntry(values=(value,), colour=_COLOURS[name]) for name, value in ERRORS.items()}
    path, text = folder / "itksnap_labels.txt", itk_snap_text(table)
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        write_text(path, text)
