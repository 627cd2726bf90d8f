"""medseg's sliding window where MONAI expects one of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer

from medseg.networks.windows import blend_windows


class EvenWindowInferer(Inferer):  # type: ignore[misc] # MONAI is untyped
    """A drop-in for ``monai.inferers.SlidingWindowInferer`` with Gaussian weights.

    What differs from MONAI's: windows are spread evenly instead of snapped to the end; blending is float32 whatever the
    network computes in (MONAI blends bfloat16 with errors up to 3e-3); mirrored copies are averaged where asked for.

    Args:
        roi_size: window, one size per spatial axis of the inputs (two or three), or one for all.
        sw_batch_size: windows or mirror copies per forward pass.
        overlap: share of a window that the next one covers at least, in [0, 1).
        mirror_axes: spatial axes of which all mirror combinations are averaged.
        precision: autocast type such as ``torch.bfloat16``, None for none beyond what the caller set.
        sw_device: where the network computes; None is the inputs' device.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: float = 0.5,
        *,
        mirror_axes: Sequence[int] = (),
        precision: torch.dtype | None = None,
        sw_device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.roi_size = roi_size
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.mirror_axes = tuple(mirror_axes)
        self.precision = precision
        self.sw_device = sw_device

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The network's scores of whole scans.

        Args:
            inputs: (B, C, X, Y) or (B, C, X, Y, Z).
            network: from windows (b, C, *roi_size) to scores (b, K, *roi_size); in eval mode.
            *args: handed to the network after the windows.
            **kwargs: likewise.

        Returns:
            (B, K, *spatial) float32 on the inputs' device.

        Raises:
            ValueError: the inputs have another number of spatial axes than ``roi_size``, or the network is in training mode.
        """
        planar = inputs.dim() == 4
        patch = self._patch(inputs.dim() - 2)
        if getattr(network, "training", False):
            raise ValueError("network is in training mode, expected eval mode; call network.eval() first")

        def scores_of(windows: torch.Tensor) -> torch.Tensor:
            return network(windows, *args, **kwargs)

        results = []
        for image in inputs.as_subclass(torch.Tensor):  # a MetaTensor's bookkeeping costs more than a small window
            whole = image.unsqueeze(-1) if planar else image
            scores = blend_windows(
                whole,
                scores_of,
                patch_size_xyz=patch,
                overlap=self.overlap,
                mirror_axes_xyz=self.mirror_axes,
                batch_size=self.sw_batch_size,
                slice_axis=2 if planar else None,
                device=self.sw_device,
                precision=self.precision,
            )
            results.append(scores.squeeze(-1) if planar else scores)
        return torch.stack(results)

    def _patch(self, axes: int) -> tuple[int, int, int]:
        sizes = (self.roi_size,) * axes if isinstance(self.roi_size, int) else tuple(self.roi_size)
        if len(sizes) != axes or axes not in (2, 3):
            raise ValueError(f"roi_size is {self.roi_size} for {axes} spatial axes, expected one size per axis, 2 or 3")
        return sizes[0], sizes[1], sizes[2] if axes == 3 else 1
