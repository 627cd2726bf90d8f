"""Self-supervised pretraining on scans without labels: blocks of a patch are blotted out, and the network restores them.

Masked autoencoding (He et al., CVPR 2022) with the segmentation network itself, as Wald et al. (CVPR 2025) do with U-Nets: in
place of class logits it gives the channels' values, and the mean squared error counts in blotted-out blocks only. What it
learns is kept without the last layers, whose shape goes by the number of classes; ``train.init_from`` takes the rest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from medseg.config import Config
from medseg.config.loading import config_text
from medseg.config.train_sections import BudgetSection, TrainSection
from medseg.durable import sha256_file, sha256_json, write_bytes, write_json
from medseg.errors import EnvironmentFault, InputError, MedsegError
from medseg.imaging import read_header
from medseg.manifest import Manifest, resolve
from medseg.networks.build import Architecture, build_network
from medseg.preparation.case import expand_channels
from medseg.preparation.facts import CaseInputs
from medseg.preparation.inputs import fix
from medseg.preparation.plan import Plan
from medseg.preparation.plan_file import read_plan
from medseg.preparation.store import PreparedData, StoredCase
from medseg.preparation.work import CaseWork, prepare_case
from medseg.runner.pool import default_processes, run_cases
from medseg.runner.progress import CaseProgress
from medseg.training.batch import Batch
from medseg.training.inputs import TrainingInputs, with_overrides
from medseg.training.state import TrainState
from medseg.training.trainer import Trainer

_LOG = logging.getLogger(__name__)
PRETRAINED_FORMAT = 1
MASKED_SHARE = 0.6
"""Share of a patch's blocks that are blotted out."""
_BLOCKS_PER_SIDE = 6
_LEAST_BLOCK = 4
_BYTES_PER_VALUE = 28
_PRIME = 1_000_003


def pretraining_data(
    config: Config,
    manifest: Manifest,
    *,
    plan_folder: Path,
    output: Path,
    data_root: Path,
    allow_outside: bool = False,
    processes: int | None = None,
) -> PreparedData:
    """Prepares the scans of a manifest, labels left aside, by the plan of the experiment that will be trained later.

    A scan that is prepared already is kept; one that can't be used is left out with a warning.

    Args:
        config: the experiment.
        manifest: of the unlabelled scans, training and testing ones; their channels must be the plan's.
        plan_folder: the experiment's ``prepared``.
        output: folder of the arrays.
        data_root: where the manifest's paths start.
        allow_outside: whether they may lead out of it.
        processes: cases at a time; None chooses by cores and memory.

    Raises:
        InputError: the experiment has no plan, the channels are others, or no scan can be used.
    """
    if not (plan_folder / "plan.yaml").is_file():
        raise InputError(f"{plan_folder.name}: holds no plan.yaml; run medseg prepare for this config first")
    plan = read_plan(plan_folder / "plan.yaml")
    if plan.previous_channels:
        raise InputError(
            f"{plan_folder.name}: is of a cascade's second stage, expected a plan without a first stage; pretrain with the "
            "configuration 3d_fullres and give its weights to train.init_from"
        )
    names, expected = [channel.name for channel in expand_channels(manifest.channels)], [c.name for c in plan.channels]
    if names != expected:
        raise InputError(f"{manifest.path.name}: channels are {names}, expected the plan's {expected}")
    works, largest = _works(manifest, plan, output, data_root, allow_outside=allow_outside)
    waiting = [(work.id, work) for work in works if not work.path.is_file()]
    ready = {work.id: work for work in works if work.path.is_file()}
    count = processes or default_processes(_BYTES_PER_VALUE * largest)
    with CaseProgress("prepare", len(works), done=len(ready)) as progress:
        for outcome in run_cases(partial(prepare_case, plan=plan), waiting, processes=count):
            progress.advance()
            if outcome.exit_code == EnvironmentFault.exit_code:
                raise EnvironmentFault(str(outcome.error))
            if outcome.error is not None:
                _LOG.warning("%s; it is left out", outcome.error)
            else:
                ready[outcome.case_id] = next(work for work in works if work.id == outcome.case_id)
    if not ready:
        raise InputError(f"{manifest.path.name}: none of its scans can be used for pretraining; see the warnings above")
    cases = {name: StoredCase(name, ready[name].path) for name in sorted(ready)}
    digest = sha256_json({name: ready[name].key for name in sorted(ready)})
    return with_overrides(PreparedData(output, plan, cases, digest), config.prepare)


def _works(
    manifest: Manifest, plan: Plan, output: Path, data_root: Path, *, allow_outside: bool
) -> tuple[list[CaseWork], int]:
    """The scans to prepare, and the voxel values of the largest."""
    works, largest = [], 0
    for case in (*manifest.training, *manifest.testing):
        bare = replace(case, labels=(), labelled=None)
        try:
            images = resolve(manifest, bare, data_root, allow_outside).images
            files = tuple(fix(path) for path in images)
            values = math.prod(read_header(images[0], series=plan.channels[0].series).shape) * len(plan.channels)
        except MedsegError as error:
            _LOG.warning("%s; it is left out", str(error).replace("\n", "; "))
            continue
        inputs = CaseInputs(
            id=case.id, images=images, labels=(), names=case.images, channels=expand_channels(manifest.channels),
            classes=(), ignore=None, orientation=plan.orientation,
        )  # fmt: skip
        works.append(CaseWork.of(inputs, files, plan, values, output))
        largest = max(largest, values)
    return works, largest


def pretraining_inputs(
    config: Config, prepared: PreparedData, *, manifest_sha256: str, minutes: float | None
) -> TrainingInputs:
    """What a pretraining run is a function of: the config's ``train`` without labels, validation and foreground.

    Args:
        config: the experiment.
        prepared: from ``pretraining_data``.
        manifest_sha256: of the unlabelled manifest.
        minutes: budget; None takes the config's.
    """
    budget = config.train.budget
    if minutes is not None:
        budget = BudgetSection(minutes=minutes, steps_per_epoch=budget.steps_per_epoch)
    update: dict[str, Any] = {
        "budget": budget,
        "foreground_share": 0.0,
        "init_from": None,
        "validation": config.train.validation.model_copy(update={"cases": 0}),
        "early_stopping": TrainSection().early_stopping,
    }
    section = config.train.model_copy(update=update)
    return TrainingInputs(
        prepared=prepared,
        training=tuple(prepared.cases),
        validation=(),
        network=config.network,
        section=section,
        seed=config.seed,
        fold=None,
        config_text=config_text(config.model_copy(update={"train": section})),
        manifest_sha256=manifest_sha256,
    )


def block_size(patch_size: Sequence[int]) -> tuple[int, ...]:
    """Voxels of a block per axis: a sixth of the patch, at least 4, and no more than the patch."""
    return tuple(min(size, max(_LEAST_BLOCK, round(size / _BLOCKS_PER_SIDE))) for size in patch_size)


def draw_mask(patch_size: Sequence[int], seed: int, k: int) -> Tensor:
    """(patch size) bool: the blotted-out voxels of sample ``k``, a function of (seed, k); 60 % of the blocks, rounded."""
    block = block_size(patch_size)
    blocks = [-(-size // side) for size, side in zip(patch_size, block, strict=True)]
    generator = torch.Generator().manual_seed((seed * _PRIME + k) % 2**63)
    count = math.prod(blocks)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=generator)[: round(MASKED_SHARE * count)]] = True
    mask = mask.reshape(blocks)
    for axis, side in enumerate(block):
        mask = mask.repeat_interleave(side, dim=axis)
    return mask[tuple(slice(size) for size in patch_size)]


@dataclass(frozen=True)
class MaskedBatches:
    """Batches with blocks blotted out.

    ``classes`` of a batch holds what has to be restored: (B, C + 1, ...) float32, the channels and, last, 1 where blotted out.
    """

    make: Callable[[int], Batch]
    seed: int

    def __call__(self, step: int) -> Batch:
        """The batch of ``step``: blotted-out voxels are 0, the mean of most normalisations."""
        batch = self.make(step)
        count, size = len(batch.images), batch.images.shape[2:]
        masks = torch.stack([draw_mask(size, self.seed, step * count + i) for i in range(count)])
        masks = masks[:, None].to(batch.images.device)
        target = torch.cat((batch.images.float(), masks.float()), dim=1)
        return Batch(batch.images.masked_fill(masks, 0), target, batch.case_ids)

    def close(self) -> None:
        """Ends what makes batches ahead."""
        close = getattr(self.make, "close", None)
        if close is not None:
            close()


class ReconstructionLoss:
    """Mean squared error over blotted-out voxels and channels, as sums that add over samples."""

    needs_whole_batch = False

    def sums(self, logits: Tensor, classes: Tensor, known: Tensor | None = None) -> Tensor:
        """(2,) float32: sum of squared errors, and number of values they are of.

        Args:
            logits: (B, C, ...) restored channels.
            classes: (B, C + 1, ...) as in ``MaskedBatches``.
            known: not used.
        """
        del known
        target, mask = classes[:, :-1], classes[:, -1:]
        errors = (logits.float() - target).square() * mask
        return torch.stack((errors.sum(), mask.sum() * target.shape[1]))

    def value(self, sums: Tensor) -> Tensor:
        """Scalar; 0 where nothing was blotted out."""
        return sums[0] / sums[1].clamp_min(1)


class PretrainTrainer(Trainer):
    """A run that restores blotted-out blocks; the same arguments, budget, state and resume as any other."""

    def __init__(self, inputs: TrainingInputs, architecture: dict[str, Any], **parts: Any) -> None:
        super().__init__(inputs, restoring(architecture), **parts)
        if self.processes.count > 1:
            raise InputError(
                f"pretrain: runs in {self.processes.count} processes, expected 1; start it without torchrun"
            )
        self.batches = MaskedBatches(self.batches, inputs.seed)
        self.loss = ReconstructionLoss()

    def save_model(self, folder: Path, state: TrainState) -> None:
        """Writes ``weights.safetensors`` (the averaged network without its last layers) and ``model.json``."""
        heads = head_tensors(self.architecture)
        held = state.average.state_dict()
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in held.items() if name not in heads}
        write_bytes(folder / "weights.safetensors", safetensors.torch.save(weights))
        content = {
            "format": PRETRAINED_FORMAT,
            "kind": "medseg pretrained weights",
            "architecture": self.architecture,
            "left_out": sorted(heads),
            "training": {
                "seed": self.inputs.seed,
                "steps": state.progress.steps,
                "cases": len(self.inputs.training),
                "masked_share": MASKED_SHARE,
                "manifest_sha256": self.inputs.manifest_sha256,
                "prepared_sha256": self.inputs.prepared.sha256,
                "history": state.progress.history,
            },
            "files": {"weights.safetensors": sha256_file(folder / "weights.safetensors")},
            "versions": {"medseg": version("medseg"), "torch": torch.__version__},
        }
        write_json(folder / "model.json", content)


def restoring(architecture: Architecture) -> dict[str, Any]:
    """The same network with the channels as its outputs, on the finest grid only."""
    changed = {**architecture, "classes": architecture["channels"]}
    return changed | ({"deep_supervision": False} if "deep_supervision" in changed else {})


def head_tensors(architecture: Architecture) -> frozenset[str]:
    """Names of the tensors whose shape goes by the number of classes, found by building the network with one more."""
    with torch.device("meta"):
        own = build_network(architecture).state_dict()
        more = build_network({**architecture, "classes": architecture["classes"] + 1}).state_dict()
    return frozenset(name for name, tensor in own.items() if name not in more or more[name].shape != tensor.shape)
