import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from medseg.training.distances import signed_distances


@pytest.mark.parametrize(("shape", "spacing"), [((9, 7), (1.0, 1.0)), ((6, 5, 8), (1.0, 2.5, 0.7)), ((12,), (2.0,))])
def test_equal_to_scipy(shape, spacing):
    rng = np.random.default_rng(2)
    masks = rng.random((2, 3, *shape)) < 0.2
    masks[0, 0], masks[1, 1] = False, True
    found = signed_distances(torch.from_numpy(masks), spacing).numpy()
    for index in np.ndindex(2, 3):
        mask = masks[index]
        if mask.all() or not mask.any():
            assert (found[index] == 0).all()
            continue
        inside = distance_transform_edt(mask, sampling=spacing) - min(spacing)
        outside = distance_transform_edt(~mask, sampling=spacing)
        np.testing.assert_allclose(found[index], np.where(mask, -inside, outside), atol=1e-4)
