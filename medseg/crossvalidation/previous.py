"""The first stage of a cascade, as its cross-validation left it: an out-of-fold mask per case, checked before it is used."""

from __future__ import annotations

from pathlib import Path

from medseg.config.sections import PrepareSection
from medseg.crossvalidation.candidates import Candidate, folds_of, refuse_leaks, refuse_unfinished
from medseg.crossvalidation.outoffold import mask_folder
from medseg.durable import sha256_file
from medseg.errors import InputError
from medseg.imaging import index_labels, suffix_of
from medseg.inference.runs import latest_run, run_name
from medseg.manifest import Case, Manifest
from medseg.preparation.case import expand_channels
from medseg.preparation.plan_file import read_plan
from medseg.preparation.previous import PreviousMask, PreviousStage
from medseg.runner.sidecar import read_sidecar, sidecar_path

_SIDECAR = sidecar_path(Path("x")).name.removeprefix("x")


def previous_stage(section: PrepareSection, manifest: Manifest, *, config_folder: Path) -> PreviousStage | None:
    """What ``prepare`` needs of the first stage; None where the section asks for no cascade.

    Args:
        section: of the config.
        manifest: of both stages; it must have folds.
        config_folder: where ``prepare.previous_work`` starts.

    Raises:
        InputError: the first stage is not there or not finished, is of another data set, was trained on a case that it
            would draw the mask of, or a mask is missing, was changed, or is not its model's.
        UsageError: the manifest has fewer than two folds.
    """
    if section.previous_work is None:
        return None
    work = config_folder / section.previous_work
    _refuse_other_data(work, manifest)
    candidate, folds = Candidate(name=work.name, works={work.name: work}), folds_of(manifest)
    _refuse_without_fold(manifest)
    refuse_unfinished([candidate], list(folds))
    refuse_leaks([candidate], manifest, folds)
    models = {run_name(fold): sha256_file(latest_run(work, fold) / "model" / "model.json") for fold in folds}
    masks: dict[str, PreviousMask] = {}
    faults: list[str] = []
    for fold, cases in folds.items():
        folder, model = mask_folder(candidate, fold, work), models[run_name(fold)]
        there = _masks_in(folder)
        for case in cases:
            found = _mask_of(there.get(case.id), folder, case, model)
            if isinstance(found, PreviousMask):
                masks[case.id] = found
            else:
                faults.append(found)
    if faults:
        more = f" (and {len(faults) - 1} more cases)" if len(faults) > 1 else ""
        raise InputError(f"prepare.previous_work: {faults[0]}{more}; run medseg crossval there")
    return PreviousStage(masks=masks, models=models)


def _refuse_other_data(work: Path, manifest: Manifest) -> None:
    path = work / "prepared" / "plan.yaml"
    if not path.is_file():
        raise InputError(
            f"prepare.previous_work: {work.name} holds no prepared/plan.yaml, expected a work folder of 3d_lowres; prepare and "
            "train --fold all there first"
        )
    plan = read_plan(path)
    if plan.previous_channels:
        raise InputError(
            f"prepare.previous_work: {work.name} is a cascade's second stage itself, expected its first; name the folder of "
            "3d_lowres"
        )
    names = [channel.name for channel in expand_channels(manifest.channels)]
    for what, own, wanted in (
        ("labels", list(index_labels(plan.labels).items()), list(index_labels(manifest.labels).items())),
        ("channels", [channel.name for channel in plan.channels], names),
    ):
        if own != wanted:
            raise InputError(
                f"prepare.previous_work: {what} of {work.name} are {own}, expected the manifest's {wanted}; train it on this "
                "manifest"
            )


def _refuse_without_fold(manifest: Manifest) -> None:
    without = [case.id for case in manifest.training if case.fold is None]
    if without:
        raise InputError(
            f"{manifest.path.name}: {len(without)} training case(s) ({without[0]}, ...) have no fold, expected one each: no "
            "model can draw their mask without having seen them; see medseg manifest split"
        )


def _mask_of(path: Path | None, folder: Path, case: Case, model: str) -> PreviousMask | str:
    """The mask that ``model`` drew of the case, or what is wrong with it."""
    sidecar = None if path is None else read_sidecar(path)
    if path is None or sidecar is None:
        return f"{case.id}: has no mask in predictions/{folder.name}, expected its out-of-fold mask"
    if sidecar.origin.settings.get("models") != model:
        return f"{case.id}: its mask was drawn by another model than {folder.name} has now, expected that one's"
    if not path.is_file() or sha256_file(path) != sidecar.output_sha256:
        return f"{case.id}: its mask was changed or lost after it was written, expected it as it was"
    inputs = sidecar.origin.inputs
    scans = tuple(inputs[name] for name in sorted(inputs) if name.startswith("image_"))
    return PreviousMask(path=path, scan_sha256s=scans)


def _masks_in(folder: Path) -> dict[str, Path]:
    """Case id to mask, whatever its format: every file that a sidecar stands beside."""
    masks = sorted(path.with_name(path.name.removesuffix(_SIDECAR)) for path in folder.glob(f"*{_SIDECAR}"))
    return {mask.name[: len(mask.name) - len(suffix_of(mask) or mask.suffix)]: mask for mask in masks}
