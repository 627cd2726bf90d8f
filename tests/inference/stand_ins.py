"""Models whose masks are known beforehand, and a real network with weights from a seed."""

from pathlib import Path

import torch
import yaml

from medseg.config.sections import Config, DataSection
from medseg.inference.model import Model, save_model
from medseg.networks.build import build_network
from medseg.preparation.plan import ChannelPlan, Plan

LABELS = {"background": (0,), "organ": (1,), "lesion": (2,)}


class Thresholds(torch.nn.Module):
    """Class 1 from ``low`` on, class 2 from ``high`` on: on synthetic scans with raw intensities, their labels."""

    def __init__(self, low=200.0, high=400.0):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        x = x[:, :1]
        return torch.cat([torch.zeros_like(x), x - self.low, 2 * x - self.low - self.high], dim=1)


def plan_for(spacing=(1.0, 1.0, 1.0), *, dimensions=3, patch=(16, 16, 16), channels=1, scheme="none", **changes):
    values = {
        "dimensions": dimensions,
        "orientation": "RAS",
        "spacing_xyz_mm": spacing,
        "median_shape_xyz": (32, 32, 32),
        "patch_size_xyz": patch,
        "batch_size": 2,
        "channels": tuple(ChannelPlan(name=f"MR{n}", scheme=scheme) for n in range(channels)),
        "labels": LABELS,
        "features": (4, 8),
        "strides": ((1, 1, 1), (2, 2, 1 if dimensions == 2 else 2)),
        "kernel_sizes": ((3, 3, 3), (3, 3, 3)),
        "batch_dice": False,
        "stored_dtype": "float32",
        "fingerprint_sha256": "0" * 64,
    }
    return Plan(**(values | changes))


def threshold_model(spacing=(1.0, 1.0, 1.0), *, low=200.0, high=400.0, sha256="a" * 64, name="model", **plan):
    return Model(
        network=Thresholds(low, high).eval(),
        plan=plan_for(spacing, **plan),
        mirror_axes_xyz=(0, 1, 2),
        sha256=sha256,
        folder=Path(name),
        info={},
    )


def write_model(folder, *, seed=0, dimensions=3, channels=1, infer=None, previous=None, licence=None, **plan_changes):
    """A model folder with a small U-Net whose weights come from ``seed``."""
    plan = plan_for(
        dimensions=dimensions,
        channels=channels,
        patch=(16, 16, 1) if dimensions == 2 else (16, 16, 16),
        scheme="zscore",
        **plan_changes,
    )
    architecture = {
        "kind": "unet",
        "dimensions": dimensions,
        "channels": plan.input_count,
        "classes": plan.output_count,
        "features": [4, 8],
        "strides": [list(s) for s in plan.strides],
        "kernel_sizes": [list(k) for k in plan.kernel_sizes],
    }
    torch.manual_seed(seed)
    config = Config(name="synthetic", data=DataSection(manifest="dataset.json")).plain()
    config["infer"] |= {"mirror": False, "precision": "float32"} | (infer or {})
    save_model(
        folder,
        build_network(architecture),
        architecture=architecture,
        plan=plan,
        mirror_axes_xyz=(0, 1) if dimensions == 2 else (0, 1, 2),
        config_text=yaml.safe_dump(config),
        training={"fold": 0},
        previous=previous,
        licence=licence,
    )
    return folder
