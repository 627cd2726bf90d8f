"""NRRD and MetaImage: their grid through SimpleITK, which is imported only when such a file comes, their voxels read here."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.geometry import spacing_xyz_mm
from medseg.imaging.itk_headers import Claim, check_length, meta_claim, nrrd_claim, read_voxels
from medseg.imaging.limits import Limits
from medseg.imaging.nifti import check_channels
from medseg.imaging.nifti_header import check_affine
from medseg.imaging.opening import display_name
from medseg.imaging.values import judged, rounded
from medseg.imaging.volume import Affine, Header, LabelMap, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk_header(path: Path, *, limits: Limits) -> Header:
    """The checked header; uncompressed data's length is checked too."""
    claim, io = _claim(path)
    check_length(claim, display_name(path), limits)
    return _header(_information(path, io), claim, path, limits)


def read_itk(path: Path, *, channels: int | None, limits: Limits) -> Volume:
    """Voxels as float32; several values a voxel, or a fourth axis, are channels. See ``read_volume``."""
    array, header = _read(path, limits)
    check_channels(header, channels, display_name(path))
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    told = judged(floats, display_name(path), whole_numbers=array.dtype.kind in "iu")
    header = replace(header, warnings=(*header.warnings, *told))
    return Volume(floats, header.affine, header)


def read_itk_labels(path: Path, *, limits: Limits) -> LabelMap:
    """Whole-number voxels in the file's own type. See ``read_label_map``."""
    array, header = _read(path, limits)
    check_channels(header, 1, display_name(path))
    labels = array[0] if array.dtype.kind in "iu" else rounded(array[0], display_name(path))
    return LabelMap(labels, header.affine, header)


def read_layers(path: Path, limits: Limits) -> tuple[npt.NDArray[Any], Header]:
    """All values of every voxel, (C, X, Y, Z) in the file's type, x fastest in memory, and the header."""
    return _read(path, limits)


def write_itk(array: npt.NDArray[Any], affine: Affine, path: Path, *, like: Header | None) -> None:
    """Writes ``array`` (X, Y, Z) or (X, Y, Z, C), compressed; of rank 2 where ``like`` is such a file."""
    import SimpleITK

    planar = like is not None and like.planar and like.format in ("nrrd", "metaimage") and array.ndim == 3
    rank = 2 if planar else 3
    stored = array[:, :, 0].T if planar else array.transpose(2, 1, 0, *range(3, array.ndim))
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(stored), isVector=array.ndim == 4)
    lps = _LPS_TO_RAS @ affine
    spacing = spacing_xyz_mm(affine)
    image.SetSpacing([float(size) for size in spacing[:rank]])
    image.SetOrigin([float(place) for place in lps[:rank, 3]])
    image.SetDirection([float(cosine) for cosine in (lps[:3, :3] / spacing)[:rank, :rank].ravel()])
    with _named_for_itk(path) as name:
        SimpleITK.WriteImage(image, name, useCompression=True, imageIO=_claim_kind(path)[1])


def _claim_kind(path: Path) -> tuple[Any, str]:
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        return nrrd_claim, "NrrdImageIO"
    return meta_claim, "MetaImageIO"


def _claim(path: Path) -> tuple[Claim, str]:
    parse, io = _claim_kind(path)
    claim: Claim = parse(path)
    return claim, io


def _read(path: Path, limits: Limits) -> tuple[npt.NDArray[Any], Header]:
    """((C, X, Y, Z) in the file's type, x fastest in memory; header)."""
    claim, io = _claim(path)
    check_length(claim, display_name(path), limits)
    header = _header(_information(path, io), claim, path, limits)
    array, told = read_voxels(claim, display_name(path), limits)
    if claim.channel_axis is not None:
        array = np.moveaxis(array, claim.channel_axis, 0)
    else:
        array = np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None]
    return array.reshape(*array.shape, 1) if array.ndim == 3 else array, replace(
        header, warnings=(*header.warnings, *told)
    )


def _information(path: Path, io: str) -> Any:
    """SimpleITK's reader, which has read the header."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(io)
    try:
        with _named_for_itk(path) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise _not_decoded(path) from error
    return reader


@contextlib.contextmanager
def _named_for_itk(path: Path) -> Iterator[str]:
    """A name of the file that is UTF-8; SimpleITK crashes on any other, so such a file is reached by a link."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / f"scan{path.suffix}"
            link.symlink_to(path.absolute())
            yield str(link)
    else:
        yield str(path)


def _not_decoded(path: Path) -> ScanError:
    return ScanError(f"{display_name(path)}: can't be decoded; write it again, or convert it to .nii.gz")


def _header(image: Any, claim: Claim, path: Path, limits: Limits) -> Header:
    """From SimpleITK's reader, which must see the sizes that we do."""
    name = display_name(path)
    rank, components = int(image.GetDimension()), int(image.GetNumberOfComponents())
    size = [int(count) for count in image.GetSize()]
    if rank not in (2, 3, 4) or (rank == 4 and components > 1):
        raise UnsupportedScanError(
            f"{name}: is {rank}-D with {components} values a voxel, expected 2-D to 4-D; convert it"
        )
    if tuple(size) != claim.spatial_sizes or components * math.prod(size) != math.prod(claim.sizes):
        raise ScanError(f"{name}: sizes are read as {size}, expected those of its header; convert it to .nii.gz")
    affine = np.eye(4)
    kept = min(rank, 3)
    spacing = np.array(image.GetSpacing())[:kept]
    affine[:kept, :kept] = np.array(image.GetDirection()).reshape(rank, rank)[:kept, :kept] * spacing
    affine[:kept, 3] = image.GetOrigin()[:kept]
    affine = _LPS_TO_RAS @ affine
    warnings = list(claim.warnings)
    check_affine(affine, name, limits, warnings)
    shape = (*size, 1)[:3]
    return Header(
        shape=(shape[0], shape[1], shape[2]),
        affine=affine,
        channels=size[3] if rank == 4 else components,
        format="nrrd" if path.suffix.lower() in (".nrrd", ".nhdr") else "metaimage",
        dtype=claim.dtype.newbyteorder("=").name,
        planar=rank == 2,
        oriented=claim.oriented,
        warnings=tuple(warnings),
    )
