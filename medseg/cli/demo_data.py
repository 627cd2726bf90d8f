"""The demo's data set on disk: scans, labels and manifest, made once and kept while they are what was made."""

from __future__ import annotations

import logging
from pathlib import Path

from medseg.durable import atomic_path, read_json, sha256_file, write_json
from medseg.errors import InputError

_LOG = logging.getLogger(__name__)

TRAINING, TESTING = 24, 6
_SEED = 2024
_RECIPE = 1
"""Raised when other voxels are drawn, so that an older data set is made anew."""
_RECORD = "made.json"
_FOLDS = 4


def make_data(folder: Path) -> Path:
    """Makes what is missing or changed of the demo's data set in ``folder``.

    Returns:
        The manifest's path. A complete set is only hashed.

    Raises:
        EnvironmentFault: the folder can't be written.
    """
    known = _known_files(folder)
    files: dict[str, str] = {}
    missing = [number for number in range(TRAINING + TESTING) if not _is_made(folder, number, known)]
    if missing:
        _LOG.info("making %d synthetic scans", len(missing))
    for number in range(TRAINING + TESTING):
        if number in missing:
            _write_patient(folder, number)
        files.update({name: sha256_file(folder / name) for name in _names(number)})
    manifest = folder / "manifest.json"
    if missing or not manifest.is_file():
        _write_manifest(manifest)
    record = {"format": 1, "recipe": _RECIPE, "seed": _SEED, "files": files}
    if files != known:
        write_json(folder / _RECORD, record)
    return manifest


def _names(number: int) -> tuple[str, str]:
    return f"images/demo_{number:03d}.nii.gz", f"labels/demo_{number:03d}.nii.gz"


def _known_files(folder: Path) -> dict[str, str]:
    """File name to SHA-256 of what was made by this recipe; nothing where there is no such record."""
    if not (folder / _RECORD).is_file():
        return {}
    try:
        record = read_json(folder / _RECORD)
        same = (record["format"], record["recipe"], record["seed"]) == (1, _RECIPE, _SEED)
        return {str(name): str(digest) for name, digest in record["files"].items()} if same else {}
    except (InputError, KeyError, TypeError, AttributeError):
        return {}


def _is_made(folder: Path, number: int, known: dict[str, str]) -> bool:
    return all(
        name in known and (folder / name).is_file() and sha256_file(folder / name) == known[name]
        for name in _names(number)
    )


def _write_patient(folder: Path, number: int) -> None:
    import nibabel as nib

    from medseg.cli.demo_scans import make_patient

    patient = make_patient(number, seed=_SEED)
    for name, array in zip(_names(number), (patient.image, patient.labels), strict=True):
        nifti = nib.Nifti1Image(array, patient.affine)
        nifti.set_qform(patient.affine, code="scanner")
        nifti.set_sform(patient.affine, code="scanner")
        nifti.header.set_xyzt_units("mm")
        with atomic_path(folder / name) as temporary:
            nib.save(nifti, temporary)


def _write_manifest(path: Path) -> None:
    from medseg.cli.demo_scans import LABELS
    from medseg.manifest import Case, Channel, Manifest, save_manifest

    cases = []
    for number in range(TRAINING + TESTING):
        image, label = _names(number)
        case_id = f"demo_{number:03d}"
        fold = number % _FOLDS if number < TRAINING else None
        cases.append(Case(id=case_id, patient=case_id, images=(image,), labels=(label,), fold=fold))
    manifest = Manifest(
        name="medseg demo",
        licence="CC0; synthetic, made by medseg demo",
        channels=(Channel(name="MR"),),
        labels={name: (value,) for name, value in LABELS.items()},
        training=tuple(cases[:TRAINING]),
        testing=tuple(cases[TRAINING:]),
    )
    save_manifest(manifest, path)
