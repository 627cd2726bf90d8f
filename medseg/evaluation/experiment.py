"""Sets of cases to score: a manifest's against a folder of predictions, or two folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.config.sections import DataSection, EvaluateSection, InferSection
from medseg.config.series import SeriesSection, rules_of_channels
from medseg.errors import InputError, ManifestError
from medseg.evaluation.flags import parse_labels, parse_tolerance
from medseg.evaluation.matching import CasePaths, match_folders, match_references
from medseg.evaluation.protocol import Protocol, make_protocol
from medseg.evaluation.raters import Policy
from medseg.evaluation.subgroups import Groups, manifest_groups
from medseg.manifest import Case, Manifest, resolve

_RATERS = {
    "first": "each was scored against its first",
    "majority": "each was scored against their majority",
    "staple": "each was scored against their STAPLE consensus",
    "each": "each was scored against every one of them, and its scores are the means",
}


@dataclass(frozen=True, kw_only=True)
class CaseSet:
    """Cases that are scored together.

    Attributes:
        name: for folders and tables, e.g. "fold_0".
        pairs: their files.
        protocol: how to score them.
        notes: sentences for the report.
        inputs: name to sha256 of what else was read.
        scans: case id to the image a picture of its result is drawn on; empty where none is known.
        series: which series of a scan that is a DICOM folder of several; None takes the only one.
        patients: case id to its patient; empty where each case is another's, or nobody knows.
        groups: column of the manifest to case id to its value there, for tables per subgroup.
        raters: what a case with several references is scored against: first, majority, staple or each.
    """

    name: str
    pairs: Sequence[CasePaths]
    protocol: Protocol
    notes: Sequence[str] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    scans: Mapping[str, Path] = field(default_factory=dict)
    series: SeriesSection | None = None
    patients: Mapping[str, str] = field(default_factory=dict)
    groups: Groups = field(default_factory=dict)
    raters: Policy = "first"


def first_series(manifest: Manifest, *, infer: InferSection, data: DataSection) -> SeriesSection | None:
    """The rule by which inference read the first channel, which is the one that pictures show.

    Raises:
        ConfigError: a rule is for a channel that the manifest has not.
    """
    names = [channel.name for channel in manifest.channels]
    first, *_ = rules_of_channels(infer.series, names, key="infer.series")
    return first or rules_of_channels(data.series, names, key="data.series")[0]


def as_scored(cases: CaseSet, output: Path) -> CaseSet:
    """The set with the consensus that cases of several references were scored against, where ``output`` has one."""
    if cases.raters not in ("majority", "staple"):
        return cases
    made = {pair.case_id: output / "references" / f"{pair.case_id}.nii.gz" for pair in cases.pairs if pair.raters}
    pairs = (
        replace(pair, reference=made[pair.case_id]) if pair.case_id in made and made[pair.case_id].is_file() else pair
        for pair in cases.pairs
    )
    return replace(cases, pairs=tuple(pairs))


def manifest_pairs(
    manifest: Manifest,
    cases: Sequence[Case],
    *,
    predictions: Path,
    data_root: Path,
    allow_outside: bool = False,
    every_rater: bool = True,
) -> tuple[CasePaths, ...]:
    """Pairs ``cases`` with the label maps in ``predictions`` that are named after them, sorted by case id.

    A case with several references (raters) is paired with the first, and keeps all of them. A case without any is left out;
    one with a reference that is missing or lies outside the data root keeps that as its fault.

    Args:
        manifest: the manifest that ``cases`` are of.
        cases: which of its cases.
        predictions: folder with ``<case id>.nii.gz``, ``.png`` ...
        data_root: where the manifest's paths start.
        allow_outside: whether paths may lead out of it.
        every_rater: whether a case needs all of its references; else the first is enough, and it keeps those that are there.

    Raises:
        InputError: no case has a reference, the folder is missing, holds two files of one case, or nothing matches.
    """
    references: dict[str, tuple[Path, ...]] = {}
    faults: dict[str, str] = {}
    for case in cases:
        if not case.labels:
            continue
        found, missing = _references(manifest, case, data_root, allow_outside)
        if missing and (every_rater or case.labels[0] in missing):
            faults[case.id] = "; ".join(missing.values())
        else:
            references[case.id] = found
    if not references:
        reason = next(iter(faults.values()), "none of the cases has a label")
        raise InputError(f"{manifest.path.name}: no reference can be read ({reason}); expected labels to score against")
    known = [case.id for case in cases]
    firsts = {case_id: paths[0] for case_id, paths in references.items()}
    labelled = {case.id: case.labelled for case in cases}
    pairs = (
        replace(pair, labelled=labelled.get(pair.case_id), raters=_several(references.get(pair.case_id, ())))
        for pair in match_references(predictions, firsts, known=known)
    )
    broken = (CasePaths(case_id=i, prediction=None, reference=None, fault=fault) for i, fault in faults.items())
    return tuple(sorted((*pairs, *broken), key=lambda pair: pair.case_id))


def _references(
    manifest: Manifest, case: Case, data_root: Path, allow_outside: bool
) -> tuple[tuple[Path, ...], dict[str, str]]:
    """A case's references that can be reached, and why the others can't."""
    found: list[Path] = []
    missing: dict[str, str] = {}
    for label in case.labels:
        try:
            # Only references are needed: scoring goes on where the scans themselves have been moved away.
            found += resolve(manifest, replace(case, images=(), labels=(label,)), data_root, allow_outside).labels
        except ManifestError as error:
            missing[label] = "; ".join(error.faults)
    return tuple(found), missing


def _several(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return paths if len(paths) > 1 else ()


def manifest_set(
    name: str,
    manifest: Manifest,
    case_ids: Iterable[str],
    section: EvaluateSection,
    *,
    predictions: Path,
    data_root: Path,
    allow_outside: bool = False,
) -> CaseSet | None:
    """Cases of a manifest against a folder of predictions; None where none of them has a label.

    Raises:
        InputError: see :func:`manifest_pairs`.
        UsageError: the section's tolerances do not fit the manifest's labels, or it names a column that no case has.
    """
    wanted = set(case_ids)
    cases = [case for case in (*manifest.training, *manifest.testing) if case.id in wanted]
    if not any(case.labels for case in cases):
        return None
    protocol = make_protocol(
        labels=manifest.labels,
        ignore=manifest.ignore,
        tolerance_mm=section.tolerance_mm,
        empty=section.empty,
        aliases=manifest.aliases,
        metrics=section.metrics,
    )
    pairs = manifest_pairs(
        manifest,
        cases,
        predictions=predictions,
        data_root=data_root,
        allow_outside=allow_outside,
        every_rater=section.raters != "first",
    )
    every = (*manifest.training, *manifest.testing)
    return CaseSet(
        name=name,
        pairs=pairs,
        protocol=protocol,
        notes=rater_notes(cases, pairs, section.raters),
        inputs={"manifest": manifest.sha256},
        patients={case.id: case.patient for case in every},
        groups=manifest_groups(every, section.subgroups),
        raters=section.raters,
    )


def rater_notes(cases: Sequence[Case], pairs: Sequence[CasePaths], raters: Policy) -> tuple[str, ...]:
    """What a reader should know about the cases of several references: how many, scored against what, and what is lost."""
    several = {case.id: len(case.labels) for case in cases if len(case.labels) > 1}
    if not several:
        return ()
    kept = {pair.case_id: max(1, len(pair.raters)) for pair in pairs if pair.fault is None}
    lost = sum(count - kept.get(case_id, count) for case_id, count in several.items())
    notes = [f"{len(several)} cases have several references; {_RATERS[raters]}"]
    if lost:
        notes.append(f"{lost} references beside the first can't be reached: the raters' agreement is without them")
    return tuple(notes)


def folder_set(
    name: str,
    *,
    predictions: Path,
    references: Path,
    labels: str,
    ignore: int | None = None,
    tolerance: str | None = None,
    empty: str | None = None,
    metrics: str | None = None,
) -> CaseSet:
    """Two folders of label maps, with labels and tolerance as the command line spells them.

    Raises:
        UsageError: labels, tolerance, policy or metrics make no sense.
        InputError: see :func:`~medseg.evaluation.matching.match_folders`.
    """
    protocol = make_protocol(
        labels=parse_labels(labels, ignore=ignore),
        ignore=ignore,
        tolerance_mm=parse_tolerance(tolerance) if tolerance is not None else 1.0,
        empty=empty or "standard",
        metrics=[name.strip() for name in metrics.split(",") if name.strip()] if metrics else (),
    )
    return CaseSet(name=name, pairs=match_folders(predictions, references), protocol=protocol)
