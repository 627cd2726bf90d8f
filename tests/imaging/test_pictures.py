import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medseg.errors import InputError, LabelError, ScanError, UnsupportedScanError
from medseg.imaging import (
    LabelMap,
    Limits,
    Volume,
    read_header,
    read_label_map,
    read_volume,
    write_label_map,
    write_volume,
)


def grey(dtype="uint8", shape=(6, 9), high=200):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, width, height, bits, colour, rows):
    """A PNG from its parts, for kinds that Pillow does not write."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_has_columns_as_x_and_rows_as_y(tmp_path, name, dtype):
    pixels = grey(dtype, high=200 if dtype == "uint8" else 60000)
    Image.fromarray(pixels).save(tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.array.shape == (1, 9, 6, 1)
    assert volume.array[0, 7, 2, 0] == pixels[2, 7]
    np.testing.assert_array_equal(volume.affine, np.eye(4))
    assert (volume.header.dtype, volume.header.planar, volume.header.channels) == (dtype, True, 1)
    labels = read_label_map(tmp_path / name)
    np.testing.assert_array_equal(labels.array[:, :, 0].T, pixels)
    assert labels.array.dtype == dtype
    assert read_header(tmp_path / name).shape == (9, 6, 1)


def test_big_tiff_is_tiff(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.tif", big_tiff=True)
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\x00"
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array[0, :, :, 0].T, grey())


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_rgb_gives_three_channels(tmp_path, name):
    pixels = grey(shape=(6, 9, 3))
    Image.fromarray(pixels).save(tmp_path / name)
    volume = read_volume(tmp_path / name, channels=3)
    np.testing.assert_array_equal(volume.array[..., 0], np.asarray(Image.open(tmp_path / name)).transpose(2, 1, 0))
    with pytest.raises(ScanError, match="has 3 channels, expected 1; save it so, or correct the manifest"):
        read_volume(tmp_path / name, channels=1)


def test_opaque_alpha_is_dropped_and_told(tmp_path):
    pixels = np.concatenate([grey(shape=(6, 9, 3)), np.full((6, 9, 1), 255, np.uint8)], axis=2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png", channels=3)
    np.testing.assert_array_equal(volume.array[..., 0], pixels[..., :3].transpose(2, 1, 0))
    assert volume.header.warnings == ("alpha channel is opaque everywhere and was dropped",)
    assert read_header(tmp_path / "a.png").channels == 3
    assert read_volume(tmp_path / "a.png", channels=4).array.shape[0] == 4
    pixels[2, 3, 3] = 100
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ScanError, match="has an alpha channel that is not opaque everywhere, expected 3 channels"):
        read_volume(tmp_path / "a.png")


def test_grey_with_alpha(tmp_path):
    pixels = np.stack([grey(), np.full((6, 9), 255, np.uint8)], axis=2)
    Image.fromarray(pixels, mode=None).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array[0, :, :, 0], pixels[..., 0].T)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").array[:, :, 0], pixels[..., 0].T)


def test_palette_is_class_index_for_labels_and_colour_for_images(tmp_path):
    indices = grey(high=3)
    picture = Image.fromarray(indices).convert("P")
    picture = Image.frombytes("P", (9, 6), indices.tobytes())
    picture.putpalette([10, 20, 30, 200, 0, 0, 0, 150, 0])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").array[:, :, 0], indices.T)
    volume = read_volume(tmp_path / "a.png")
    assert volume.array.shape == (3, 9, 6, 1)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], np.array([10, 200, 0])[indices].T)


def test_one_bit_is_0_and_1(tmp_path):
    pixels = grey(high=2)
    for name in ("a.png", "a.tif"):
        Image.fromarray(pixels.astype(bool)).save(tmp_path / name)
        np.testing.assert_array_equal(read_label_map(tmp_path / name).array[:, :, 0], pixels.T)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array[0, :, :, 0], pixels.T)


def test_two_and_four_bits_keep_their_values(tmp_path):
    png(tmp_path / "two.png", 4, 2, 2, 0, [bytes([0b00011011]), bytes([0b11100100])])
    assert read_label_map(tmp_path / "two.png").array[:, :, 0].T.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    png(tmp_path / "four.png", 2, 2, 4, 0, [bytes([0x0F]), bytes([0x71])])
    assert read_volume(tmp_path / "four.png").array[0, :, :, 0].T.tolist() == [[0, 15], [7, 1]]


def test_16_bit_colour_is_refused_because_pillow_would_halve_it(tmp_path):
    path = png(tmp_path / "a.png", 2, 1, 16, 2, [bytes(12)])
    with pytest.raises(UnsupportedScanError, match=r"is colour \(or alpha\) with 16 bits"):
        read_header(path)


def test_float_tiff(tmp_path):
    pixels = grey("float32") / 7
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array[0, :, :, 0], pixels.T)
    with pytest.raises(LabelError, match="are no whole number"):
        read_label_map(tmp_path / "a.tif")
    pixels[0, 0] = np.nan
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ScanError, match="1 voxel is not finite"):
        read_volume(tmp_path / "a.tif")


def test_several_pages_are_refused(tmp_path):
    pages = [Image.fromarray(grey()) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pages[1].putpixel((0, 0), 255)
    pages[0].save(tmp_path / "a.png", save_all=True, append_images=pages[1:])
    with pytest.raises(UnsupportedScanError, match=r"a\.tif: has 3 pages, expected 1; save each as a file"):
        read_volume(tmp_path / "a.tif")
    with pytest.raises(UnsupportedScanError, match=r"a\.png: has \d pages, expected 1"):
        read_volume(tmp_path / "a.png")


def test_bombs_are_refused_from_the_header(tmp_path):
    png(tmp_path / "a.png", 30000, 30000, 8, 0, [])
    with pytest.raises(ScanError, match=r"a\.png: header declares (30000x30000|too many) pixels"):
        read_header(tmp_path / "a.png")
    png(tmp_path / "b.png", 11000, 10000, 8, 0, [])
    with pytest.raises(ScanError, match="header declares 11000x10000 pixels, expected at most 100,000,000"):
        read_header(tmp_path / "b.png", limits=Limits(max_picture_pixels=10**8))


def test_damaged_files(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(grey(shape=(60, 90))).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ScanError, match=r"^a\.png: PNG ends early, expected an end mark"):
        read_volume(path)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(ScanError, match="checksum mismatch in a PNG chunk"):
        read_volume(path)
    for name in ("a.tif", "a.jpg"):
        Image.fromarray(grey(shape=(60, 90))).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            ScanError, match=r"pixels can't be decoded|header promises 90x60 pixels = 5,400 bytes|is no TIFF"
        ):
            read_volume(tmp_path / name)


def test_wrong_content(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    with pytest.raises(ScanError, match=r"a\.png: content is JPEG, expected PNG; give it its right suffix"):
        read_volume(tmp_path / "a.png")


def test_labels_must_be_one_lossless_value(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.jpg")
    with pytest.raises(LabelError, match="is JPEG, whose values change when saved"):
        read_label_map(tmp_path / "a.jpg")
    Image.fromarray(grey(shape=(6, 9, 3))).save(tmp_path / "a.png")
    with pytest.raises(LabelError, match="has 3 channels, expected one value a pixel"):
        read_label_map(tmp_path / "a.png")


def test_exif_turn_is_told(tmp_path):
    picture = Image.fromarray(grey())
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_header(tmp_path / "a.jpg").warnings == (
        "EXIF orientation 6 was not applied: pixels are taken as stored",
    )


def test_constant_picture_is_told(tmp_path):
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "a.png")
    assert read_volume(tmp_path / "a.png").header.warnings == ("image is constant: every voxel is 9",)


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
@pytest.mark.parametrize("high", [2, 256, 60000])
def test_writing_labels_and_reading_them_back(tmp_path, name, high, no_fsync):
    labels = grey("int64", high=high).T[:, :, None]
    labels[0, 0] = high - 1
    write_label_map(LabelMap(labels, np.eye(4)), tmp_path / name, like=None)
    np.testing.assert_array_equal(read_label_map(tmp_path / name).array, labels)
    with pytest.raises(InputError, match="values are uint32, expected 0 to 65535 in a picture"):
        write_label_map(LabelMap(labels + 2**16, np.eye(4)), tmp_path / name, like=None)


def test_writing_colour(tmp_path, no_fsync):
    array = grey("float32", shape=(3, 9, 6, 1))
    write_volume(Volume(array, np.eye(4)), tmp_path / "a.png", dtype="uint8")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array, array)
    with pytest.raises(InputError, match="has 2 channels, expected 1 or 3"):
        write_volume(Volume(array[:2], np.eye(4)), tmp_path / "a.png", dtype="uint8")


@pytest.mark.real
def test_real_nuclei_equal_pillow(shared_data):
    folder = shared_data / "nuclei"
    for path in sorted((folder / "images").iterdir())[:5]:
        volume = read_volume(path, channels=3)
        np.testing.assert_array_equal(volume.array[..., 0], np.asarray(Image.open(path))[..., :3].transpose(2, 1, 0))
        labels = read_label_map(folder / "labels" / path.name)
        assert set(np.unique(labels.array)) <= {0, 255}
        assert labels.shape == volume.shape
