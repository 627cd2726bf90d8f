"""Cases: what a data set's files are, whether the manifest makes sense, and who is held out when."""

from medseg.manifest.cases import Case, Channel, Manifest
from medseg.manifest.files import load_manifest, save_manifest
from medseg.manifest.paths import ResolvedCase, resolve
from medseg.manifest.splits import folds_from_splits, kfold_splits_nnunet, make_folds, patient_leaks, with_folds

__all__ = [
    "Case",
    "Channel",
    "Manifest",
    "ResolvedCase",
    "folds_from_splits",
    "kfold_splits_nnunet",
    "load_manifest",
    "make_folds",
    "patient_leaks",
    "resolve",
    "save_manifest",
    "with_folds",
]
