"""Every fault of every case, found before any work is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medseg.manifest.cases import Case, Manifest
from medseg.preparation.facts import CaseFacts

CHECKS_FORMAT = 1


@dataclass(frozen=True, order=True)
class Finding:
    """One thing about one case: ``severity`` "error" (the case is bad) or "warning", and a sentence."""

    case_id: str
    severity: Literal["error", "warning"]
    what: str

    def row(self) -> dict[str, str]:
        """As a row of a table."""
        return {"case": self.case_id, "severity": self.severity, "what": self.what}


@dataclass(frozen=True)
class Checks:
    """What was found, sorted by case; ``case_count`` is of all cases looked at."""

    findings: tuple[Finding, ...]
    case_count: int

    @property
    def bad_cases(self) -> tuple[str, ...]:
        """Ids of the cases with an error, sorted."""
        return tuple(sorted({f.case_id for f in self.findings if f.severity == "error"}))

    def plain(self) -> dict[str, Any]:
        """What ``checks.json`` holds."""
        return {
            "format": CHECKS_FORMAT,
            "cases": self.case_count,
            "bad_cases": list(self.bad_cases),
            "findings": [finding.row() for finding in self.findings],
        }


def check_set(manifest: Manifest, facts: Mapping[str, CaseFacts], unread: Mapping[str, Sequence[str]]) -> Checks:
    """All findings of a data set.

    Args:
        manifest: its training and testing cases.
        facts: of every case that could be looked at.
        unread: case id to sentences, for cases that could not be looked at.
    """
    findings = [Finding(case_id, "error", sentence) for case_id, lines in unread.items() for sentence in lines]
    for case_id, fact in facts.items():
        findings += [Finding(case_id, "error", sentence) for sentence in fact.faults]
        findings += [Finding(case_id, "warning", sentence) for sentence in fact.warnings]
    findings += _without_label(manifest.training)
    findings += _mixed_ranks(manifest, facts)
    findings += _patient_leaks(manifest)
    findings += _duplicates(manifest, facts)
    count = len(manifest.training) + len(manifest.testing)
    return Checks(tuple(sorted(set(findings))), count)


def _without_label(cases: Iterable[Case]) -> list[Finding]:
    return [
        Finding(
            case.id, "error", "has no label map, expected one for a training case; add it or move the case to testing"
        )
        for case in cases
        if not case.labels
    ]


def _mixed_ranks(manifest: Manifest, facts: Mapping[str, CaseFacts]) -> list[Finding]:
    known = {c.id: facts[c.id].planar for c in manifest.training if c.id in facts and facts[c.id].geometry is not None}
    pictures = sum(known.values())
    if pictures in (0, len(known)):
        return []
    planar_is_odd = pictures <= len(known) / 2
    kind, rule = ("a picture", "volumes") if planar_is_odd else ("a volume", "pictures")
    return [
        Finding(
            case_id, "error", f"is {kind}, expected the same rank as the others, which are {rule}; make two manifests"
        )
        for case_id, planar in known.items()
        if planar == planar_is_odd
    ]


def _split_of(manifest: Manifest) -> dict[str, str]:
    """Case id to the split it is in: "testing", "fold 2", or "training" for a case without fold."""
    splits = {c.id: "training" if c.fold is None else f"fold {c.fold}" for c in manifest.training}
    return splits | {c.id: "testing" for c in manifest.testing}


def _patient_leaks(manifest: Manifest) -> list[Finding]:
    """Cases of a patient who is in more than one split. A case without fold always trains, so it shares with any fold."""
    splits, by_patient = _split_of(manifest), defaultdict(list)
    for case in (*manifest.training, *manifest.testing):
        by_patient[case.patient].append(case.id)
    findings = []
    for ids in by_patient.values():
        for case_id, other in _strays(ids, splits):
            findings.append(
                Finding(
                    case_id,
                    "error",
                    f"is in {splits[case_id]}, but its patient also has {other} in {splits[other]}; "
                    "a patient must be in one split only: correct the manifest",
                )
            )
    return findings


def _duplicates(manifest: Manifest, facts: Mapping[str, CaseFacts]) -> list[Finding]:
    splits, by_content = _split_of(manifest), defaultdict(list)
    for case_id, fact in facts.items():
        if fact.voxels_sha256 and case_id in splits:
            by_content[fact.voxels_sha256].append(case_id)
    findings = []
    for ids in by_content.values():
        if len(ids) < 2:
            continue
        strays = dict(_strays(ids, splits))
        for case_id, other in strays.items():
            findings.append(
                Finding(
                    case_id,
                    "error",
                    f"is in {splits[case_id]} and has the same voxels as {other} in {splits[other]}; "
                    "a scan must be in one split only: remove one",
                )
            )
        kept = sorted(set(ids) - strays.keys())
        findings += [Finding(i, "warning", f"has the same voxels as {kept[0]}") for i in kept[1:]]
    return findings


def _strays(ids: Sequence[str], splits: Mapping[str, str]) -> list[tuple[str, str]]:
    """Cases to leave out so that the rest is in one split, each with a case of the split that is kept.

    Testing is kept whole; of folds, the one with the first id. (A case without fold is a split of its own here: it trains
    whichever fold is held out.)
    """
    ordered = sorted(ids)
    testing = [i for i in ordered if splits[i] == "testing"]
    anchor = testing[0] if testing else ordered[0]
    return [(i, anchor) for i in ordered if splits[i] != splits[anchor]]
