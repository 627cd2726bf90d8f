"""Whatever bytes a file holds, reading it ends in a scan or in one line that begins with the file's name."""

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from medseg.errors import MedsegError
from medseg.imaging import read_header, read_label_map, read_volume, write_label_map
from tests import synthetic

NAMES = ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.png", "a.tif", "a.jpg"]


def sound(folder, name):
    made = synthetic.scan_on((9, 8, 7), synthetic.affine_of((1, 2, 3), synthetic.rotation(5, 6, 7)))
    if name.startswith("a.n") and "nii" in name:
        write_label_map(made.label_map, folder / name, like=None)
    elif name in ("a.nrrd", "a.mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(made.labels), str(folder / name))
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)).save(folder / name)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes(tmp_path, name, no_fsync):
    data = sound(tmp_path, name)
    rng = np.random.default_rng(NAMES.index(name))
    messages = []
    for _ in range(60):
        damaged = bytearray(data)
        reach = min(len(data), 400) if rng.random() < 0.8 else len(data)
        for place in rng.integers(0, reach, rng.integers(1, 5)):
            damaged[place] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged[: rng.integers(1, len(data)) if rng.random() < 0.1 else None])
        for read in (read_header, read_volume, read_label_map):
            try:
                read(tmp_path / name)
            except MedsegError as error:  # anything else fails the test
                messages.append(str(error))
    assert messages
    for message in messages:
        assert message.startswith(f"{name}: ")
        assert "\n" not in message
        assert "; " in message, "what to do is missing"
        assert str(tmp_path) not in message
