"""``medseg export``: one trained model as a bundle, as ONNX, in 8 bits or in a container, each with what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from medseg.config.sections import InferSection
from medseg.errors import ModelError, UsageError
from medseg.exchange.challenge import Settings
from medseg.exchange.container import write_container
from medseg.exchange.folder import Export, is_exported, new_export
from medseg.exchange.parity import Certificate, Scan, compare_engines, given_scan, synthetic_scans
from medseg.imaging import write_volume
from medseg.inference.cases import find_cases
from medseg.inference.ensemble import build_engine
from medseg.inference.experiment import own_section
from medseg.inference.licence import licence_of
from medseg.inference.model import Model, load_models, model_json
from medseg.inference.onnx_network import is_onnx_folder
from medseg.manifest import Case, Manifest, load_manifest, resolve
from medseg.preparation.case import load_case
from medseg.preparation.plan import Plan

CPU = torch.device("cpu")
Files = tuple[tuple[Path, ...], Path | None]
"""Files of a scan, and its label file where there is one."""


@dataclass(frozen=True)
class Checks:
    """Scans that an export is compared with infer on.

    Attributes:
        scans: files and label of each; empty makes synthetic ones.
    """

    scans: tuple[Files, ...] = ()

    @property
    def kind(self) -> str:
        """As the certificate calls them."""
        return "given" if self.scans else "synthetic"

    def each(self, plan: Plan, scratch: Path) -> Iterator[tuple[tuple[Path, ...], Scan]]:
        """Files and scan, one after the other; synthetic ones are written to ``scratch`` and read like any other."""
        if self.scans:
            for images, label in self.scans:
                yield images, given_scan(load_case(images, plan.channels), label=label, plan=plan)
            return
        for number, scan in enumerate(synthetic_scans(plan), start=1):
            path = scratch / f"synthetic_{number}.nii.gz"
            write_volume(scan.volume, path)
            yield (path,), given_scan(load_case([path], plan.channels), label=None, plan=plan)


def named_checks(inputs: Sequence[Path], *, plan: Plan, most: int, data_root: Path | None = None) -> Checks:
    """The scans that ``--cases`` names: files, folders, lists; those of a manifest come with their labels.

    Args:
        inputs: as ``medseg infer`` takes them.
        plan: of the model.
        most: the first so many are taken.
        data_root: where a manifest's paths start; None is its own folder.

    Raises:
        UsageError: nothing is there, or no scan.
        ManifestError: a manifest is faulty.
    """
    found: list[Files] = []
    for path in inputs:
        if path.suffix.lower() not in (".json", ".csv"):
            found += [(case.images, None) for case in find_cases([path], channels=plan.channels)]
            continue
        manifest = load_manifest(path)
        cases = (*manifest.training, *manifest.testing)
        found += manifest_checks(manifest, cases[:most], data_root=data_root or path.parent).scans
    return Checks(tuple(found[:most]))


def manifest_checks(manifest: Manifest, cases: Sequence[Case], *, data_root: Path) -> Checks:
    """Cases of a manifest with their labels, where each has one label file.

    Raises:
        ManifestError: a file is missing.
    """
    files = [resolve(manifest, case, data_root) for case in cases]
    return Checks(tuple((one.images, one.labels[0] if len(one.labels) == 1 else None) for one in files))


def export_networks(model: Path, target: Path, *, int8: bool, checks: Checks) -> Certificate | None:
    """Exports to ONNX, with float32 or 8-bit convolutions.

    Returns:
        The certificate; None where the export was there already.

    Raises:
        MedsegError: as ``export_onnx``; or ``target`` holds something else.
    """
    from medseg.exchange.onnx import export_onnx

    what: Literal["int8", "onnx"] = "int8" if int8 else "onnx"
    models = load_models(model)
    section = _of_masks(own_section(models[0])).model_copy(update={"precision": "float32"})

    def fill(folder: Path, scratch: Path) -> Certificate:
        networks = export_onnx(model, folder, int8=int8)
        infer = build_engine(models, section, device=CPU)
        other = build_engine(load_models(folder), section, device=CPU)
        cases = tuple(compare_engines(infer, other, scan) for _, scan in checks.each(infer.plan, scratch))
        return Certificate(
            what=what,
            model_sha256=_identity(models),
            cases=cases,
            scans=checks.kind,
            limited=not int8,
            facts={"networks": networks},
        )

    return _certified(target, Export(what, _identity(models), {}), fill)


def export_bundle(model: Path, target: Path, *, checks: Checks) -> Certificate | None:
    """Exports to a MONAI bundle and runs it with MONAI's own command.

    Returns:
        The certificate; None where the export was there already.

    Raises:
        MedsegError: as ``write_bundle`` and ``run_bundle``; or ``target`` holds something else.
    """
    from medseg.exchange.bundle import write_bundle

    models = load_models(model)
    section = _own_arithmetic(_of_masks(own_section(models[0])), models[0])
    licence = licence_of(model, model_json(model))

    def fill(folder: Path, scratch: Path) -> Certificate:
        from medseg.exchange.bundle_check import check_bundle

        write_bundle(folder, models, section, name=target.name, licence=licence)
        infer = build_engine(models, section, device=CPU)
        scans = list(checks.each(infer.plan, scratch))
        cases = check_bundle(folder, infer, scans, threads=torch.get_num_threads())
        return Certificate(what="bundle", model_sha256=_identity(models), cases=cases, scans=checks.kind)

    settings = section.model_dump(mode="json")
    return _certified(target, Export("bundle", _identity(models), settings), fill)


def export_container(
    model: Path, target: Path, *, settings: Settings, wheels: Path | None, extras: Sequence[str] = ()
) -> bool:
    """Writes a container's build context.

    Returns:
        False where it was there already.

    Raises:
        MedsegError: as ``write_container``; the model is damaged; or ``target`` holds something else.
    """
    models = load_models(model)
    needed = sorted({*extras, *(["onnx"] if is_onnx_folder(model) else [])})
    names = sorted(path.name for path in wheels.glob("*.whl")) if wheels is not None else []
    export = Export("container", _identity(models), {**settings.plain(), "wheels": names, "extras": needed})
    if is_exported(target, export):
        return False
    with new_export(target, export) as folder:
        write_container(folder, model, settings=settings, wheels=wheels, extras=needed)
    return True


def _certified(target: Path, export: Export, fill: Callable[[Path, Path], Certificate]) -> Certificate | None:
    if is_exported(target, export):
        return None
    with new_export(target, export) as folder, tempfile.TemporaryDirectory() as scratch:
        certificate = fill(folder, Path(scratch))
        certificate.write(folder)
    return certificate


def _identity(models: Sequence[Model]) -> str:
    return " ".join(model.sha256 for model in models)


def _of_masks(section: InferSection) -> InferSection:
    """The section without further maps: votes of members are no scores to compare."""
    return section.model_copy(update={"uncertainty": None, "probabilities": None})


def _own_arithmetic(section: InferSection, model: Model) -> InferSection:
    if getattr(section, "accumulate", "fp32") != "fp32":
        raise ModelError(
            f"{model.folder.name}: its config has infer.accumulate fp16, which is for comparisons with nnU-Net, expected fp32 "
            "in a bundle; set it in the model's config before it is imported or trained"
        )
    return section


def refuse_same_folders(model: Path, targets: Sequence[Path]) -> None:
    """Raises UsageError where two exports, or an export and the model, would be one folder."""
    resolved = [path.resolve() for path in targets]
    if len(set(resolved)) < len(resolved) or model.resolve() in resolved:
        raise UsageError("export: two of the folders are one, expected a folder of its own for each; change one")
