import logging
import warnings

import numpy as np
import pytest

from medseg.errors import GeometryError, LabelError, ScanError
from medseg.imaging import read_volume
from tests import synthetic

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.transforms import LoadImage, LoadImaged
    from monai.transforms.io.array import SUPPORTED_READERS

from medseg.adapters.reader import MedsegReader, register

pytestmark = [
    pytest.mark.usefixtures("no_fsync"),
    # MONAI makes every reader it knows, and warns of one that lacks its library
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_load_image_gives_our_voxels_and_affine(tmp_path, suffix):
    made = synthetic.scan("oblique_left_handed")
    image, labels = synthetic.write_scan(made, tmp_path, suffix=suffix)
    loaded = LoadImage(reader=MedsegReader)(image)
    np.testing.assert_array_equal(loaded.numpy(), read_volume(image).array)
    np.testing.assert_allclose(loaded.affine.numpy(), made.affine, atol=1e-5)
    assert loaded.affine.dtype.is_floating_point
    assert loaded.meta["space"] == "RAS"
    assert tuple(loaded.meta["spatial_shape"]) == made.shape
    mask = LoadImage(reader=MedsegReader, labels=True, dtype=None)(labels)
    assert mask.shape == (1, *made.shape)
    np.testing.assert_array_equal(mask.numpy()[0], made.labels)


def test_load_imaged_with_channel_first(tmp_path):
    made = synthetic.scan("permuted")
    image, labels = synthetic.write_scan(made, tmp_path)
    loader = LoadImaged(["image", "label"], reader=MedsegReader, ensure_channel_first=True)
    sample = loader({"image": image, "label": labels})
    assert sample["image"].shape == sample["label"].shape == (1, *made.shape)


def test_pictures(tmp_path):
    made = synthetic.scan("picture")
    image, _ = synthetic.write_scan(made, tmp_path, suffix=".png")
    loaded = LoadImage(reader=MedsegReader)(image)
    assert loaded.shape == (1, 48, 40, 1)
    np.testing.assert_array_equal(loaded.affine.numpy(), np.eye(4))


def test_a_refused_file_is_not_given_to_a_lenient_reader(tmp_path):
    image, _ = synthetic.write_scan(synthetic.scan("ras"), tmp_path)
    data = image.read_bytes()
    image.write_bytes(data[:-8] + b"\1\2\3\4" + data[-4:])  # a checksum that only a strict reader looks at
    with pytest.raises(ScanError, match="checksum mismatch"):
        LoadImage(reader=MedsegReader)(image)
    image, _ = synthetic.write_scan(synthetic.scan("ras"), tmp_path)
    with pytest.raises(LabelError, match="are no whole number"):
        LoadImage(reader=MedsegReader(labels=True))(image)


def test_registered_reader_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setitem(SUPPORTED_READERS, "medsegreader", MedsegReader)
    register()
    assert list(SUPPORTED_READERS)[-1] == "medsegreader"
    made = synthetic.scan("oblique")
    image, _ = synthetic.write_scan(made, tmp_path, suffix=".mha")
    assert LoadImage()(image).shape == (1, *made.shape)


def test_several_files_become_channels_of_one_grid(tmp_path):
    made = synthetic.scan("oblique")
    first, _ = synthetic.write_scan(made, tmp_path, case_id="a")
    second, _ = synthetic.write_scan(synthetic.scan("oblique", seed=1), tmp_path, case_id="b")
    assert LoadImage(reader=MedsegReader)([first, second]).shape == (2, *made.shape)
    other, _ = synthetic.write_scan(synthetic.scan("ras"), tmp_path, case_id="c")
    with pytest.raises(GeometryError, match="file 2 of 2: shape is 30x34x26 against 28x32x26 of the first"):
        LoadImage(reader=MedsegReader)([first, other])


def test_warnings_are_logged_once(tmp_path, caplog):
    image, _ = synthetic.write_scan(synthetic.scan("ras"), tmp_path)
    image.rename(image.with_name("x.nii"))
    loader = LoadImage(reader=MedsegReader)
    with caplog.at_level(logging.WARNING, logger="medseg.adapters.reader"):
        for _ in range(3):
            loader(image.with_name("x.nii"))
    said = [record.getMessage() for record in caplog.records if record.name == "medseg.adapters.reader"]
    assert said == ["x.nii: content is gzip though the name means an uncompressed file (said once)"]


def test_suffixes():
    reader = MedsegReader()
    assert reader.verify_suffix("a.nii.gz")
    assert reader.verify_suffix(["a.png", "b.mha"])
    assert not reader.verify_suffix(["a.npy", "b.mha"])
