"""What the demo's trained network is measured against: grey values alone, and the same network before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg.cli.demo_scans import LABELS
from medseg.evaluation.baselines import Band, BandSearch
from medseg.evaluation.overlap import count_overlap, dice
from medseg.imaging import read_label_map, read_volume
from medseg.manifest import Case, Manifest, resolve

# Enough that the best band between two of them is within a thousandth of the best there is.
_EDGES = 257

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.integer]
Scores = dict[str, float]
"""Class name to mean Dice over cases."""


class Scan(NamedTuple):
    """``image`` (X, Y, Z) float32, of mean 0 and SD 1, and ``labels`` (X, Y, Z) as in the file."""

    image: FloatArray
    labels: LabelArray


def read_scans(manifest: Manifest, cases: Sequence[Case], *, data_root: Path) -> list[Scan]:
    """Scans with labels; each scan's own mean and SD are taken out, as ``prepare`` does for MR."""
    scans = []
    for case in cases:
        paths = resolve(manifest, case, data_root)
        image = read_volume(paths.images[0]).array[0]
        image = (image - image.mean()) / image.std()
        scans.append(Scan(image, read_label_map(paths.labels[0]).array))
    return scans


def band_scores(training: Sequence[Scan], testing: Sequence[Scan]) -> Scores:
    """Dice on ``testing`` of the band of grey values that is best on ``training``, chosen for each class by itself."""
    scores = {}
    for name, value in LABELS.items():
        if value:
            band = best_band(training, value)
            found = [_dice(band.mask(scan.image), scan.labels == value) for scan in testing]
            scores[name] = float(np.mean(found))
    return scores


def best_band(scans: Sequence[Scan], value: int) -> Band:
    """The band whose voxels have the highest mean Dice with the voxels labelled ``value``."""
    search = BandSearch(
        np.quantile(np.concatenate([scan.image.ravel() for scan in scans]), np.linspace(0, 1, _EDGES)[1:-1])
    )
    for scan in scans:
        search.add(scan.image, scan.labels == value)
    return search.best().band


def untrained_scores(model_folder: Path, manifest: Manifest, *, data_root: Path) -> Scores:
    """Dice on the testing cases of the trained model's network with the random weights that its training began from."""
    import torch

    from medseg.inference.model import load_model
    from medseg.inference.predictor import Predictor
    from medseg.networks.build import build_network

    model = load_model(model_folder)
    torch.manual_seed(int(model.info["training"]["seed"]))
    network = build_network(model.info["architecture"]).eval()
    predictor = Predictor(dataclasses.replace(model, network=network), device=torch.device("cpu"))
    found: dict[str, list[float]] = {name: [] for name, value in LABELS.items() if value}
    for case in manifest.testing:
        paths = resolve(manifest, case, data_root)
        prediction = predictor.predict(paths.images[0]).array
        truth = read_label_map(paths.labels[0]).array
        for name, dices in found.items():
            dices.append(_dice(prediction == LABELS[name], truth == LABELS[name]))
    return {name: float(np.mean(dices)) for name, dices in found.items()}


def _dice(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    return dice(count_overlap(prediction, truth))
