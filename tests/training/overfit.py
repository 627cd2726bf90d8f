"""Two small synthetic cases that any sound network and loss learns by heart in 60 steps, and the way to a mask file after it.

What ``overfit`` proves is that gradients reach all that matters; what ``mask_after_infer`` proves is that nothing is lost
between the trained network and the masks of ``medseg infer``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from medseg.config.sections import Config, DataSection
from medseg.imaging import Volume
from medseg.inference.model import save_model
from medseg.inference.predictor import load_predictor
from medseg.preparation.plan import ChannelPlan, Plan

SIZES = {2: (32, 32, 1), 3: (16, 16, 16)}
LABELS = {"background": (0,), "organ": (1,), "core": (2,)}
Objective = Callable[[Tensor | Sequence[Tensor], Tensor], Tensor]


def toy_plan(dimensions: int, **changes: Any) -> Plan:
    """A plan whose patch is a whole toy case: one channel, three classes, three stages."""
    flat = dimensions == 2
    two = (2, 2, 1 if flat else 2)
    values: dict[str, Any] = {
        "dimensions": dimensions, "orientation": "RAS", "spacing_xyz_mm": (1.0, 1.0, 1.0),
        "median_shape_xyz": SIZES[dimensions], "patch_size_xyz": SIZES[dimensions], "batch_size": 2,
        "channels": (ChannelPlan(name="MR", scheme="none"),), "labels": LABELS, "features": (8, 16, 16),
        "strides": ((1, 1, 1), two, two), "kernel_sizes": ((3, 3, 1 if flat else 3),) * 3, "batch_dice": True,
        "stored_dtype": "float32", "fingerprint_sha256": "0" * 64,
    }  # fmt: skip
    return Plan(**(values | changes))


def toy_cases(dimensions: int, size: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images (2, X, Y, Z) float32, no voxel of them 0, and their classes (2, X, Y, Z) uint8.

    A bright ellipsoid (1) with a dark core (2), at another place and of another shape in each case. The core is as dark as
    the background on average, so that grey values alone don't tell it.
    """
    shape = SIZES[dimensions] if size is None else tuple(size)
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in shape), indexing="ij")
    classes = np.zeros((2, *shape), np.uint8)
    for case, (centre, radii) in enumerate(
        [((-0.06, 0.04, 0.0), (0.38, 0.3, 0.34)), ((0.06, 0, 0.04), (0.3, 0.4, 0.36))]
    ):
        used = range(2 if dimensions == 2 else 3)
        distance = np.sqrt(sum(((axes[a] - centre[a]) / radii[a]) ** 2 for a in used))
        classes[case][distance < 1] = 1
        classes[case][distance < 0.55] = 2
    noise = np.random.default_rng(7).normal(scale=0.1, size=classes.shape)
    return ((classes == 1) * 1.5 - 0.7 + noise).astype(np.float32), classes


def tensors(images: np.ndarray, classes: np.ndarray, dimensions: int) -> tuple[Tensor, Tensor]:
    """The cases as a batch: (B, 1, X, Y, Z) and (B, X, Y, Z), without Z in 2D."""
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(classes)
    return (x[..., 0], y[..., 0]) if dimensions == 2 else (x, y)


def plain_objective(outputs: Tensor | Sequence[Tensor], classes: Tensor) -> Tensor:
    """Cross-entropy plus 1 - soft Dice of the foreground over the batch, over all heads; written apart from our losses."""
    total = torch.zeros(())
    for logits in [outputs] if isinstance(outputs, Tensor) else outputs:
        shrunk = functional.interpolate(classes[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[
            :, 0
        ].long()
        hot = functional.one_hot(shrunk, logits.shape[1]).movedim(-1, 1)[:, 1:]
        soft = torch.softmax(logits, 1)[:, 1:]
        axes = [0, *range(2, logits.ndim)]
        dice = (2 * (soft * hot).sum(axes) + 1e-5) / (soft.sum(axes) + hot.sum(axes) + 1e-5)
        total = total + functional.cross_entropy(logits, shrunk) + 1 - dice.mean()
    return total


def overfit(
    network: nn.Module,
    dimensions: int,
    *,
    objective: Objective = plain_objective,
    steps: int = 60,
    rate: float = 1e-2,
    size: Sequence[int] | None = None,
) -> None:
    """Trains ``network`` in place on the two cases for ``steps`` steps of AdamW, and leaves it in eval mode."""
    images, classes = tensors(*toy_cases(dimensions, size), dimensions)
    # Fused: the largest of MONAI's have 45 million parameters whatever their arguments.
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-3, fused=True)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = (
                0.1  # EfficientNet's 0.01 would need hundreds of steps until eval mode knows the statistics
            )
    for step in range(steps):
        for group in optimiser.param_groups:  # warm-up of five steps, then down to 0
            group["lr"] = rate * min((step + 1) / 5, (steps - step) / (steps - 5))
        optimiser.zero_grad()
        objective(network(images), classes).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimiser.step()
    network.eval()


@torch.no_grad()
def masks(network: nn.Module, dimensions: int, size: Sequence[int] | None = None) -> np.ndarray:
    """(2, X, Y, Z) class of the highest logit, of each case by itself."""
    images, _ = tensors(*toy_cases(dimensions, size), dimensions)
    logits = torch.cat([network(image[None]) for image in images])
    return logits.argmax(1).numpy().reshape(2, *(SIZES[dimensions] if size is None else size))


def least_dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The lowest mean Dice of a case over the foreground classes."""
    dice = [
        [2 * ((p == k) & (t == k)).sum() / ((p == k).sum() + (t == k).sum()) for k in (1, 2)]
        for p, t in zip(predicted, truth, strict=True)
    ]
    return float(np.mean(dice, axis=1).min())


def masks_after_infer(folder: Path, network: nn.Module, architecture: Mapping[str, Any], plan: Plan) -> np.ndarray:
    """``network`` saved as a model folder, loaded again, and asked for the masks of the two scans as ``infer`` does."""
    config = Config(name="toy", data=DataSection(manifest="dataset.json")).plain()
    config["infer"] |= {"mirror": False, "precision": "float32"}
    axes = (0, 1) if plan.dimensions == 2 else (0, 1, 2)
    text = yaml.safe_dump(config)
    save_model(
        folder, network, architecture=architecture, plan=plan, mirror_axes_xyz=axes, config_text=text, training={"fold": 0}
    )  # fmt: skip
    predictor = load_predictor(folder)
    images, _ = toy_cases(plan.dimensions, plan.patch_size_xyz)
    return np.stack([predictor.predict(Volume(image[None], np.eye(4))).array for image in images])
