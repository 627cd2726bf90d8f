"""Which scans an inference run is asked for: files, folders, lists and manifests become cases with names."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from medseg.config.series import SeriesRules
from medseg.errors import ManifestError, UsageError
from medseg.imaging import suffix_of
from medseg.imaging.opening import display_name
from medseg.inference.case_lists import is_list, listed_cases
from medseg.inference.folder_search import search_folder
from medseg.inference.infer_case import InferCase, case_name, exists, file_name, with_rules
from medseg.inference.outputs import OutputSpec
from medseg.manifest import Case, Manifest, load_manifest, resolve
from medseg.preparation.plan import ChannelPlan
from medseg.runner.sidecar import sidecar_path

__all__ = [
    "InferCase",
    "find_cases",
    "manifest_cases",
    "refuse_output",
    "refuse_overwriting",
    "refuse_replacing",
    "refuse_same_names",
]

_MANIFEST_SUFFIXES = (".json", ".csv")
_CHANNEL = re.compile(r"(?P<name>.+)_(?P<channel>\d{4})")


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
    series: SeriesRules | None = None,
) -> tuple[InferCase, ...]:
    """Cases that the command line names.

    Each input is a scan file, a folder with DICOM slices (one case), a folder that is searched for scans all the way
    down, a list of scans (see ``case_lists``; ``.txt``, ``.csv``, ``.json``) or a manifest (``.json``, ``.csv``; all its
    cases). A case is named after its file; one found in a folder after its path below that folder, with ``_`` for ``/``, so
    that names do not depend on what else was found.

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
        series: ``infer.series``; see `with_rules`. With rules, a DICOM study in searched folders is a case of the series
            that they mean, one for all channels or one each; without any, every folder with slices is one series.

    Returns:
        At least one case, in the order of the inputs, sorted within a folder.

    Raises:
        UsageError: an input is missing or of no known kind, holds no scan, is the folder to be left out, or two masks would
            have one name.
        ManifestError: a manifest is faulty.
        ConfigError: ``series`` is for a channel that is not there.
    """
    channels = with_rules(channels, series)
    cases: list[InferCase] = []
    files: list[InferCase] = []
    for path in inputs:
        if not exists(path):
            raise UsageError(f"{path}: no such file or folder; check the path")
        suffix = path.suffix.lower()
        if path.is_dir():
            if leave_out is not None and os.path.realpath(path) == os.path.realpath(leave_out):
                raise UsageError(_own_folder(leave_out))
            scans, studies = _folder_cases(path, leave_out, channels)
            joined = _joined_channels(_fitting(scans, path, patterns), channels)
            cases += sorted((*joined, *_fitting(studies, path, patterns)), key=lambda case: (case.images[0], case.id))
        elif is_list(path):
            cases += listed_cases(path, channels)
        elif suffix in _MANIFEST_SUFFIXES:
            manifest = load_manifest(path)
            everything = (*manifest.training, *manifest.testing)
            root = data_root or path.parent
            cases += manifest_cases(manifest, everything, data_root=root, allow_outside=allow_outside)
        else:
            files.append(InferCase(id=file_name(path), images=(path,)))
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


def refuse_output(
    cases: Sequence[InferCase], output: Path, spec: OutputSpec, class_names: Sequence[str] = (), *, overwrite: bool
) -> None:
    """All that is asked of the masks' names and folder before a run begins.

    Raises:
        UsageError: as `refuse_same_names`, `refuse_overwriting` and, unless ``overwrite``, `refuse_replacing`.
    """
    refuse_same_names(cases, spec)
    refuse_overwriting(cases, output, spec, class_names)
    if not overwrite:
        refuse_replacing(cases, output, spec, class_names)


def refuse_overwriting(
    cases: Sequence[InferCase], output: Path, spec: OutputSpec, class_names: Sequence[str] = ()
) -> None:
    """Refuses an output folder in which a mask would take a scan's place, or lie in a scan's own DICOM folder.

    Args:
        cases: of a run.
        output: folder of the masks; need not be there.
        spec: which files masks are written into.
        class_names: background first; they name the files where every structure has its own.

    Raises:
        UsageError: nothing may be written there.
    """
    inputs = {os.path.realpath(image) for case in cases for image in case.images}
    if os.path.realpath(output) in inputs:
        raise UsageError(_own_folder(output))
    for case in cases:
        for name in spec.names(case.id, case.images, class_names):
            if os.path.realpath(output / name) in inputs:
                raise UsageError(
                    f"{output / name}: is a scan of this run and would be a mask's file, expected masks in a folder of "
                    "their own; choose another --output"
                )


def refuse_replacing(
    cases: Sequence[InferCase], output: Path, spec: OutputSpec, class_names: Sequence[str] = ()
) -> None:
    """Refuses an output folder with files of masks' names that no run wrote, such as labels that somebody drew.

    A folder that a run wrote has a report; in it a mask without its sidecar is what a kill left.

    Args:
        cases: of a run.
        output: folder of the masks; need not be there.
        spec: which files masks are written into.
        class_names: background first; they name the files where every structure has its own.

    Raises:
        UsageError: a file would be lost.
    """
    if not os.path.isdir(output) or any(output.glob("report*.jsonl")):  # noqa: PTH112  (False behind a closed folder)
        return
    for case in cases:
        names = spec.names(case.id, case.images, class_names)
        found = next((name for name in names if (output / name).exists()), None)
        if found is not None and not sidecar_path(output / names[0]).exists():
            raise UsageError(
                f"{output / found}: is there and was not written by medseg infer, expected a folder without it; choose "
                "another --output, or --overwrite it"
            )


def _own_folder(output: Path) -> str:
    return f"{output}: holds the scans, expected a folder of its own for the masks; give --output {output / 'masks'}"


def _shown(case: InferCase) -> str:
    return str(case.images[0]) if case.images else case.id


def _folder_cases(
    top: Path, leave_out: Path | None, channels: Sequence[ChannelPlan]
) -> tuple[list[InferCase], list[InferCase]]:
    """Scans below ``top``, sorted by path, and cases that are whole already: DICOM studies with a series per channel.

    DICOM slices in one folder are one scan, or several studies where the channels have rules.
    """

    def case_of(path: Path, fault: str | None = None) -> InferCase:
        name = "_".join(path.relative_to(top).parts) or top.resolve().name
        suffix = suffix_of(path) or ""
        if suffix and not os.path.isdir(path):  # noqa: PTH112  (False where it can't be told)
            name = name[: -len(suffix)]
        return InferCase(id=case_name(name), images=(path,), fault=fault)

    content = search_folder(top, leave_out)
    cases = [case_of(path) for path in content.files]
    cases += [case_of(path, fault) for path, fault in content.unread.items()]
    whole: list[InferCase] = []
    if all(channel.series is None for channel in channels):
        cases += [case_of(scan) for folder in content.dicom for scan in content.scans_in.get(folder, [folder])]
    elif content.dicom:
        from medseg.inference.dicom_cases import study_cases

        each = len({channel.series for channel in channels}) > 1
        (whole if each else cases).extend(study_cases(content.dicom, channels if each else channels[:1], top=top))
    return sorted(cases, key=lambda case: (case.images[0], case.id)), whole


def _fitting(cases: list[InferCase], top: Path, patterns: Sequence[str]) -> list[InferCase]:
    if not patterns:
        return cases

    def fits(image: Path) -> bool:
        names = (image.name, image.relative_to(top).as_posix())
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return [case for case in cases if any(map(fits, case.images))]


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
        those = [members[channel] for channel in found]
        fault = next((one.fault for one in those if one.fault), None)
        chosen = all(one.series for one in those)
        return InferCase(
            id=name,
            images=images,
            fault=fault,
            series=tuple(one.series[0] for one in those) if chosen else (),
            files=tuple(one.files[0] for one in those) if chosen else (),
        )
    listed = ", ".join(map(display_name, images))
    fault = f"{name}: has the channel files {listed}, expected _0000 to _{max(counts) - 1:04d}; add or rename files"
    return InferCase(id=name, images=images[:1], fault=fault)
