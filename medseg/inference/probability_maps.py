"""Further files of a case: each class' probability, and how uncertain each voxel is."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.durable import atomic_path, sha256_file
from medseg.imaging.nifti import write_nifti
from medseg.imaging.volume import Affine
from medseg.inference.calibration import Calibration
from medseg.inference.disagreement import VotingEngine
from medseg.inference.ensemble import MaskMaker
from medseg.inference.uncertainty import tempered, voxel_entropy
from medseg.preparation.grid import Grid

_LEVEL = 3
_STEPS = 255


def map_names(case_id: str, *, probabilities: str | None, uncertainty: str | None) -> tuple[str, ...]:
    """File names of the further files that are asked for, below the output folder.

    Args:
        case_id: of the case.
        probabilities: of the ``infer`` section.
        uncertainty: likewise.
    """
    suffix = {"uint8": ".nii.gz", "fp16": ".npz"}
    names = [f"maps/{case_id}_probabilities{suffix[probabilities]}"] if probabilities else []
    return (*names, *([f"maps/{case_id}_{uncertainty}.nii.gz"] if uncertainty else []))


def write_maps(
    engine: MaskMaker,
    scores: Any,
    grid: Any,
    names: Sequence[str],
    *,
    folder: Path,
    calibration: Calibration | None = None,
) -> dict[str, str]:
    """Writes the probabilities and the uncertainty that ``engine.section`` asks for, each file atomically.

    Probabilities are those of the network, with the calibration's temperature where there is one; outside the crop
    background is certain. They lie on the scan's own grid: (X, Y, Z, K) in NIfTI, K without background, in steps of 1/255
    (``scl_slope``); in ``.npz`` the arrays ``probabilities`` (X, Y, Z, K) float16, ``affine`` (4, 4) and ``class_names``.
    Entropy and disagreement are NIfTI (X, Y, Z), 0 to 1 in steps of 1/255. All are gathered in a file on the disk, so that
    they take no more memory than one slab.

    Args:
        engine: whose scores they are.
        scores: of the case.
        grid: likewise.
        names: from `map_names`.
        folder: the output folder.
        calibration: for its temperature.

    Returns:
        SHA-256 by file name, for the sidecar's ``extra["files"]``.
    """
    if not names:
        return {}
    first: Grid = grid[0] if isinstance(grid, tuple) else grid
    classes, regions = engine.class_names[1:], engine.plan.regions is not None
    temperature = calibration.temperature if calibration is not None else 1.0
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    stores = [_Store(folder / "maps", first, name, len(classes)) for name in names]
    of_votes = [store for store in stores if store.name.endswith("_disagreement.nii.gz")]
    of_scores = [store for store in stores if store not in of_votes]
    for store in of_votes:
        for where, slab in voting(engine).disagreement_slabs(scores, first):
            store.put(where, slab)
    for where, slab in engine.slabs(scores, grid) if of_scores else ():
        for store in of_scores:
            if store.of_probabilities:
                warm = tempered(slab, temperature, regions=regions)
                store.put(where, warm if regions else warm[1:])
            else:
                store.put(where, voxel_entropy(slab, regions=regions)[None])
    for store in stores:
        store.write(folder / store.name, first, classes)
    return {name: sha256_file(folder / name) for name in names}


def voting(engine: Any) -> VotingEngine:
    """The engine whose members vote: this one, or a cascade's second stage."""
    own = getattr(engine, "second", engine)
    assert isinstance(own, VotingEngine)
    return own


class _Store:
    """(K, Z, Y, X) on the scan's own grid, filled by slabs, in a file without a name: a kill leaves nothing behind."""

    def __init__(self, folder: Path, grid: Grid, name: str, classes: int) -> None:
        self.name, self.of_probabilities = name, "_probabilities." in name
        x, y, z = grid.original_shape
        self._halves = name.endswith(".npz")
        shape = (classes if self.of_probabilities else 1, z, y, x)
        with tempfile.TemporaryFile(dir=folder) as file:  # the map holds it open by itself
            self.array = np.memmap(file, dtype=np.float16 if self._halves else np.uint8, mode="w+", shape=shape)
        box = tuple(map(slice, grid.crop_start, grid.crop_stop))
        backwards = tuple(slice(None, None, -1) if flip else slice(None) for flip in grid.flips)
        # Views of the file as the network's grid has its crop.
        self._targets = [
            channel.transpose(2, 1, 0).transpose(grid.permutation)[backwards][box] for channel in self.array
        ]

    def put(self, where: slice, slab: npt.NDArray[np.float32]) -> None:
        """Stores values in [0, 1] of some planes of the crop, (K, n, Y, Z)."""
        for target, values in zip(self._targets, slab, strict=True):
            target[where] = values if self._halves else np.rint(values * _STEPS)

    def write(self, path: Path, grid: Grid, class_names: Sequence[str]) -> None:
        """The file itself, compressed, atomically."""
        affine = np.array(grid.original_affine)
        with atomic_path(path) as temporary:
            if self._halves:
                self._write_npz(temporary, affine, class_names)
            else:
                own = self.array.transpose(3, 2, 1, 0)
                write_nifti(
                    own if self.of_probabilities else own[..., 0], affine, temporary, like=None, slope=1 / _STEPS
                )

    def _write_npz(self, path: Path, affine: Affine, class_names: Sequence[str]) -> None:
        """As ``numpy.savez_compressed``, without a copy of the array in memory."""
        channels, z, y, x = self.array.shape
        about = {"descr": "<f2", "fortran_order": True, "shape": (x, y, z, channels)}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
            with archive.open(zipfile.ZipInfo("probabilities.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, about)
                for plane in self.array.reshape(-1, y, x):
                    member.write(np.ascontiguousarray(plane).data.cast("B"))
            for name, array in (("affine", affine), ("class_names", np.array(class_names))):
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
