import sys
from pathlib import Path

import numpy as np
import pytest

from medseg.imaging import LabelMap, write_label_map

sys.path.insert(0, str(Path(__file__).parent))  # the definitions spelt out, in brute_force.py


@pytest.fixture
def save_mask():
    """Writes an array (X, Y, Z) as a label map with a diagonal affine; returns the path."""

    def save(path, array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = origin
        path.parent.mkdir(parents=True, exist_ok=True)
        write_label_map(LabelMap(np.asarray(array, np.uint8), affine), path, like=None)
        return path

    return save
