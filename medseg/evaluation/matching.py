"""Which prediction belongs to which reference, by file name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import InputError
from medseg.imaging import FORMATS, suffix_of

# Only formats that keep values exactly: a JPEG in the folder is somebody's preview.
_LOSSLESS = frozenset(
    suffix
    for entry in FORMATS
    if entry.read_labels is not None and entry.write is not None
    for suffix in entry.suffixes
) | {".seg.nrrd", ".seg.dcm", ".rtstruct.dcm"}
_DICOM = ".dcm"


@dataclass(frozen=True, kw_only=True)
class CasePaths:
    """A case to score; a side that is missing is None.

    Attributes:
        case_id: the stem, or the manifest's id.
        prediction, reference: label maps.
        fault: why it can't be scored, where that was known beforehand.
        labelled: names of the classes that the reference was labelled for; None for all of them.
        raters: every reference of a case that has several, the first among them; empty where it has one.
        mask_of: id of the case whose mask the prediction is, where that is not ``case_id``.
        two_references: whether the prediction is a reference too, which may have ignored voxels as well.
    """

    case_id: str
    prediction: Path | None
    reference: Path | None
    fault: str | None = None
    labelled: tuple[str, ...] | None = None
    raters: tuple[Path, ...] = ()
    mask_of: str | None = None
    two_references: bool = False


def label_files(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by stem, sorted; hidden files, sidecars and other kinds of file are passed over.

    A ``.dcm`` is one where its header says that it holds structures (DICOM-SEG, RTSTRUCT).

    Raises:
        InputError: the folder is missing, or two files have one stem.
    """
    if not folder.is_dir():
        raise InputError(f"{folder.name}: no such folder; check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = _stem(path)
        if stem is None or path.name.startswith(".") or not path.is_file():
            continue
        if stem in found:
            raise InputError(
                f"{folder.name}: case {stem} has two files ({found[stem].name}, {path.name}), expected one; remove one"
            )
        found[stem] = path
    return found


def _stem(path: Path) -> str | None:
    suffix = suffix_of(path)
    if suffix not in _LOSSLESS and not (suffix == _DICOM and _holds_structures(path)):
        return None
    assert suffix is not None
    return path.name[: -len(suffix)] or None


def _holds_structures(path: Path) -> bool:
    from medseg.imaging.dicom import holds_structures  # imports pydicom

    return path.is_file() and holds_structures(path)


def match_folders(predictions: Path, references: Path) -> tuple[CasePaths, ...]:
    """Pairs the label maps of two folders by stem, sorted by it; what stands alone keeps None on the other side.

    Raises:
        InputError: a folder is missing or holds two files of one stem, or nothing matches at all.
    """
    return match_references(predictions, label_files(references))


def match_references(
    predictions: Path, references: Mapping[str, Path], *, known: Iterable[str] = ()
) -> tuple[CasePaths, ...]:
    """Pairs a folder of predictions with references by case id, sorted by it.

    Args:
        predictions: folder with one label map per case, named after it.
        references: case id to label map.
        known: further ids a prediction may have without being one too many (cases without a reference).

    Raises:
        InputError: the folder is missing, holds two files of one stem, or nothing matches at all.
    """
    found = {stem: path for stem, path in label_files(predictions).items() if stem not in set(known) - set(references)}
    if not set(found) & set(references):
        raise InputError(
            f"{predictions.name}: none of its {len(found)} label maps has the name of one of the {len(references)} "
            "references, expected a file <case>.nii.gz (or .nrrd, .mha, .png, .tif, .seg.nrrd, .dcm) for each; check both"
        )
    return tuple(
        CasePaths(case_id=case_id, prediction=found.get(case_id), reference=references.get(case_id))
        for case_id in sorted({*found, *references})
    )
