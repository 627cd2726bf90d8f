"""Grad-CAM of a region: which places of a layer's feature maps raise a class' logit there.

Selvaraju et al., ICCV 2017; for a region of a segmentation Vinogradova et al., AAAI 2020 (Seg-Grad-CAM). MONAI computes it;
here its classifier is a network over the windows that see the region.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.visualize.class_activation_maps import GradCAM, ModelWithHooks
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import UsageError
from medseg.explain.windows import FloatArray, RegionScore, View, Views
from medseg.networks.reordered import ReorderedUNet

_LINEAR = {2: "bilinear", 3: "trilinear"}


class _LayerHooks(ModelWithHooks):  # type: ignore[misc]
    """MONAI's hooks on one layer, by tensors in place of modules.

    A full backward hook makes the layer's answer a view that no later layer may change in place, as many activations do. The
    answer is cut off from what made it: gradients end there, and nothing before it is kept in memory.
    """

    def __init__(self, scorer: RegionScore, layer: str) -> None:
        self._layer = f"network.{layer}"
        super().__init__(scorer, self._layer)  # registers nothing
        self.register_forward = self.register_backward = True
        self._handle = scorer.get_submodule(self._layer).register_forward_hook(self._cut)

    def _cut(self, _module: nn.Module, _inputs: object, answer: Tensor) -> Tensor:
        leaf = answer.detach().requires_grad_()
        leaf.register_hook(self._keep)  # type: ignore[no-untyped-call]
        self.activations[self._layer] = leaf.detach()
        return leaf.clone()

    def _keep(self, gradient: Tensor) -> None:
        self.gradients[self._layer] = gradient.contiguous()

    def remove(self) -> None:
        self._handle.remove()


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Within the block no weight asks for a gradient."""
    asking = [weight for weight in network.parameters() if weight.requires_grad]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asking:
            weight.requires_grad_()


def gradcam(views: Views, network: nn.Module, *, channel: int, layer: str) -> tuple[FloatArray, float]:
    """The Grad-CAM of a region.

    Per window: the layer's feature maps, each weighted with the mean gradient of the region's mean logit, added, cut off at
    0, enlarged to the window; the windows blended. Windows that do not see the region have gradients of 0 and count as 0.

    Args:
        views: of the region.
        network: in eval mode, on the device of the views.
        channel: the class' place in the network's answer.
        layer: from `medseg.explain.layers.choose_layer`.

    Returns:
        (X, Y, Z) float32, 0 or more, in units that are the network's own; and the region's mean logit.

    Raises:
        UsageError: the layer has no part in the class' logit.
    """
    scorer = RegionScore(network, views).eval()
    hooks = _LayerHooks(scorer, layer)
    cam = GradCAM(nn_module=hooks, target_layers=f"network.{layer}")
    maps, score = [], 0.0
    try:
        with _frozen(network), torch.enable_grad():
            for view in views.views:
                hooks.gradients.clear()
                maps.append(_map_of(cam, scorer, view, views, channel, layer))
                score += float(scorer.answer[0, channel])
    finally:
        hooks.remove()
    return views.blended(maps), score


def _map_of(cam: Any, scorer: RegionScore, view: View, views: Views, channel: int, layer: str) -> FloatArray:
    x = scorer.look_at(view)
    try:
        small: Tensor = cam.compute_map(x, class_idx=channel)
    except (RuntimeError, IndexError) as error:
        if scorer.answer.requires_grad or cam.nn_module.gradients:
            raise
        raise UsageError(f"--layer: {layer} has no part in the class' logit; take another layer") from error
    if isinstance(scorer.network, ReorderedUNet):
        # Inside, such a network has its axes in another order.
        small = small.permute(0, 1, *(2 + scorer.network.order.index(axis) for axis in range(small.ndim - 2)))
    large = functional.interpolate(small, size=x.shape[2:], mode=_LINEAR[x.ndim - 2], align_corners=False)
    return np.asarray(views.outputs(large)[0, 0].cpu().numpy(), np.float32)
