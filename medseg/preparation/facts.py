"""What one look at a case tells: its geometry, its intensities, its classes, and what is wrong with it.

A case is read once for this; the facts are kept in `FactsJournal` under a key made of its files' content, so that an unchanged
case is not read again.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.durable import sha256_json, write_text
from medseg.errors import MedsegError
from medseg.imaging import (
    Volume,
    apply_axes,
    changed_affine,
    grid_difference,
    index_labels,
    read_label_map,
    spacing_xyz_mm,
    to_classes,
)
from medseg.imaging.formats import format_of
from medseg.imaging.structures import Naming
from medseg.manifest.cases import Channel
from medseg.preparation.case import axis_change, nonzero_box
from medseg.preparation.fingerprint import CaseGeometry, IntensitySketch, foreground_extent, sketch_intensities
from medseg.preparation.inputs import Fixed, fix, must_be_unchanged
from medseg.preparation.locations import seed_of
from medseg.preparation.order import Centre, class_centres
from medseg.preparation.scan_facts import ScanFacts, scan_facts

FACTS_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class CaseInputs:
    """A case as it is handed to a worker: files, and what the manifest says about them.

    Attributes:
        names: of images then labels, as in the manifest; they key the memory of checksums.
        known: checksums of the files, in the order of ``names``, where they are known.
        labelled: names of the classes that were looked for; None where all were.
        aliases: class name to other names that structures of label files have.
        facts_key: key of the facts that are kept of this case, or "".
    """

    id: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    names: tuple[str, ...]
    channels: tuple[Channel, ...]
    classes: tuple[tuple[str, tuple[int, ...]], ...]
    ignore: int | None
    orientation: Literal["RAS", "native"]
    labelled: tuple[str, ...] | None = None
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()
    facts_key: str = ""
    known: tuple[Fixed, ...] | None = None

    @property
    def naming(self) -> Naming:
        """By which structures of label files are known."""
        return Naming(dict(self.classes), dict(self.aliases))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Images, then labels."""
        return (*self.images, *self.labels)

    def key(self, inputs: Sequence[Fixed]) -> str:
        """Of the files' content and everything of the manifest that decides what they mean."""
        made_of: dict[str, Any] = {
            "version": FACTS_VERSION,
            "files": [fixed.sha256 for fixed in inputs],
            "images": len(self.images),
            "channels": [[c.name, c.unit, *([c.series.model_dump()] if c.series else [])] for c in self.channels],
            "classes": [[name, list(values)] for name, values in self.classes],
            "ignore": self.ignore,
            "orientation": self.orientation,
        }
        if self.labelled is not None:  # only here, so that other cases' keys stay what they were
            made_of["labelled"] = list(self.labelled)
        if self.aliases:
            made_of["aliases"] = [[name, list(others)] for name, others in self.aliases]
        return sha256_json(made_of)


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """See the module.

    Attributes:
        key: of what the facts were taken from.
        faults, warnings: sentences, without the case's id in front.
        geometry: None where the image can't be read.
        shape_xyz: oriented, before the crop.
        planar: a single picture.
        voxels_sha256: of shape and intensities as read; equal for two files with the same scan.
        class_voxels: class index to voxels, of the classes that occur; empty without a label map.
        centres: class index to mean oriented voxel coordinate, of the foreground classes that occur.
        extent_xyz: oriented voxels from end to end of all foreground together; None where there is none.
        sketches: foreground intensities per channel; empty where unknown.
        scan: what it says about itself without labels; None where it can't be used.
    """

    key: str
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    geometry: CaseGeometry | None = None
    shape_xyz: tuple[int, int, int] = (0, 0, 0)
    planar: bool = False
    voxels_sha256: str = ""
    class_voxels: Mapping[int, int] | None = None
    centres: Mapping[int, Centre] = field(default_factory=dict)
    extent_xyz: tuple[int, int, int] | None = None
    sketches: tuple[IntensitySketch | None, ...] = ()
    scan: ScanFacts | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        geometry = self.geometry
        return {
            "key": self.key,
            "faults": list(self.faults),
            "warnings": list(self.warnings),
            "geometry": None
            if geometry is None
            else [list(geometry.shape_xyz), list(geometry.spacing_xyz_mm), geometry.crop_share],
            "shape_xyz": list(self.shape_xyz),
            "planar": self.planar,
            "voxels_sha256": self.voxels_sha256,
            "class_voxels": None
            if self.class_voxels is None
            else {str(k): v for k, v in sorted(self.class_voxels.items())},
            "centres": {str(k): list(centre) for k, centre in sorted(self.centres.items())},
            "extent_xyz": None if self.extent_xyz is None else list(self.extent_xyz),
            "sketches": [None if sketch is None else sketch.plain() for sketch in self.sketches],
            "scan": None if self.scan is None else self.scan.plain(),
        }

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> CaseFacts:
        """The inverse of `plain`."""
        geometry, counts = value["geometry"], value["class_voxels"]
        return cls(
            key=value["key"],
            faults=tuple(value["faults"]),
            warnings=tuple(value["warnings"]),
            geometry=CaseGeometry(tuple(geometry[0]), tuple(geometry[1]), geometry[2]) if geometry else None,
            shape_xyz=tuple(value["shape_xyz"]),
            planar=value["planar"],
            voxels_sha256=value["voxels_sha256"],
            class_voxels=None if counts is None else {int(k): int(v) for k, v in counts.items()},
            centres={int(k): tuple(centre) for k, centre in value["centres"].items()},
            extent_xyz=None if value["extent_xyz"] is None else tuple(value["extent_xyz"]),
            sketches=tuple(None if s is None else IntensitySketch.from_plain(s) for s in value["sketches"]),
            scan=ScanFacts.from_plain(scan) if (scan := value.get("scan")) else None,
        )


class FactsJournal:
    """``facts.jsonl``: a line per case, each with its CRC-32, added as they come and put in order at the end.

    A line that a kill cut short, or that is damaged, is as if it were not there: the case is looked at again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: dict[str, str] = {}
        self._known: dict[str, CaseFacts] = {}
        self._in_order = True
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        for line in text.splitlines():
            self._in_order &= self._take(line)
        self._in_order &= len(self._lines) == text.count("\n") and [*self._lines] == sorted(self._lines)
        self._torn = bool(text) and not text.endswith("\n")

    def _take(self, line: str) -> bool:
        crc, _, content = line.partition(" ")
        if crc != f"{zlib.crc32(content.encode()):08x}":
            return False
        value = json.loads(content)
        if value["version"] == FACTS_VERSION:
            self._lines[value["case"]] = line
            self._known[value["case"]] = CaseFacts.from_plain(value)
        return True

    def key(self, case_id: str) -> str:
        """Of the facts that are kept of a case, or ""."""
        return self._known[case_id].key if case_id in self._known else ""

    def facts(self, case_id: str) -> CaseFacts:
        """What is kept of a case."""
        return self._known[case_id]

    def add(self, case_id: str, facts: CaseFacts) -> None:
        """Keeps a case's facts; a kill right afterwards does not lose them."""
        content = json.dumps({"version": FACTS_VERSION, "case": case_id, **facts.plain()}, ensure_ascii=False)
        line = f"{zlib.crc32(content.encode()):08x} {content}"
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write("\n" * self._torn + line + "\n")
        self._torn = False
        self._in_order = False
        self._lines[case_id], self._known[case_id] = line, facts

    def put_in_order(self, case_ids: Collection[str]) -> None:
        """Rewrites the file with these cases only, sorted, so that it does not tell what came when."""
        kept = {case_id: line for case_id, line in sorted(self._lines.items()) if case_id in case_ids}
        if not self._in_order or len(kept) != len(self._lines):
            write_text(self._file, "".join(f"{line}\n" for line in kept.values()))


def examine(inputs: CaseInputs) -> tuple[tuple[Fixed, ...], CaseFacts | None]:
    """Reads a case, unless its files turn out to be those whose facts are kept.

    Returns:
        The files' checksums, and the facts or None where those that are kept still hold.

    Raises:
        ScanError: a file can't be read at all, or changed while it was read.
    """
    # Channels may share a folder.
    fixed_once = {} if inputs.known else {path: fix(path) for path in dict.fromkeys(inputs.paths)}
    files = inputs.known or tuple(fixed_once[path] for path in inputs.paths)
    key = inputs.key(files)
    if key == inputs.facts_key:
        return files, None
    facts = look_at(inputs, key=key)
    for path, fixed in zip(inputs.paths, files, strict=True):
        must_be_unchanged(path, fixed.stamp)
    return files, facts


def look_at(inputs: CaseInputs, *, key: str) -> CaseFacts:
    """Reads image and label map of a case and checks them; everything that is wrong comes back as a fault."""
    from medseg.preparation.loading import load_scan

    try:
        volume = load_scan(inputs.images, inputs.channels)
    except MedsegError as error:
        _, label_faults, _ = _read_classes(inputs, None)
        return CaseFacts(key=key, faults=(str(error), *label_faults))
    faults, warnings = _intensity_faults(volume.array, inputs.channels)
    warnings += volume.header.warnings if volume.header else ()
    classes, label_faults, label_warnings = _read_classes(inputs, volume)
    planar = bool(volume.header and volume.header.planar)
    change = axis_change(volume.affine, orientation=inputs.orientation, picture=planar)
    turned = apply_axes(volume.array, change)
    start, stop = nonzero_box(turned)
    cropped = (slice(None), *map(slice, start, stop))
    shape = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
    spacing = spacing_xyz_mm(changed_affine(volume.affine, volume.shape, change))
    sketches: tuple[IntensitySketch | None, ...] = ()
    counts: dict[int, int] | None = None
    centres: dict[int, Centre] = {}
    extent: tuple[int, int, int] | None = None
    if classes is not None:
        turned_classes = apply_axes(classes, change)
        centres = class_centres(turned_classes)
        extent = foreground_extent(turned_classes)
        counts = {int(c): int(n) for c, n in enumerate(np.bincount(turned_classes.reshape(-1), minlength=256)) if n}
        if not faults:
            sketches = sketch_intensities(
                np.ascontiguousarray(turned[cropped]),
                np.ascontiguousarray(turned_classes[cropped[1:]]),
                seed=seed_of(inputs.id),
            )
    full = turned.shape[1:]
    return CaseFacts(
        key=key,
        faults=(*faults, *label_faults),
        warnings=(*warnings, *label_warnings),
        geometry=CaseGeometry(
            shape, (float(spacing[0]), float(spacing[1]), float(spacing[2])), float(np.prod(shape) / np.prod(full))
        ),
        shape_xyz=(full[0], full[1], full[2]),
        planar=planar,
        voxels_sha256=_content_sha256(turned),
        class_voxels=counts,
        centres=centres,
        extent_xyz=extent,
        sketches=sketches,
        scan=None if faults else scan_facts(volume),
    )


def _content_sha256(array: npt.NDArray[np.float32]) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _intensity_faults(
    array: npt.NDArray[np.float32], channels: Sequence[Channel]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    faults, warnings = [], []
    for values, channel in zip(array, channels, strict=True):
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            faults.append(
                f"channel {channel.name}: has {bad:,} voxels that are NaN or infinite, expected none; correct the file"
            )
        elif values.size > 1 and values.min() == values.max():
            warnings.append(f"channel {channel.name}: every voxel is {values.flat[0]:g}")
    return tuple(faults), tuple(warnings)


def _read_classes(
    inputs: CaseInputs, volume: Volume | None
) -> tuple[npt.NDArray[np.uint8] | None, tuple[str, ...], tuple[str, ...]]:
    """Class indices of the first label map, faults and warnings of all of them."""
    first: npt.NDArray[np.uint8] | None = None
    faults, warnings = [], []
    for number, path in enumerate(inputs.labels):
        try:
            label_map = read_label_map(path, naming=inputs.naming, like=volume)
            if volume is not None and (
                difference := grid_difference(label_map.shape, label_map.affine, volume.shape, volume.affine)
            ):
                faults.append(
                    f"{path.name}: its grid is not the scan's: {difference}; resample or correct the label map"
                )
                continue
            classes = to_classes(label_map, dict(inputs.classes), ignore=inputs.ignore, name=path.name)
        except MedsegError as error:
            faults.append(str(error))
            continue
        faults += _voxels_nobody_looked_for(classes, inputs, path.name)
        if format_of(path).named and label_map.header is not None:
            warnings += [f"{path.name}: {told}" for told in label_map.header.warnings]
        if not ((classes > 0) & (classes < 255)).any():
            warnings.append(f"{path.name}: the label map is empty, every voxel is background")
        if number == 0:
            first = classes
    if len(inputs.labels) > 1:
        warnings.append(f"has {len(inputs.labels)} label maps, training takes the first")
    return first, tuple(faults), tuple(warnings)


def _voxels_nobody_looked_for(classes: npt.NDArray[np.uint8], inputs: CaseInputs, name: str) -> list[str]:
    """A fault per class that the label map has although the manifest's ``labelled`` leaves it out."""
    if inputs.labelled is None:
        return []
    labels = dict(inputs.classes)
    looked_for = {value for label in inputs.labelled for value in labels[label]}
    faults = []
    for index, (label, values) in enumerate(index_labels(labels).items()):
        count = 0 if index == 0 or looked_for & set(values) else int(np.count_nonzero(classes == index))
        if count:
            found = f"{count:,} voxels of {label}, which the manifest's labelled leaves out"
            faults.append(f"{name}: has {found}, expected none; add it there")
    return faults
