"""Reading a case's files, in this process or in one of its own where compiled code decodes them.

NIfTI is decoded by zlib and numpy alone: it is read in the run's own process. NRRD, MHA, pictures and DICOM go through compiled
decoders, which a broken file can bring down or let hang; a process of its own makes that this case's fault. What it costs is
in docs/inference.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from medseg.errors import EnvironmentFault, MedsegError, ScanError
from medseg.imaging import Header, Volume, read_header, spacing_xyz_mm
from medseg.imaging.formats import suffix_of
from medseg.preparation.case import load_case, target_spacing_xyz_mm
from medseg.preparation.plan import ChannelPlan, Plan
from medseg.runner.isolation import Isolated

Isolation = Literal["auto", "always", "never"]

_OWN_CODE = (".nii", ".nii.gz")
_HEADERS_READ_HERE = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_FLOAT_BYTES = 4
# Of whole-number voxels as they lie in DICOM files, which become float32; compressed files hold more than that.
_BYTES_PER_FILE_BYTE = 2


class ReaderFault(Exception):
    """A file brought its reader down, or kept it too long; the text is the case's reason."""


class CaseReader:
    """Reads cases for the threads of a run. Close it at the end.

    Args:
        isolation: "auto" decodes all but NIfTI in a process per thread, "always" everything, "never" nothing.
        timeout_seconds: longest time for one case in such a process; None waits for ever.
    """

    def __init__(self, *, isolation: Isolation = "auto", timeout_seconds: float | None = None) -> None:
        self._isolation = isolation
        self._elsewhere: Isolated[tuple[tuple[Path, ...], tuple[ChannelPlan, ...]], Volume] = Isolated(
            _load, timeout_seconds=timeout_seconds
        )

    def __call__(self, case_id: str, images: Sequence[Path], channels: Sequence[ChannelPlan]) -> Volume:
        """The case as `medseg.preparation.case.load_case` reads it.

        Raises:
            ScanError: a file can't be used.
            ReaderFault: a decoder crashed, was killed or took too long.
        """
        if not self._isolates(images):
            return load_case(images, channels)
        outcome = self._elsewhere(case_id, (tuple(images), tuple(channels)))
        if outcome.value is not None:
            return outcome.value
        if outcome.kind == "refused":
            kind = EnvironmentFault if outcome.exit_code == EnvironmentFault.exit_code else ScanError
            raise kind(outcome.error)
        raise ReaderFault(outcome.error)

    def close(self) -> None:
        """Ends the processes, also in the midst of a case."""
        self._elsewhere.close()

    def _isolates(self, images: Sequence[Path]) -> bool:
        if self._isolation == "auto":
            return any(_suffix(image) not in _OWN_CODE for image in images)
        return self._isolation == "always"


def _suffix(image: Path) -> str | None:
    """Of a file; a folder is DICOM, whatever it is called."""
    return None if os.path.isdir(image) else suffix_of(image)  # noqa: PTH112  (False where it can't be told)


def _load(item: tuple[tuple[Path, ...], tuple[ChannelPlan, ...]]) -> Volume:
    return load_case(*item)


def quick_header(images: Sequence[Path]) -> Header | None:
    """The first image's header where it is read in a moment and by our own code, else None; also where it is faulty."""
    if not images or _suffix(images[0]) not in _HEADERS_READ_HERE:
        return None
    try:
        return read_header(images[0])
    except (MedsegError, OSError):  # reading the scan says it better
        return None


def estimated_bytes(
    images: Sequence[Path], header: Header | None, plan: Plan, *, only: Sequence[Sequence[str]] = ()
) -> int:
    """About how much memory reading and preparing a case takes, from its header, or from file sizes where there is none.

    Args:
        images: files or folders of the case.
        header: from `quick_header`.
        plan: of the model.
        only: per image, names of the files of its folder that count; empty counts all.

    Returns:
        Bytes of the scan as float32, once as read and once as prepared; 0 where nothing can be told, which reading explains.
    """
    if header is None:
        try:
            parts = zip(images, only, strict=True) if only else ((image, ()) for image in dict.fromkeys(images))
            files = [
                file
                for image, names in parts
                for file in ([image] if image.is_file() else image.iterdir())
                if not names or file.name in names
            ]
            return 2 * _BYTES_PER_FILE_BYTE * sum(file.stat().st_size for file in files)
        except OSError:
            return 0
    # Both sorted: the plan's sizes are those of turned axes, and which is which does not matter to their product.
    x, y, z = (float(size) for size in spacing_xyz_mm(header.affine))
    targets = sorted(target_spacing_xyz_mm((x, y, z), plan))
    growth = math.prod(own / target for own, target in zip(sorted((x, y, z)), targets, strict=True))
    return int(_FLOAT_BYTES * len(plan.channels) * math.prod(header.shape) * (1 + growth))


LoadScan = Callable[[str, Sequence[Path], Sequence[ChannelPlan]], Volume]
