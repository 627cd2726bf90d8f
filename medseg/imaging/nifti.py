"""NIfTI files: the header through nibabel, the voxels streamed once, checked and converted on the way."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medseg.errors import ScanError
from medseg.imaging.geometry import spacing_xyz_mm
from medseg.imaging.limits import Limits
from medseg.imaging.nifti_header import NiftiHeader, parse_header
from medseg.imaging.opening import display_name, open_regular
from medseg.imaging.streams import OpenedStream, chunks
from medseg.imaging.values import Extremes, rounded
from medseg.imaging.volume import Affine, Header, LabelMap, Volume

_GZIP_LEVEL = 6
_UNIT_MM = {1: 1000.0, 3: 0.001}


def read_nifti_header(path: Path, *, limits: Limits) -> Header:
    """The checked header; of an uncompressed file also its length."""
    with OpenedStream(open_regular(path), display_name(path)) as opened:
        return _begin(opened, path, limits).header


def read_nifti(path: Path, *, channels: int | None, limits: Limits) -> Volume:
    """Voxels as float32, in the file's own memory order (x fastest). See ``read_volume`` for the rules."""
    name = display_name(path)
    with OpenedStream(open_regular(path), name) as opened:
        parsed = _begin(opened, path, limits)
        check_channels(parsed.header, channels, name)
        flat = np.empty(math.prod(parsed.sizes), np.float32)
        told = (*_fill_floats(opened, parsed, flat), *_finish(opened, limits))
    array = flat.reshape(parsed.sizes, order="F")
    array = array[None] if array.ndim == 3 else np.moveaxis(array, 3, 0)
    header = replace(parsed.header, warnings=(*parsed.header.warnings, *told))
    return Volume(array, header.affine, header)


def read_nifti_labels(path: Path, *, limits: Limits) -> LabelMap:
    """Whole-number voxels in the file's own type; see ``read_label_map`` for the rules."""
    name = display_name(path)
    with OpenedStream(open_regular(path), name) as opened:
        parsed = _begin(opened, path, limits)
        check_channels(parsed.header, 1, name)
        whole = parsed.dtype.kind in "iu" and not parsed.is_scaled
        count = math.prod(parsed.sizes)
        flat = np.empty(count, parsed.dtype.newbyteorder("=") if whole else np.int32)
        for place, values in chunks(opened.stream, parsed.dtype, count, what=_promise(parsed)):
            flat[place] = values if whole else rounded(_scaled(values, parsed), name)
        told = _finish(opened, limits)
    header = replace(parsed.header, warnings=(*parsed.header.warnings, *told))
    return LabelMap(flat.reshape(parsed.header.shape, order="F"), header.affine, header)


def check_channels(header: Header, channels: int | None, name: str) -> None:
    """Refuses a file with another number of channels than asked for (None: one)."""
    if header.channels == (channels or 1):
        return
    if header.channels == 1:
        raise ScanError(
            f"{name}: has 1 channel, expected {channels}; give one file per channel, or correct the manifest's channels"
        )
    expected = f"{channels} channels" if channels and channels > 1 else "one volume"
    raise ScanError(
        f"{name}: is 4-D with {header.channels} volumes, expected {expected}; "
        "declare as many channels, or save the volume you mean as a file"
    )


def _begin(opened: OpenedStream, path: Path, limits: Limits) -> NiftiHeader:
    """The header; the stream then stands at the first voxel."""
    name = display_name(path)
    warnings: list[str] = []
    if opened.gzipped != path.name.lower().endswith(".gz"):
        is_, expected = ("gzip", "an uncompressed") if opened.gzipped else ("not gzip", "a gzipped")
        warnings.append(f"content is {is_} though the name means {expected} file")
    parsed = parse_header(opened.stream, limits=limits)
    if not opened.gzipped:
        promised = parsed.offset + math.prod(parsed.sizes) * parsed.dtype.itemsize
        if opened.size < promised:
            raise ScanError(
                f"{name}: header promises {_promise(parsed)} = {promised - parsed.offset:,} bytes of voxels, "
                f"the file has {max(0, opened.size - parsed.offset):,}; copy or download it again"
            )
    header = replace(parsed.header, warnings=(*warnings, *parsed.header.warnings))
    return replace(parsed, header=header)


def _promise(parsed: NiftiHeader) -> str:
    return f"{'x'.join(str(size) for size in parsed.sizes)} {parsed.header.dtype}"


def _fill_floats(opened: OpenedStream, parsed: NiftiHeader, flat: npt.NDArray[np.float32]) -> tuple[str, ...]:
    """Converts chunk by chunk while it lies in the cache."""
    extremes = Extremes()
    for place, values in chunks(opened.stream, parsed.dtype, flat.size, what=_promise(parsed)):
        target = flat[place]
        with np.errstate(over="ignore", invalid="ignore"):
            target[...] = _scaled(values, parsed) if parsed.is_scaled else values
        extremes.add(target)
    return extremes.judge(opened.stream.name, whole_numbers=parsed.dtype.kind in "iu" and not parsed.is_scaled)


def _scaled(values: npt.NDArray[np.generic], parsed: NiftiHeader) -> npt.NDArray[np.float64]:
    return np.asarray(values, np.float64) * parsed.slope + parsed.inter


def _finish(opened: OpenedStream, limits: Limits) -> tuple[str, ...]:
    trailing = opened.stream.finish(limits.max_trailing_bytes)
    return (f"{trailing:,} bytes after the voxels were ignored",) if trailing else ()


# --- writing ---------------------------------------------------------------------------------------------------------


def write_nifti(
    array: npt.NDArray[np.generic], affine: Affine, path: Path, *, like: Header | None, slope: float = 1
) -> None:
    """Writes ``array`` (X, Y, Z) or (X, Y, Z, C) as it is, x fastest; gzipped where the name says so.

    Equal arrays on equal grids give equal bytes. ``slope`` is what readers multiply the stored numbers by.
    """
    head = _header_bytes(array, affine, like, slope)
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # zlib's own gzip header holds neither a time nor a file name.
            packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
            file.write(packer.compress(head))
            _write_planes(array, lambda data: file.write(packer.compress(data)))
            file.write(packer.flush())
        else:
            file.write(head)
            _write_planes(array, file.write)


def _header_bytes(array: npt.NDArray[np.generic], affine: Affine, like: Header | None, slope: float = 1) -> bytes:
    """A fresh header: the grid and its codes, and nothing else of the scan (no text, no extensions, no intent).

    Codes and unit are those of ``like`` where that is a NIfTI file, else codes 1 (scanner) and mm. A grid that the codes
    (0, 0) can't express gets 1.
    """
    planar = like is not None and like.planar and like.format == "nifti" and array.ndim == 3
    shape = array.shape[:2] if planar else array.shape
    header = (nib.Nifti1Header if max(shape) <= 32767 else nib.Nifti2Header)()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(shape)
    qform_code, sform_code, unit = 1, 1, 2
    if like is not None and like.format == "nifti":
        qform_code, sform_code = like.qform_code, like.sform_code
        unit = like.zooms_unit if like.zooms_unit in (0, 1, 2, 3) else 2
    stored = np.array(affine, np.float64)
    stored[:3] /= _UNIT_MM.get(unit, 1.0)
    header["pixdim"][1:4] = spacing_xyz_mm(stored)
    header.set_slope_inter(slope, 0)
    if max(qform_code, sform_code) <= 0 and not np.allclose(header.get_base_affine(), stored, atol=1e-4):
        qform_code = sform_code = 1
    # Codes that NIfTI does not know are kept as the scan has them, which nibabel's setters refuse; below 0 is none.
    if qform_code > 0:
        header.set_qform(stored, code=1)
    if sform_code > 0:
        header.set_sform(stored, code=1)
    header["qform_code"], header["sform_code"] = qform_code, sform_code
    header["xyzt_units"] = unit
    header["vox_offset"] = header.single_vox_offset
    return bytes(header.binaryblock) + b"\0" * 4


def _write_planes(array: npt.NDArray[np.generic], write: Callable[[memoryview], object]) -> None:
    for channel in [array] if array.ndim == 3 else np.moveaxis(array, 3, 0):
        for z in range(channel.shape[2]):
            plane = np.asfortranarray(channel[:, :, z])
            write(plane.reshape(-1, order="F").data.cast("B"))
