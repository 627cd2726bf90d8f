"""Small scans with known content, on every kind of grid that scanners and tools produce.

Content is defined in the patient (world) and in the grid's own extent, so that what a test expects can be worked out on
paper: an ellipsoid organ (1) with an off-centre lesion (2) inside it, each at least 8 voxels across, on a bright gradient.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.imaging import Header, LabelMap, Volume, write_label_map, write_volume

LABELS: dict[str, tuple[int, ...]] = {"background": (0,), "organ": (1,), "lesion": (2,)}


@dataclass(frozen=True, eq=False)
class Scan:
    """One synthetic scan.

    Attributes:
        name: of its grid.
        image: (X, Y, Z) float32, outside the organ about 100, organ 300, lesion 500, noise SD 10.
        labels: (X, Y, Z) uint8, values of ``LABELS``.
        affine: (4, 4) float64 RAS+ mm.
        planar: True for a 2D picture.
    """

    name: str
    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]
    planar: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.shape[0], self.image.shape[1], self.image.shape[2]

    @property
    def header(self) -> Header:
        return Header(shape=self.shape, affine=self.affine, planar=self.planar, qform_code=1, sform_code=1)

    @property
    def volume(self) -> Volume:
        return Volume(self.image[None], self.affine, self.header)

    @property
    def label_map(self) -> LabelMap:
        return LabelMap(self.labels, self.affine, self.header)


def rotation(x_degrees: float, y_degrees: float, z_degrees: float) -> npt.NDArray[np.float64]:
    """(3, 3): first about x, then y, then z."""
    result = np.eye(3)
    for axis, degrees in enumerate((x_degrees, y_degrees, z_degrees)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        first, second = ((1, 2), (2, 0), (0, 1))[axis]
        turn[first, first] = turn[second, second] = c
        turn[second, first], turn[first, second] = s, -s
        result = turn @ result
    return result


def affine_of(
    spacing_xyz_mm: Sequence[float],
    axes: npt.NDArray[np.float64] | None = None,
    origin_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> npt.NDArray[np.float64]:
    """(4, 4) from voxel sizes, unit axes as columns (default: RAS) and the first voxel's centre."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if axes is None else axes) * np.asarray(spacing_xyz_mm)
    affine[:3, 3] = origin_mm
    return affine


_PERMUTED = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
_OBLIQUE = rotation(12, -17, 25)

_GRIDS: dict[str, tuple[tuple[int, int, int], npt.NDArray[np.float64], bool]] = {
    "ras": ((30, 34, 26), affine_of((1, 1, 1), None, (-14, -17, -9)), False),
    "lps": ((30, 34, 26), affine_of((0.9, 0.9, 1.4), np.diag([-1.0, -1, 1]), (13, 15, -18)), False),
    "oblique": ((28, 32, 26), affine_of((1.1, 0.9, 1.6), _OBLIQUE, (-20.5, 11.25, 40)), False),
    "oblique_flipped": ((28, 32, 26), affine_of((1, 1, 2), _OBLIQUE * [-1, 1, -1], (30, -5, 12)), False),
    "left_handed": ((32, 28, 26), affine_of((1.2, 0.8, 1.5), np.diag([-1.0, 1, 1]), (9, 8, 7)), False),
    "oblique_left_handed": ((28, 30, 26), affine_of((0.9, 1.3, 1), _OBLIQUE * [1, 1, -1], (1, 2, 3)), False),
    "permuted": ((26, 34, 30), affine_of((1.5, 0.8, 1), _PERMUTED, (-3, 60, -44)), False),
    "permuted_flipped": ((26, 34, 30), affine_of((1.4, 1, 0.7), _PERMUTED * [-1, -1, 1], (3, 6, 4)), False),
    "anisotropic": ((40, 44, 24), affine_of((0.5, 0.5, 5), None, (-100, -120, 300)), False),
    "anisotropic_oblique": ((40, 24, 44), affine_of((0.6, 6, 0.6), _OBLIQUE[:, [0, 2, 1]], (7, 8, 9)), False),
    "single_slice": ((40, 36, 1), affine_of((0.8, 0.8, 4), _OBLIQUE, (5, 6, 7)), False),
    "picture": ((48, 40, 1), np.eye(4), True),
}
GRIDS = tuple(_GRIDS)
"""Twelve grids: oblique, flipped, left-handed, permuted, 10:1 anisotropic, single slice, 2D."""


def scan(grid: str = "ras", *, seed: int = 0) -> Scan:
    """The synthetic scan on one of ``GRIDS``; ``seed`` moves the lesion a little and draws the noise."""
    shape, affine, planar = _GRIDS[grid]
    return scan_on(shape, affine, name=grid, seed=seed, planar=planar)


def scan_on(
    shape: tuple[int, int, int],
    affine: npt.NDArray[np.float64],
    *,
    name: str = "scan",
    seed: int = 0,
    planar: bool = False,
) -> Scan:
    """The synthetic scan on any grid; axes of 22 voxels or more hold objects at least 8 voxels across."""
    rng = np.random.default_rng(seed)
    centre = np.array([0.08, -0.07, 0.06]) + rng.uniform(-0.03, 0.03, 3)
    across = [(np.arange(size) + 0.5) / size - 0.5 if size > 1 else np.zeros(1) for size in shape]
    u = np.meshgrid(*across, indexing="ij")
    organ = sum(np.square(part / 0.38) for part in u) < 1
    away = sum(
        np.square((part - (middle if size > 1 else 0)) / 0.21)
        for part, middle, size in zip(u, centre, shape, strict=True)
    )
    labels = organ.astype(np.uint8)
    labels[organ & (away < 1)] = 2
    image = 100.0 + 200.0 * labels + 15.0 * u[0] + 10.0 * u[1] + rng.normal(0, 10, shape)
    return Scan(name, image.astype(np.float32), labels, np.asarray(affine, np.float64), planar)


def world_points(shape: tuple[int, int, int], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(X, Y, Z, 3) world coordinates in mm of every voxel centre."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def rendered(
    shape: tuple[int, int, int],
    affine: npt.NDArray[np.float64],
    value: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
) -> npt.NDArray[np.float32]:
    """(X, Y, Z) float32: ``value`` of the world points (..., 3) at every voxel centre."""
    return np.asarray(value(world_points(shape, affine)), np.float32)


def blob(centre_mm: Sequence[float], sigma_mm: float) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """A Gaussian marker of height 1000 at a world point, for ``rendered``; ``centroid_mm`` finds it again."""

    def value(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 1000.0 * np.exp(-0.5 * np.square((points - np.asarray(centre_mm)) / sigma_mm).sum(axis=-1))

    return value


def centroid_mm(array: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """World centre of mass (3,) of what exceeds half of the array's (X, Y, Z) maximum."""
    weights = np.where(array > 0.5 * array.max(), array, 0).astype(np.float64)
    points = world_points((array.shape[0], array.shape[1], array.shape[2]), affine)
    return (points * weights[..., None]).sum(axis=(0, 1, 2)) / weights.sum()


def reoriented(original: Scan, permutation: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Scan:
    """The same scan stored in another axis order: no voxel moves in the patient. 6 x 8 choices give the 48 orientations."""
    affine = np.asarray(original.affine, np.float64)
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, (old, flip) in enumerate(zip(permutation, flips, strict=True)):
        matrix[old, new] = -1 if flip else 1
        matrix[old, 3] = original.shape[old] - 1 if flip else 0
    slices = tuple(slice(None, None, -1 if flip else None) for flip in flips)
    return Scan(
        f"{original.name} {permutation} {flips}",
        np.ascontiguousarray(original.image.transpose(permutation)[slices]),
        np.ascontiguousarray(original.labels.transpose(permutation)[slices]),
        affine @ matrix,
        original.planar,
    )


def dice(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], value: int) -> float:
    """Overlap of one label; 1.0 where neither has it."""
    total = int((a == value).sum() + (b == value).sum())
    return 2.0 * int(((a == value) & (b == value)).sum()) / total if total else 1.0


def write_scan(made: Scan, folder: Path, *, case_id: str = "case", suffix: str = ".nii.gz") -> tuple[Path, Path]:
    """Writes ``images/<id><suffix>`` and ``labels/<id><suffix>`` below ``folder``; returns both paths.

    Pictures (.png, .tif) need a planar scan; their image is rounded to 8 bits.
    """
    image, labels = folder / "images" / f"{case_id}{suffix}", folder / "labels" / f"{case_id}{suffix}"
    if suffix in (".png", ".tif"):
        pixels = np.clip(np.rint(made.image / 4), 0, 255).astype(np.float32)
        write_volume(Volume(pixels[None], made.affine), image, dtype="uint8")
        write_label_map(made.label_map, labels, like=None)
    else:
        write_volume(made.volume, image, like=made.header)
        write_label_map(made.label_map, labels, like=made.header)
    return image, labels


def write_dataset(
    folder: Path, *, cases: int = 6, grid: str = "ras", suffix: str = ".nii.gz", folds: int = 3, channel: str = "MR"
) -> Path:
    """Writes ``cases`` scans with labels and the manifest ``folder/dataset.json`` over them; returns the manifest's path."""
    training = []
    for number in range(cases):
        case_id = f"case_{number:02d}"
        image, labels = write_scan(scan(grid, seed=number), folder, case_id=case_id, suffix=suffix)
        training.append(
            {
                "id": case_id,
                "patient": f"p{number:02d}",
                "image": image.relative_to(folder).as_posix(),
                "label": labels.relative_to(folder).as_posix(),
                "fold": number % folds,
            }
        )
    manifest = folder / "dataset.json"
    content = {
        "format": 1,
        "name": "synthetic",
        "licence": "CC0-1.0",
        "channels": [channel],
        "labels": {name: values[0] for name, values in LABELS.items()},
        "training": training,
        "testing": [],
    }
    manifest.write_text(json.dumps(content, indent=2) + "\n")
    return manifest
