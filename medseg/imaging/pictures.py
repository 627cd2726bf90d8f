"""2D pictures (PNG, TIFF, JPEG) through Pillow, told apart by what their pixels mean rather than how they look.

Axes: X is the column (to the right), Y the row (downwards), Z has one entry; arrays are (C, X, Y, 1). A picture has no
patient coordinates: its affine is the identity, so world x is the column and world y the row, at 1 mm a pixel. The RAS
letters mean nothing there, and no flip or permutation ever happens to a picture.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings as python_warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.errors import InputError, LabelError, ScanError, UnsupportedScanError
from medseg.imaging.limits import Limits
from medseg.imaging.opening import describe_content, display_name, open_regular
from medseg.imaging.values import judged, rounded
from medseg.imaging.volume import Affine, Header, LabelMap, Volume

if TYPE_CHECKING:
    from PIL import Image

_KINDS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
_GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_COLOUR = ("RGB", "RGBA", "P")
_ALPHA_TOLD = "alpha channel is opaque everywhere and was dropped"


def read_picture_header(path: Path, *, limits: Limits) -> Header:
    """Size and channels without decoding a pixel; alpha is not counted (it must prove opaque on reading)."""
    with open_regular(path) as file:
        return _opened(file, path, limits)[1]


def read_picture(path: Path, *, channels: int | None, limits: Limits) -> Volume:
    """Pixels as float32 (C, X, Y, 1): grey 1 channel, RGB 3, values as stored (0 to 255, 0 to 65535, 1 bit as 0 and 1)."""
    name = display_name(path)
    with open_regular(path) as file:
        image, header, bits = _opened(file, path, limits)
        if image.mode == "P":
            image = _decoded(image, name).convert("RGBA" if "transparency" in image.info else "RGB")
        pixels = _pixels(image, bits, name)
    pixels, told = _without_alpha(pixels, channels, name)
    if pixels.shape[2] != (channels or pixels.shape[2]):
        raise ScanError(
            f"{name}: has {pixels.shape[2]} channel{'s' * (pixels.shape[2] > 1)}, expected {channels}; "
            "save it so, or correct the manifest's channels"
        )
    array = np.asarray(pixels.transpose(2, 1, 0)[..., None], np.float32)
    told = (*told, *judged(array, name, whole_numbers=pixels.dtype.kind in "iu"))
    header = replace(header, channels=pixels.shape[2], warnings=(*header.warnings, *told))
    return Volume(array, header.affine, header)


def read_picture_labels(path: Path, *, limits: Limits) -> LabelMap:
    """Pixel values (X, Y, 1) as stored; of a palette picture the index, not the colour."""
    name = display_name(path)
    with open_regular(path) as file:
        image, header, bits = _opened(file, path, limits)
        if header.format == "jpeg":
            raise LabelError(
                f"{name}: is JPEG, whose values change when saved, expected labels as PNG or TIFF; save it so"
            )
        pixels = _pixels(image, bits, name)
    pixels, told = _without_alpha(pixels, None, name)
    if pixels.shape[2] != 1:
        raise LabelError(
            f"{name}: has {pixels.shape[2]} channels, expected one value a pixel; save labels as grey or palette picture"
        )
    array = pixels[:, :, 0].T[..., None]
    if array.dtype.kind == "f":
        array = rounded(array, name)
    header = replace(header, channels=1, warnings=(*header.warnings, *told))
    return LabelMap(np.asarray(array), header.affine, header)


def _opened(file: BinaryIO, path: Path, limits: Limits) -> tuple[Image.Image, Header, int]:
    """(picture not yet decoded, header, bits per sample as stored: Pillow's mode halves 16-bit colour)."""
    from PIL import Image

    name, wanted = display_name(path), _KINDS[path.suffix.lower()]
    first = file.read(512)
    file.seek(0)
    if not describe_content(first).removeprefix("Big").startswith(wanted):
        raise ScanError(
            f"{name}: content is {describe_content(first)}, expected {wanted}; give it its right suffix or fetch it again"
        )
    if wanted == "PNG":
        _check_png(file, name)
        file.seek(0)
    with _pillow(f"{name}: is no {wanted} picture that can be decoded; save it again as 8 or 16 bit"):
        image = Image.open(file, formats=(wanted,))
    if image.width * image.height > limits.max_picture_pixels:
        raise ScanError(
            f"{name}: header declares {image.width}x{image.height} pixels, expected at most "
            f"{limits.max_picture_pixels:,}; cut it into tiles"
        )
    with _pillow(f"{name}: {wanted} header is damaged; copy or download it again"):
        bits = {"PNG": first[24], "JPEG": 8}.get(wanted) or int(max(np.atleast_1d(_tags(image).get(258, 1))))
        if wanted == "TIFF":
            _check_tiff_length(image, bits, os.fstat(file.fileno()).st_size, name)
        return image, _header(image, bits, name), bits


def _check_tiff_length(image: Image.Image, bits: int, size: int, name: str) -> None:
    """An uncompressed TIFF holds all its pixels, or says too much (and would be allocated first)."""
    promised = image.width * image.height * int(_tags(image).get(277, 1)) * bits // 8
    if _tags(image).get(259, 1) == 1 and promised > size:
        raise ScanError(
            f"{name}: header promises {image.width}x{image.height} pixels = {promised:,} bytes, the file has {size:,}; "
            "copy or download it again"
        )


@contextlib.contextmanager
def _pillow(message: str) -> Iterator[None]:
    """Turns whatever the decoder raises into a ScanError with ``message``; its warnings (odd tags, size) stay unheard.

    The size is checked here with a limit of our own, and a damaged file may raise anything from deep inside the decoder.
    """
    from PIL import Image

    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        name = message.split(":", 1)[0]
        raise ScanError(f"{name}: header declares too many pixels to be decoded safely; cut it into tiles") from error
    except Exception as error:
        raise ScanError(message) from error


def _check_png(file: BinaryIO, name: str) -> None:
    """Walks the chunks: every checksum right and the end there (Pillow skips those of the pixels)."""
    size = os.fstat(file.fileno()).st_size
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        data = file.read(length) if length <= size else b""
        tail = file.read(4)
        if len(head) < 8 or len(data) < length or len(tail) < 4:
            raise ScanError(f"{name}: PNG ends early, expected an end mark; copy or download it again")
        if zlib.crc32(data, zlib.crc32(kind)) != struct.unpack(">I", tail)[0]:
            raise ScanError(f"{name}: checksum mismatch in a PNG chunk: the file is damaged; copy or download it again")


def _header(image: Image.Image, bits: int, name: str) -> Header:
    if (pages := int(getattr(image, "n_frames", 1))) > 1:
        raise UnsupportedScanError(
            f"{name}: has {pages} pages, expected 1; save each as a file, or the stack as .nii.gz"
        )
    if image.mode not in (*_GREY, *_COLOUR):
        raise UnsupportedScanError(f"{name}: pixels are {image.mode}, expected grey, RGB or palette; convert it")
    told = []
    if bits > 8 and image.mode in ("RGB", "RGBA", "LA"):
        raise UnsupportedScanError(
            f"{name}: is colour (or alpha) with {bits} bits, of which the decoder would drop half, expected 8; "
            "save 8-bit colour, or one 16-bit grey file per channel"
        )
    if image.format == "TIFF" and _tags(image).get(262) == 0 and bits > 8:
        raise UnsupportedScanError(f"{name}: is a min-is-white TIFF of {bits} bits, expected min-is-black; convert it")
    # Asking a PNG without EXIF for it would decode the pixels.
    has_exif = image.format != "PNG" or "exif" in image.info
    if has_exif and (turned := image.getexif().get(0x0112, 1)) != 1:
        told.append(f"EXIF orientation {turned} was not applied: pixels are taken as stored")
    return Header(
        shape=(image.width, image.height, 1),
        affine=np.eye(4),
        channels=1 if image.mode in _GREY else 3,
        format=str(image.format).lower(),
        dtype={"F": "float32", "I": "int32"}.get(image.mode, "uint16" if bits > 8 else "uint8"),
        planar=True,
        oriented=False,
        warnings=tuple(told),
    )


def _tags(image: Image.Image) -> dict[int, Any]:
    return dict(getattr(image, "tag_v2", {}))


def _decoded(image: Image.Image, name: str) -> Image.Image:
    with _pillow(f"{name}: pixels can't be decoded (truncated or damaged); copy or download it again"):
        image.load()
    return image


def _pixels(image: Image.Image, bits: int, name: str) -> npt.NDArray[Any]:
    """(rows, columns, channels) as stored."""
    pixels = np.asarray(_decoded(image, name))
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    elif image.mode == "L" and bits in (2, 4):
        # Pillow stretches 2 and 4 bits to 0..255; class indices stored so would be lost.
        pixels = pixels // (255 // (2**bits - 1))
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _without_alpha(
    pixels: npt.NDArray[Any], channels: int | None, name: str
) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    count = pixels.shape[2]
    if count not in (2, 4) or channels == count:
        return pixels, ()
    if (pixels[:, :, -1] != 255).any():
        raise ScanError(
            f"{name}: has an alpha channel that is not opaque everywhere, expected {channels or count - 1} channels; "
            "flatten it onto a background"
        )
    return pixels[:, :, :-1], (_ALPHA_TOLD,)


def write_picture(array: npt.NDArray[np.generic], affine: Affine, path: Path, *, like: Header | None) -> None:  # noqa: ARG001
    """Writes ``array`` (X, Y, 1) as grey PNG or TIFF of 8 or 16 bits, (X, Y, 1, 3) uint8 as RGB.

    Raises:
        InputError: the array is no single slice on a picture's grid, or has values beyond 16 bits.
    """
    from PIL import Image

    name = display_name(path)
    if array.shape[2] != 1 or not np.allclose(affine, np.eye(4)):
        raise InputError(f"{name}: has a 3D grid, which a picture can't hold; write it as .nii.gz")
    colour = array.ndim == 4
    if array.dtype != np.uint8 and (colour or array.dtype != np.uint16):
        raise InputError(f"{name}: values are {array.dtype}, expected 0 to 65535 in a picture; write it as .nii.gz")
    if colour and array.shape[3] != 3:
        raise InputError(f"{name}: has {array.shape[3]} channels, expected 1 or 3 in a picture; write it as .nii.gz")
    pixels = array[:, :, 0].transpose(1, 0, 2) if colour else array[:, :, 0].T
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if path.suffix.lower() == ".png":
        image.save(path, format="PNG", compress_level=6)
    else:
        image.save(path, format="TIFF", compression="tiff_adobe_deflate")
