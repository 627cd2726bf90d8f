"""Manifests from the layouts that data sets come in; each builder returns a manifest without folds and what it guessed."""

from medseg.manifest.builders.bids import build_from_bids
from medseg.manifest.builders.decathlon import build_from_decathlon
from medseg.manifest.builders.dicom import build_from_dicom
from medseg.manifest.builders.draft import Built
from medseg.manifest.builders.folders import build_from_folders
from medseg.manifest.builders.nnunet import build_from_nnunet

__all__ = [
    "Built",
    "build_from_bids",
    "build_from_decathlon",
    "build_from_dicom",
    "build_from_folders",
    "build_from_nnunet",
]
