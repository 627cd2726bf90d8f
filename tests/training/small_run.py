"""A run small enough to be trained many times: three cases of 12 x 12 x 8 voxels, a network of two stages."""

from dataclasses import replace

import numpy as np
import torch

from medseg.config.network_sections import UNetSection
from medseg.config.train_sections import BudgetSection, OptimiserSection, TrainSection, ValidationSection
from medseg.preparation.grid import Grid, rows_of
from medseg.preparation.plan import ChannelPlan, Plan
from medseg.preparation.store import PreparedData, StoredCase, case_path
from medseg.preparation.writing import write_case
from medseg.training.inputs import TrainingInputs

CPU = torch.device("cpu")
CASES = ("a", "b", "c")


def plan():
    return Plan(
        dimensions=3, orientation="RAS", spacing_xyz_mm=(1.0, 1.0, 1.0), median_shape_xyz=(12, 12, 8),
        patch_size_xyz=(8, 8, 8), batch_size=2, channels=(ChannelPlan(name="MR", scheme="none"),),
        labels={"background": (0,), "organ": (1,)}, features=(4, 8), strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3), (3, 3, 3)), batch_dice=True, stored_dtype="float32", fingerprint_sha256="0" * 64,
    )  # fmt: skip


def grid(shape):
    unit = rows_of(np.eye(4))
    return Grid(
        original_shape=shape, original_affine=unit, permutation=(0, 1, 2), flips=(False, False, False),
        crop_start=(0, 0, 0), crop_stop=shape, spacing_xyz_mm=(1.0, 1.0, 1.0), prepared_shape=shape, prepared_affine=unit,
        prepared_spacing_xyz_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip


def write_prepared(folder):
    """Writes the cases below ``folder`` (where they are not there yet) and opens them."""
    cases = {}
    for number, name in enumerate(CASES):
        rng = np.random.default_rng(number)
        labels = np.zeros((12, 12, 8), np.uint8)
        labels[2 + number : 8 + number, 3:9, 2:6] = 1
        image = (labels + 0.1 * rng.normal(size=labels.shape)).astype(np.float32)[None]
        path = case_path(folder, name, f"key{number}")
        if not path.exists():
            write_case(
                path, image=image, labels=labels, grid=grid(labels.shape), dtype="float32",
                locations={1: np.flatnonzero(labels == 1)},
            )  # fmt: skip
        cases[name] = StoredCase(name, path)
    return PreparedData(folder, plan(), cases, "f" * 64)


def inputs(prepared, **changes):
    section = TrainSection(
        budget=BudgetSection(steps=8, steps_per_epoch=4),
        optimiser=OptimiserSection(learning_rate=0.01),
        validation=ValidationSection(cases=1),
        precision="float32",
    )
    values = {
        "prepared": prepared, "training": ("a", "b"), "validation": ("c",), "network": UNetSection(features=(2, 4)),
        "section": section, "seed": 5, "fold": 0, "config_text": "name: x\n", "manifest_sha256": "0" * 64,
    }  # fmt: skip
    return TrainingInputs(**(values | changes))


def with_section(given, **changes):
    """``given`` with other values in its ``train`` section."""
    return replace(given, section=given.section.model_copy(update=changes))
