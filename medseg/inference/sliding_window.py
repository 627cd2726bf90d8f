"""Class scores of a prepared scan, from arrays to arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from medseg.networks.blending import Sink
from medseg.networks.windows import Network, Tally, blend_windows

FloatArray = npt.NDArray[np.float32]


def predict_scores(  # noqa: PLR0913 - plain values, one meaning each
    array: FloatArray,
    network: Network,
    *,
    patch_size_xyz: Sequence[int],
    class_count: int,
    overlap: float = 0.5,
    mirror_axes_xyz: Sequence[int] = (),
    batch_size: int | None = None,
    slice_axis: int | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    gather_on_device: bool = True,
    skip_background: bool = False,
    sink: Sink | None = None,
    tally: Tally | None = None,
) -> FloatArray:
    """Class scores (logits) of a prepared scan, blended from overlapping windows.

    A scan smaller than the patch is padded with 0, centred, and the padding is cut off again.

    Args:
        array: (C, X, Y, Z) float32, normalised; every size at least 1.
        network: (B, C, X, Y, Z) -> (B, K, X, Y, Z) scores in eval mode; a 2D one (B, C, X, Y) -> (B, K, X, Y), or the two
            axes that are left without ``slice_axis``, in their order.
        patch_size_xyz: window in voxels; 1 along ``slice_axis``, so that each slice has windows of its own.
        class_count: K, background included.
        overlap: share of a window that the next one covers at least, in [0, 1).
        mirror_axes_xyz: axes of which all mirror combinations are averaged (8 passes for three); ``slice_axis`` is left out.
        batch_size: windows or mirror copies per forward pass; None chooses by device and patch.
        slice_axis: the axis (0 = x) that a 2D network does not see, along which slices are stacked; None for a 3D network.
        device: where the network is.
        precision: autocast type such as ``torch.bfloat16``; None computes in float32. Blending is always float32.
        gather_on_device: keep image and scores in the device's memory; False keeps them in host memory.
        skip_background: answer windows of nothing but the lowest value once for all of them.
        sink: takes planes as they are finished, and the result is empty.
        tally: is told what was done.

    Returns:
        (K, X, Y, Z) float32 on the CPU, on the grid of ``array``. May be a view of a padded array.

    Raises:
        ValueError: the network is in training mode or answers with another shape; a size or the overlap makes no sense.
    """
    image = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if gather_on_device:
        image = image.to(device)
    scores: FloatArray = (
        blend_windows(
            image,
            network,
            patch_size_xyz=patch_size_xyz,
            class_count=class_count,
            overlap=overlap,
            mirror_axes_xyz=mirror_axes_xyz,
            batch_size=batch_size,
            slice_axis=slice_axis,
            device=device,
            precision=precision,
            skip_background=skip_background,
            sink=sink,
            tally=tally,
        )
        .cpu()
        .numpy()
    )
    return scores
