"""Giving a manifest its folds: those it has are kept, and missing ones are stratified by what is known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from medseg.errors import UsageError
from medseg.manifest.cases import Manifest
from medseg.manifest.label_survey import LabelSurvey, class_strata, survey_labels
from medseg.manifest.splits import make_folds, with_folds


def fold_manifest(
    manifest: Manifest,
    *,
    root: Path,
    folds: int,
    seed: int,
    stratify: str = "auto",
    survey: LabelSurvey | None = None,
    resplit: bool = False,
) -> tuple[Manifest, str]:
    """Gives every training case a fold.

    Args:
        manifest: folds that its cases have stay, and cases without one are dealt around them.
        root: where its paths start.
        folds: number of folds; 0 makes none.
        seed: of the dealing.
        stratify: ``classes`` reads the labels for the classes present, ``none`` doesn't, ``auto`` does where the label files
            are small, and any other text is a further column.
        survey: of the labels, where they were read already.
        resplit: forget the folds there are.

    Returns:
        The manifest with folds, and one line that says what was done.

    Raises:
        UsageError: more folds than patients, another number than there is already, or no such column.
    """
    if resplit:
        manifest = with_folds(manifest, {})
    kept = {case.id: case.fold for case in manifest.training if case.fold is not None}
    if kept and len(kept) == len(manifest.training):
        return manifest, f"kept the {len(set(kept.values()))} folds there are"
    if not folds:
        return manifest, "made no folds"
    if kept and max(kept.values()) >= folds:
        raise UsageError(
            f"--folds is {folds}, but there are {max(kept.values()) + 1} folds; give that number or --resplit"
        )
    strata, how = _strata(manifest, root, stratify, survey)
    dealt = make_folds(manifest.training, folds, seed, strata, kept)
    sizes = ", ".join(str(count) for _, count in sorted(Counter(dealt.values()).items()))
    word = f"dealt {len(dealt) - len(kept)} new cases to the" if kept else "made"
    return with_folds(manifest, dealt), f"{word} {folds} folds of {sizes} cases by patient, seed {seed}, {how}"


def _strata(
    manifest: Manifest, root: Path, stratify: str, survey: LabelSurvey | None
) -> tuple[dict[str, list[str]], str]:
    if stratify == "none":
        return {}, "not stratified"
    if stratify not in ("auto", "classes"):
        tags = {case.id: [f"{stratify}={case.extra[stratify]}"] for case in manifest.training if stratify in case.extra}
        if not tags:
            raise UsageError(
                f"--stratify is {stratify!r}, expected auto, classes, none or a further column of the cases"
            )
        return tags, f"stratified by {stratify}"
    if survey is None:
        unlimited = 1 << 62
        limit = {"max_bytes": unlimited} if stratify == "classes" else {}
        survey = survey_labels(manifest.training, root, **limit)
    if not survey.complete:
        return {}, "not stratified, as reading all labels would take long (--stratify classes does it)"
    return class_strata(survey, manifest.labels), "stratified by the classes present"


def keep_folds(manifest: Manifest, previous: Manifest) -> Manifest:
    """``manifest`` with the folds that its cases had in ``previous``; its own stay where ``previous`` has none."""
    had = {case.id: case.fold for case in previous.training}
    cases = (replace(case, fold=had[case.id]) if had.get(case.id) is not None else case for case in manifest.training)
    return replace(manifest, training=tuple(cases))
