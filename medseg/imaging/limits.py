"""Bounds on what a file may claim, checked from its header before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.errors import ScanError


@dataclass(frozen=True)
class Limits:
    """What a scan may be at most.

    Attributes:
        max_voxels: values in one file, channels counted (2^30 float32 are 4 GiB).
        max_picture_pixels: pixels of a 2D picture; a 1 MB PNG can claim 9e8 of them.
        max_trailing_bytes: bytes after the voxels that are read through to reach a gzip checksum.
        max_header_bytes: bytes before the voxels.
        min_spacing_mm, max_spacing_mm: voxel side.
        max_files: files in a DICOM folder.
    """

    max_voxels: int = 2**30
    max_picture_pixels: int = 2**27
    max_trailing_bytes: int = 2**26
    max_header_bytes: int = 2**26
    min_spacing_mm: float = 0.001
    max_spacing_mm: float = 1000.0
    max_files: int = 100_000

    def check_voxels(self, name: str, sizes: tuple[int, ...]) -> int:
        """The product of ``sizes``, in Python's unbounded whole numbers.

        Raises:
            ScanError: a size is below 1, or the product above ``max_voxels``.
        """
        count = 1
        for axis, size in enumerate(sizes):
            if size < 1:
                raise ScanError(f"{name}: size along {_axis(axis)} is {size}, expected at least 1; make the file again")
            count *= size
        if count > self.max_voxels:
            shape = "x".join(str(size) for size in sizes)
            raise ScanError(
                f"{name}: header declares {shape} = {count:.2g} voxels, expected at most {self.max_voxels:,}; "
                "crop the scan, or raise max_voxels if the file is what you want"
            )
        return count


def _axis(axis: int) -> str:
    return "xyz"[axis] if axis < 3 else f"axis {axis + 1}"
