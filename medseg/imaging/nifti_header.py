"""NIfTI-1 and NIfTI-2 headers, every field that decides where or what a voxel is checked before a voxel is read."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from medseg.errors import ScanError, UnsupportedScanError
from medseg.imaging.geometry import spacing_xyz_mm
from medseg.imaging.limits import Limits
from medseg.imaging.opening import describe_content
from medseg.imaging.streams import Stream
from medseg.imaging.volume import Affine, Header

_SUPPORTED = {
    2: "uint8", 4: "int16", 8: "int32", 16: "float32", 64: "float64",
    256: "int8", 512: "uint16", 768: "uint32", 1024: "int64", 1280: "uint64",
}  # fmt: skip
_REFUSED = {
    0: "no type at all", 1: "1-bit", 32: "complex64", 128: "RGB24 (a colour picture)", 1536: "float128",
    1792: "complex128", 2048: "complex256", 2304: "RGBA32 (a colour picture)",
}  # fmt: skip
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAMES = {1: "metre", 3: "micron"}
_LAST_CODE = 5  # NIFTI_XFORM_TEMPLATE_OTHER of nifti1.h
_SHEAR_REFUSED = 0.01
_SHEAR_TOLD = 1e-4


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """A checked header: ``header`` for everybody, the rest to find and scale the voxels.

    Attributes:
        header: shape, affine in mm, channels, codes, warnings.
        dtype: as stored, byte order included.
        sizes: (X, Y, Z) or (X, Y, Z, C) as the voxels lie, x fastest.
        offset: of the first voxel in the (decompressed) file.
        slope, inter: value = slope * stored + inter; (1, 0) where the file says unscaled.
    """

    header: Header
    dtype: np.dtype[np.generic]
    sizes: tuple[int, ...]
    offset: int
    slope: float
    inter: float

    @property
    def is_scaled(self) -> bool:
        """True where stored values are not the values."""
        return (self.slope, self.inter) != (1.0, 0.0)


def parse_header(stream: Stream, *, limits: Limits) -> NiftiHeader:
    """Reads and checks the header at the beginning of ``stream``.

    Raises:
        ScanError: the bytes are no NIfTI header, or a field can't be: sizes, offset, spacing, affine, scaling, extensions.
        UnsupportedScanError: a kind of NIfTI that is not read: complex, colour, 5-D, detached voxels.
    """
    name = stream.name
    first = stream.read_up_to(348)
    if first[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)):
        first += stream.read_up_to(192)
    raw, order = _begin(first, name)
    first += stream.read_up_to(4)
    warnings: list[str] = []
    sizes, planar = _sizes(raw, name, limits)
    dtype = _dtype(raw, name, order)
    offset = _offset(raw, name, raw.single_vox_offset, limits)
    _skip_to_voxels(first, stream, order, offset)
    affine = _affine(raw, name, planar, limits, warnings)
    slope, inter = _scaling(raw, name, warnings)
    header = Header(
        shape=(sizes[0], sizes[1], sizes[2]),
        affine=affine,
        channels=sizes[3] if len(sizes) > 3 else 1,
        format="nifti",
        dtype=dtype.newbyteorder("=").name,
        planar=planar,
        qform_code=int(raw["qform_code"]),
        sform_code=int(raw["sform_code"]),
        zooms_unit=_unit(raw),
        oriented=int(raw["qform_code"]) > 0 or int(raw["sform_code"]) > 0,
        warnings=tuple(warnings),
    )
    return NiftiHeader(header=header, dtype=dtype, sizes=sizes, offset=offset, slope=slope, inter=inter)


def _begin(first: bytes, name: str) -> tuple[Any, str]:
    """(nibabel header, byte order)."""
    for kind, size, offset, length in ((nib.Nifti1Header, 348, 344, 4), (nib.Nifti2Header, 540, 4, 8)):
        for order in "<>":
            if len(first) < size or struct.unpack(order + "i", first[:4])[0] != size:
                continue
            magic = first[offset : offset + length]
            if magic[:4] in (b"ni1\0", b"ni2\0"):
                raise UnsupportedScanError(
                    f"{name}: is a header whose voxels lie in another file, expected a single file; convert it to .nii.gz"
                )
            if magic not in (b"n+1\0", b"n+2\0\r\n\x1a\n"):
                raise ScanError(
                    f"{name}: NIfTI magic is wrong (an Analyze file?), expected n+1 or n+2; convert it to .nii.gz"
                )
            return kind(first[:size], endianness=order, check=False), order
    raise ScanError(
        f"{name}: content is {describe_content(first)}, expected a NIfTI header; give it its right suffix or fetch it again"
    )


def _sizes(raw: Any, name: str, limits: Limits) -> tuple[tuple[int, ...], bool]:
    dims = [int(size) for size in raw["dim"]]
    rank = dims[0]
    if not 1 <= rank <= 7:
        raise ScanError(f"{name}: number of dimensions is {rank}, expected 2 to 4; write the file again")
    sizes = dims[1 : rank + 1]
    for axis, size in enumerate(sizes):
        if size < 1:
            place = "xyzt"[axis] if axis < 4 else f"axis {axis + 1}"
            raise ScanError(
                f"{name}: size along {place} is {size} (dim[{axis + 1}]), expected at least 1; write the file again"
            )
    limits.check_voxels(name, tuple(sizes))
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) == 5 and sizes[3] == 1:  # vectors: NIfTI keeps the fourth axis for time
        del sizes[3]
    if rank < 2 or len(sizes) > 4:
        shape = "x".join(str(size) for size in sizes)
        raise UnsupportedScanError(
            f"{name}: is {len(sizes)}-D ({shape}), expected 2-D to 4-D; save one value a voxel, or channels as 4th axis"
        )
    planar = len(sizes) == 2
    return ((*sizes, 1) if planar else tuple(sizes)), planar


def _dtype(raw: Any, name: str, order: str) -> np.dtype[np.generic]:
    code = int(raw["datatype"])
    if code not in _SUPPORTED:
        words = _REFUSED.get(code, f"code {code}, which NIfTI does not know")
        raise UnsupportedScanError(
            f"{name}: voxel type is {words}, expected whole or real numbers, one a voxel; convert it to int16 or float32"
        )
    dtype: np.dtype[np.generic] = np.dtype(_SUPPORTED[code]).newbyteorder(order)  # type: ignore[arg-type]
    bits = int(raw["bitpix"])
    if bits not in (0, dtype.itemsize * 8):
        raise ScanError(
            f"{name}: bitpix is {bits}, expected {dtype.itemsize * 8} for {_SUPPORTED[code]}; the header is damaged"
        )
    return dtype


def _offset(raw: Any, name: str, least: int, limits: Limits) -> int:
    value = float(raw["vox_offset"])
    if not math.isfinite(value) or value < least or value != int(value):
        raise ScanError(
            f"{name}: voxels begin at byte {value:g} (vox_offset), expected a whole number from {least}; "
            "the header is damaged"
        )
    if value > limits.max_header_bytes:
        raise ScanError(
            f"{name}: voxels begin at byte {int(value):,} (vox_offset), expected at most {limits.max_header_bytes:,}; "
            "the header is damaged"
        )
    return int(value)


def _skip_to_voxels(first: bytes, stream: Stream, order: str, offset: int) -> None:
    """Takes what lies before the voxels; of extensions only the sizes are looked at, never the content."""
    head = first + stream.read_up_to(offset - len(first))
    if len(head) < offset:
        raise ScanError(
            f"{stream.name}: voxels begin at byte {offset:,} (vox_offset), the file has {len(head):,}; "
            "copy or download it again"
        )
    place = len(first)
    while first[-4] != 0 and place + 8 <= offset:
        size = struct.unpack(order + "i", head[place : place + 4])[0]
        if size == 0:
            break
        if size < 8 or size > offset - place:
            raise ScanError(
                f"{stream.name}: header extension has {size:,} bytes, expected 8 to {offset - place:,}; "
                "the header is damaged"
            )
        place += size


def _scaling(raw: Any, name: str, warnings: list[str]) -> tuple[float, float]:
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    if not math.isfinite(slope):
        if not math.isnan(slope):
            warnings.append("scl_slope is not finite and was ignored: values are taken as stored")
        return 1.0, 0.0
    if not math.isfinite(inter):
        raise ScanError(f"{name}: scl_inter is {inter}, expected a finite number; correct the header")
    return slope, inter


def _unit(raw: Any) -> int:
    return int(raw["xyzt_units"]) & 7


def _affine(raw: Any, name: str, planar: bool, limits: Limits, warnings: list[str]) -> Affine:
    unit = _unit(raw)
    if unit not in _UNIT_MM:
        warnings.append(f"spatial unit has code {unit}, which is none; millimetres assumed")
    scale = _UNIT_MM.get(unit, 1.0)
    if unit in _UNIT_NAMES:
        warnings.append(f"spatial unit is {_UNIT_NAMES[unit]}; converted to millimetres")
    raw = raw.copy()
    _check_pixdim(raw, name, planar)
    affine = _best_affine(raw, name, planar, scale, warnings)
    affine[:3] *= scale
    affine[3] = (0, 0, 0, 1)
    check_affine(affine, name, limits, warnings)
    return affine


def _check_pixdim(raw: Any, name: str, planar: bool) -> None:
    zooms = [float(size) for size in raw["pixdim"]]
    rank = 2 if planar else 3
    for axis in range(rank):
        if not math.isfinite(zooms[axis + 1]) or zooms[axis + 1] == 0:
            raise ScanError(
                f"{name}: spacing {'xyz'[axis]} is {zooms[axis + 1]:g} (pixdim[{axis + 1}]), expected a positive number; "
                "correct the header"
            )
    cleaned = [-1.0 if zooms[0] < 0 else 1.0, *(abs(size) for size in zooms[1:])]
    if planar and not (math.isfinite(cleaned[3]) and cleaned[3] > 0):
        cleaned[3] = 1.0
    raw["pixdim"] = cleaned


def _best_affine(raw: Any, name: str, planar: bool, scale: float, warnings: list[str]) -> Affine:
    has_sform, has_qform = int(raw["sform_code"]) > 0, int(raw["qform_code"]) > 0
    warnings += [
        f"{form}_code is {int(raw[f'{form}_code'])}, which NIfTI does not know; taken as {'a' if known else 'no'} {form}"
        for form, known in (("sform", has_sform), ("qform", has_qform))
        if not 0 <= int(raw[f"{form}_code"]) <= _LAST_CODE
    ]
    sform = np.array(raw.get_sform(), np.float64)
    if planar and has_sform and not sform[:3, 2].any():
        normal = np.cross(sform[:3, 0], sform[:3, 1])
        sform[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    if not has_sform and not has_qform:
        warnings.append("orientation is unknown (no sform, no qform): taken from the voxel sizes alone")
        return np.array(raw.get_base_affine(), np.float64)
    if not has_qform:
        return sform
    try:
        qform = np.array(raw.get_qform(), np.float64)
    except (ValueError, HeaderDataError) as error:
        if not has_sform:
            raise ScanError(
                f"{name}: qform quaternion has a norm above 1, expected at most 1; correct the header"
            ) from error
        warnings.append("qform quaternion has a norm above 1 and was ignored; sform used")
        return sform
    if not has_sform:
        return qform
    apart = _corner_distance(sform - qform, [int(size) for size in raw["dim"][1:4]]) * scale
    if not apart <= 0.25 * float(spacing_xyz_mm(sform).min()) * scale:
        warnings.append(f"sform and qform differ by {apart:.3g} mm; sform used")
    return sform


def _corner_distance(difference: npt.NDArray[np.float64], sizes: list[int]) -> float:
    last = np.maximum(np.array(sizes, np.float64) - 1, 0)
    corners = np.array([[*(last * (n & 1, n >> 1 & 1, n >> 2)), 1.0] for n in range(8)])
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.square((corners @ difference.T)[:, :3]).sum(axis=1)).max())


def check_affine(affine: Affine, name: str, limits: Limits, warnings: list[str]) -> None:
    """Refuses an affine (4, 4) in mm that no grid can have; appends a warning where axes are nearly not at right angles.

    Raises:
        ScanError: not finite, singular, sheared, or a spacing outside the limits.
    """
    if not np.isfinite(affine).all():
        raise ScanError(f"{name}: affine has entries that are not finite, expected numbers; correct the header")
    spacing = spacing_xyz_mm(affine)
    if not np.isfinite(spacing).all():
        raise ScanError(f"{name}: affine has entries too large for a spacing, expected mm; correct the header")
    if (spacing == 0).any() or abs(np.linalg.det(affine[:3, :3] / np.where(spacing == 0, 1, spacing))) < 1e-3:
        raise ScanError(f"{name}: affine has no inverse (axes that coincide or vanish); correct the header's sform")
    if spacing.min() < limits.min_spacing_mm or spacing.max() > limits.max_spacing_mm:
        sizes = " x ".join(f"{size:.3g}" for size in spacing)
        raise ScanError(
            f"{name}: spacing is {sizes} mm, expected {limits.min_spacing_mm:g} to {limits.max_spacing_mm:g} mm; "
            "correct the header (its unit, too)"
        )
    cosines = np.abs((affine[:3, :3] / spacing).T @ (affine[:3, :3] / spacing) - np.eye(3)).max()
    degrees = math.degrees(math.asin(min(1.0, float(cosines))))
    if cosines > _SHEAR_REFUSED:
        raise ScanError(
            f"{name}: axes are {degrees:.2g} degrees off right angles (a sheared affine), expected less than "
            f"{math.degrees(_SHEAR_REFUSED):.1g}; resample it to a regular grid"
        )
    if cosines > _SHEAR_TOLD:
        warnings.append(f"axes are {degrees:.2g} degrees off right angles; distances treat them as right angles")
