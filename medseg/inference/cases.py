"""Which scans an inference run is asked for: files, folders, lists and manifests become cases with names."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from medseg.config.sections import SeriesSection
from medseg.errors import ManifestError, UsageError
from medseg.imaging import suffix_of
from medseg.imaging.formats import DICOM
from medseg.inference.outputs import OutputSpec
from medseg.manifest import Case, Manifest, load_manifest, resolve
from medseg.preparation.plan import ChannelPlan

_LOG = logging.getLogger(__name__)

_MANIFEST_SUFFIXES = (".json", ".csv")
_LONGEST_NAME = 100
_CHANNEL = re.compile(r"(?P<name>.+)_(?P<channel>\d{4})")
# DICOM objects that lie beside a series and are no image.
_NO_IMAGES = frozenset({"RTSTRUCT", "RTPLAN", "RTDOSE", "SEG", "SR", "PR", "KO", "REG", "DOC"})


@dataclass(frozen=True, kw_only=True)
class InferCase:
    """One scan to segment.

    Attributes:
        id: the mask's name without suffix.
        images: one file or DICOM folder for all channels, or one per channel.
        fault: why it can't be read, where that was known beforehand; such a case is reported and passed over.
        series: short code of the DICOM series that was chosen for it; None leaves that to reading.
        files: names of that series' files in its folder; empty where the whole folder counts.
    """

    id: str
    images: tuple[Path, ...]
    fault: str | None = None
    series: str | None = None
    files: tuple[str, ...] = ()

    def channels(self, channels: Sequence[ChannelPlan], rule: SeriesSection | None) -> tuple[ChannelPlan, ...]:
        """A model's channels with the series that they are read from: the chosen one, else the rule's, else the model's."""
        series = rule if self.series is None else SeriesSection(code=self.series)
        return tuple(c if series is None else c.model_copy(update={"series": series}) for c in channels)

    @property
    def output_name(self) -> str:
        """File name of its mask where nothing else is asked for: a picture's is a PNG, every other scan's a NIfTI file."""
        return f"{self.id}{OutputSpec().suffix(self.images)}"


def manifest_cases(
    manifest: Manifest, cases: Iterable[Case], *, data_root: Path, allow_outside: bool = False
) -> tuple[InferCase, ...]:
    """Cases of a manifest, their files looked up; one whose file is missing or outside carries that as its fault."""
    found = []
    for case in cases:
        try:
            images = resolve(manifest, case, data_root, allow_outside).images
            found.append(InferCase(id=case.id, images=images))
        except ManifestError as error:
            files = tuple(Path(image) for image in case.images)
            found.append(InferCase(id=case.id, images=files, fault="; ".join(error.faults)))
    return tuple(found)


def find_cases(
    inputs: Sequence[Path],
    *,
    channels: Sequence[ChannelPlan],
    data_root: Path | None = None,
    allow_outside: bool = False,
    leave_out: Path | None = None,
    patterns: Sequence[str] = (),
    series: SeriesSection | None = None,
) -> tuple[InferCase, ...]:
    """Cases that the command line names.

    Each input is a scan file, a folder with DICOM slices (one case), a folder that is searched for scans all the way
    down, a ``.txt`` list (a path a line, relative to the list; a tab between channels) or a manifest (``.json``,
    ``.csv``; all its cases). A case is named after its file; one found in a folder after its path below that folder,
    with ``_`` for ``/``, so that names do not depend on what else was found.

    Args:
        inputs: as given.
        channels: of the model's plan; where there are several, files ``NAME_0000, NAME_0001 ...`` are one case, of which a
            colour picture holds red, green and blue; where all lie in one file, ``NAME_0000`` is called ``NAME`` unless
            ``NAME`` or ``NAME_0001`` lies beside it.
        data_root: where a manifest's paths start; None is the manifest's own folder.
        allow_outside: let a manifest's paths leave the data root.
        leave_out: a folder that is not searched: the output, where it lies below an input.
        patterns: of the files (and DICOM folders) in searched folders only those are taken whose name, or path below the
            folder, fits one, as a shell compares them; empty takes all.
        series: which series of a DICOM study in searched folders is its scan; None takes every folder as one series.

    Returns:
        At least one case, in the order of the inputs, sorted within a folder.

    Raises:
        UsageError: an input is missing or of no known kind, holds no scan, or two masks would have one name.
        ManifestError: a manifest is faulty.
    """
    cases: list[InferCase] = []
    files: list[InferCase] = []
    for path in inputs:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; check the path")
        suffix = path.suffix.lower()
        if path.is_dir():
            cases += _joined_channels(_fitting(_folder_cases(path, leave_out, series), path, patterns), channels)
        elif suffix == ".txt":
            cases += _list_cases(path)
        elif suffix in _MANIFEST_SUFFIXES:
            manifest = load_manifest(path)
            everything = (*manifest.training, *manifest.testing)
            root = data_root or path.parent
            cases += manifest_cases(manifest, everything, data_root=root, allow_outside=allow_outside)
        else:
            files.append(InferCase(id=_file_name(path), images=(path,)))
    return refuse_same_names((*cases, *_joined_channels(files, channels)))


def refuse_same_names(cases: Iterable[InferCase], spec: OutputSpec | None = None) -> tuple[InferCase, ...]:
    """The cases, if there are any and no two masks would have the same file name (a folder's, with a file per structure).

    Names that differ only in case count as the same: not every file system tells them apart.

    Raises:
        UsageError: otherwise.
    """
    cases, spec = tuple(cases), spec or OutputSpec()
    if not cases:
        raise UsageError("no scan was found in the input; check the path and the file names' suffixes")
    seen: dict[str, InferCase] = {}
    for case in cases:
        shown = case.id if spec.layout == "per_structure" else f"{case.id}{spec.suffix(case.images)}"
        name = shown.lower()
        if other := seen.get(name):
            raise UsageError(
                f"{shown}: would be the mask of {_shown(other)} and of {_shown(case)}, "
                "expected one scan a name; rename one, or give a manifest with an id per case"
            )
        seen[name] = case
    return cases


def _shown(case: InferCase) -> str:
    return str(case.images[0]) if case.images else case.id


def _case_name(text: str) -> str:
    """``text`` as a case id: other characters become ``_``; what is too long ends in a checksum of the whole."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".-") or "scan"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def _file_name(path: Path) -> str:
    suffix = suffix_of(path)
    if suffix is None:
        raise UsageError(
            f"{path}: is of no known kind, expected a scan, a folder, a list (.txt) or a manifest (.json, .csv)"
        )
    return _case_name(path.name[: len(path.name) - len(suffix)])


def _list_cases(path: Path) -> Iterator[InferCase]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        images = tuple(path.parent / part.strip() for part in line.split("\t"))
        missing = [image for image in images if not image.exists()]
        fault = f"{path.name}:{number}: {missing[0].name}: no such file; check the list" if missing else None
        first = images[0]
        name = _case_name(first.name) if first.is_dir() or fault else _file_name(first)
        yield InferCase(id=name, images=images, fault=fault)


def _folder_cases(top: Path, leave_out: Path | None, series: SeriesSection | None) -> list[InferCase]:
    """Scans below ``top``, sorted by path; DICOM slices in one folder are one of them."""
    cases: list[InferCase] = []
    studies: list[Path] = []
    passed_over = 0
    for folder_name, folders, files in os.walk(top):
        folder = Path(folder_name)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _same(folder / name, leave_out)
        )
        above = folder.relative_to(top).parts
        slices, others = _parted(folder / name for name in sorted(files) if not name.startswith("."))
        if slices and series is not None:
            studies.append(folder)
        elif slices and _is_image(slices[0]):
            name = "_".join(above) or top.resolve().name
            cases.append(InferCase(id=_case_name(name), images=(folder,)))
        passed_over += bool(slices) and series is None and not _is_image(slices[0])
        for path in others:
            if suffix := suffix_of(path):
                name = "_".join((*above, path.name[: len(path.name) - len(suffix)]))
                cases.append(InferCase(id=_case_name(name), images=(path,)))
    if passed_over:
        _LOG.warning("%s: %d DICOM folders hold no images (contours, plans) and are left out", top.name, passed_over)
    if series is not None and studies:
        cases += _study_cases(top, studies, series)
    return sorted(cases, key=lambda case: (case.images[0], case.id))


def _study_cases(top: Path, folders: Sequence[Path], rule: SeriesSection) -> list[InferCase]:
    """A case per study, called after its series' folder, and its series where the folder holds several."""
    from medseg.inference.dicom_cases import choose_series

    def name_of(folder: Path, *more: str) -> str:
        return _case_name("_".join((*(folder.relative_to(top).parts or (top.resolve().name,)), *more)))

    chosen, unread = choose_series(folders, rule, top=top)
    cases = [
        InferCase(
            id=name_of(one.folder, *([one.code] if one.shares_folder else [])),
            images=(one.folder,),
            fault=one.fault or None,
            series=one.code,
            files=one.files,
        )
        for one in chosen
    ]
    return cases + [InferCase(id=name_of(folder), images=(folder,), fault=fault) for folder, fault in unread.items()]


def _fitting(cases: list[InferCase], top: Path, patterns: Sequence[str]) -> list[InferCase]:
    if not patterns:
        return cases

    def fits(image: Path) -> bool:
        names = (image.name, image.relative_to(top).as_posix())
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return [case for case in cases if fits(case.images[0])]


def _same(folder: Path, other: Path | None) -> bool:
    return other is not None and folder.resolve() == other.resolve()


def _parted(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(DICOM slices, other files)."""
    slices: list[Path] = []
    others: list[Path] = []
    for path in paths:
        (slices if _is_slice(path) else others).append(path)
    return slices, others


def _is_slice(path: Path) -> bool:
    """Whether a file is DICOM, by suffix, or by content where it has none."""
    if path.suffix.lower() in DICOM.suffixes:
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _is_image(path: Path) -> bool:
    """Whether a DICOM file is an image; one that can't be parsed is taken for one, so that reading it says why."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
    except (InvalidDicomError, OSError, ValueError):
        return True
    return str(header.get("Modality", "")) not in _NO_IMAGES


def _joined_channels(cases: list[InferCase], channels: Sequence[ChannelPlan]) -> list[InferCase]:
    """Files ``NAME_0000 ...`` of one folder as one case, where the model's channels may lie in files of their own."""
    if len(channels) == 1 or all(channel.scheme == "rgb" for channel in channels):
        return _without_channel(cases)
    groups: dict[tuple[Path, str], dict[int, InferCase]] = {}
    for case in cases:
        match = None if len(case.images) > 1 else _CHANNEL.fullmatch(case.id)
        # Channel -1: a scan whose channels all lie in its one file.
        key, channel = (match["name"], int(match["channel"])) if match else (case.id, -1)
        groups.setdefault((case.images[0].parent, key), {})[channel] = case
    files = _colour_file_count(channels)
    if files > 1:
        return [_joined(name, members, {len(channels), files}) for (_, name), members in groups.items()]
    # A colour picture holds them all, unless there is a grey one for each.
    each = list(range(len(channels)))
    joined = [_joined(name, own, {len(each)}) for (_, name), own in groups.items() if sorted(own) == each]
    alone = [case for own in groups.values() if sorted(own) != each for case in own.values()]
    return sorted([*joined, *_without_channel(alone)], key=lambda case: (case.images[0], case.id))


def _colour_file_count(channels: Sequence[ChannelPlan]) -> int:
    """Files of a case whose red, green and blue lie in one picture, as nnU-Net numbers them."""
    names, count = [channel.name for channel in channels], 0
    while names:
        del names[: 3 if names[:3] == ["red", "green", "blue"] else 1]
        count += 1
    return count


def _without_channel(cases: list[InferCase]) -> list[InferCase]:
    """``NAME_0000`` called ``NAME``, as nnU-Net does, unless ``NAME`` or ``NAME_0001`` lies beside it: then it is a number."""
    taken = {(case.images[0].parent, case.id) for case in cases}
    named = []
    for case in cases:
        match, folder = _CHANNEL.fullmatch(case.id), case.images[0].parent
        alone = match is not None and not {(folder, match["name"]), (folder, f"{match['name']}_0001")} & taken
        if match is not None and match["channel"] == "0000" and alone:
            case = replace(case, id=match["name"])  # noqa: PLW2901
        named.append(case)
    return named


def _joined(name: str, members: Mapping[int, InferCase], counts: Collection[int]) -> InferCase:
    found = sorted(members)
    images = tuple(members[channel].images[0] for channel in found)
    if found == [-1]:
        return members[-1]
    if len(found) in counts and found == list(range(len(found))):
        return InferCase(id=name, images=images)
    listed = ", ".join(image.name for image in images)
    fault = f"{name}: has the channel files {listed}, expected _0000 to _{max(counts) - 1:04d}; add or rename files"
    return InferCase(id=name, images=images[:1], fault=fault)
