"""In which files a mask leaves medseg: format, layout, names, and the one function that writes them all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.config.sections import OutputSection
from medseg.durable import sha256_file, sha256_json, write_text
from medseg.errors import ScanError
from medseg.imaging import Header, LabelMap, write_label_map
from medseg.imaging.label_table import LabelTable, itk_snap_text, structure_file_names
from medseg.imaging.opening import display_name
from medseg.imaging.writing import write_seg_nrrd

OutputFormat = Literal["auto", "nii.gz", "nrrd", "mha", "seg.nrrd", "png", "tif", "dicom-seg", "rtstruct"]
Layout = Literal["label_map", "per_structure"]

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_DICOM_OBJECTS = {"dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}
ITK_SNAP_NAME = "itksnap_labels.txt"
_WITH_ITK_SNAP = (".nii.gz", ".nrrd", ".mha")


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """What files are asked for.

    Attributes:
        format: "auto" is PNG for a picture and .nii.gz for every other scan.
        layout: one label map with all structures, or a mask (0 and 1) per structure in a folder of the case's.
        segmentation_type: of DICOM-SEG: BINARY (read by every viewer, may overlap) or LABELMAP (small, new in 2024).
    """

    format: OutputFormat = "auto"
    layout: Layout = "label_map"
    segmentation_type: Literal["BINARY", "LABELMAP"] = "BINARY"

    @classmethod
    def of(cls, section: OutputSection, *, format: str | None = None, layout: str | None = None) -> OutputSpec:  # noqa: A002
        """What a config asks for, or the command line's ``--format`` and ``--layout`` in its place."""
        asked = {"format": format, "layout": layout}
        given = section.model_dump() | {key: value for key, value in asked.items() if value is not None}
        return cls(**given)

    def names(self, case_id: str, images: Sequence[Path], class_names: Sequence[str]) -> tuple[str, ...]:
        """Names of a case's files below the output folder, the main one first, whose sidecar answers for all.

        Args:
            case_id: of the case.
            images: its files; the first decides what "auto" is.
            class_names: background first.

        Returns:
            One name, or with ``per_structure`` one per class without background, as ``<case>/<structure>.<suffix>``.
        """
        suffix = self.suffix(images)
        if self.layout == "label_map" or self.format in _DICOM_OBJECTS:
            return (f"{case_id}{suffix}",)
        return tuple(f"{case_id}/{name}{suffix}" for name in structure_file_names(class_names[1:]))

    def suffix(self, images: Sequence[Path]) -> str:
        """What a file name ends with, dot included."""
        if self.format == "auto":
            named_so = bool(images) and images[0].suffix.lower() in _PICTURE_SUFFIXES
            picture = named_so and not os.path.isdir(images[0])  # noqa: PTH112  (DICOM folders have any name)
            return ".png" if picture else ".nii.gz"
        return _DICOM_OBJECTS.get(self.format, f".{self.format}")

    def fault(self, images: Sequence[Path], header: Header | None) -> str | None:
        """Why a case can't be written so, before anything is computed for it; None where it can.

        Args:
            images: the case's files.
            header: of the scan.
        """
        if header is None:
            return None
        name = display_name(images[0]) if images else "scan"
        if self.format in _DICOM_OBJECTS and header.format != "dicom":
            return f"{name}: is no DICOM series, expected one for --format {self.format}; take nii.gz or seg.nrrd"
        if self.format in ("png", "tif") and not header.planar:
            return f"{name}: is a volume, expected a picture for --format {self.format}; take nii.gz"
        return None

    def settings(self) -> dict[str, str]:
        """What a sidecar's settings say of it: nothing where it is all default, so that older sidecars stay good."""
        return {} if self == OutputSpec() else {"output": sha256_json(asdict(self))}


def write_outputs(
    label_map: LabelMap,
    folder: Path,
    names: Sequence[str],
    *,
    spec: OutputSpec,
    header: Header | None,
    label_table: LabelTable,
    source: Sequence[Path],
) -> dict[str, str]:
    """Writes a mask into the files ``names`` of ``folder``, each atomic and read back before it gets its name.

    Args:
        label_map: values of the labels (X, Y, Z) on the scan's own grid.
        folder: the output folder.
        names: from ``spec.names``.
        spec: formats and layout.
        header: of the scan, whose grid the mask has; None takes the label map's own.
        label_table: the structures, without background.
        source: the scan's files, which DICOM objects refer to.

    Returns:
        SHA-256 by name of every file but the first, for the sidecar's ``extra``; {} where there is only one. The folder's
        label descriptions for ITK-SNAP, written beside volumes, are not among them.

    Raises:
        ScanError: the format can't be written for this kind of scan.
        InputError: the format can't hold this mask.
        EnvironmentFault: the disk did not keep what was written, or it does not read back as the mask.
    """
    if fault := spec.fault(source, header):
        raise ScanError(fault)
    if spec.format in _DICOM_OBJECTS:
        _write_dicom(label_map, folder / names[0], spec=spec, header=header, label_table=label_table, source=source)
    elif spec.layout == "per_structure":
        for name, (structure, entry) in zip(names, label_table.items(), strict=True):
            mask = LabelMap(np.isin(label_map.array, entry.values).astype(np.uint8), label_map.affine, label_map.header)
            if spec.format == "seg.nrrd":
                write_seg_nrrd(mask, folder / name, label_table={structure: replace(entry, values=(1,))}, like=header)
            else:
                write_label_map(mask, folder / name, like=header)
    elif spec.format == "seg.nrrd":
        write_seg_nrrd(label_map, folder / names[0], label_table=label_table, like=header)
    else:
        write_label_map(label_map, folder / names[0], like=header)
        _write_itk_snap(folder, names[0], label_table)
    return {name: sha256_file(folder / name) for name in names[1:]}


def _write_dicom(
    label_map: LabelMap,
    path: Path,
    *,
    spec: OutputSpec,
    header: Header | None,
    label_table: LabelTable,
    source: Sequence[Path],
) -> None:
    # Late: most masks are no DICOM, and their writing needs no pydicom.
    from medseg.imaging.dicom_source import open_source

    series = open_source(source, series_uid=None if header is None else header.series or None, like=header)
    if spec.format == "rtstruct":
        from medseg.imaging.rtstruct_writing import write_rtstruct

        write_rtstruct(label_map, path, source=series, label_table=label_table)
    else:
        from medseg.imaging.dicom_seg_writing import write_dicom_seg

        write_dicom_seg(label_map, path, source=series, label_table=label_table, kind=spec.segmentation_type)


def _write_itk_snap(folder: Path, name: str, label_table: LabelTable) -> None:
    """The folder's one file of names and colours, where it is not there as it should be."""
    path, text = folder / ITK_SNAP_NAME, itk_snap_text(label_table)
    if name.endswith(_WITH_ITK_SNAP) and not (path.is_file() and path.read_text(encoding="utf-8") == text):
        write_text(path, text)


def are_whole(folder: Path, sha256s: Mapping[str, str]) -> bool:
    """Whether the further files of a case, as ``write_outputs`` named them, are there with the bytes they had."""
    return all((folder / name).is_file() and sha256_file(folder / name) == wanted for name, wanted in sha256s.items())
