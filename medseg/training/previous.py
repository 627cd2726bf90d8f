"""The first stage's mask in the training of a cascade's second stage: read with the image, turned as labels are, one-hot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg.augmentation.affine import resample_box
from medseg.augmentation.previous import change_previous
from medseg.config.sections import PrepareSection
from medseg.durable import sha256_file
from medseg.errors import ChangedError, InputError
from medseg.inference.runs import latest_run, run_name
from medseg.preparation.plan import Plan
from medseg.preparation.previous import with_previous
from medseg.preparation.store import Patch, PreparedData, StoredCase
from medseg.training.augmentation import Sample
from medseg.training.sampling import Triple

Extra = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def whole_case(case: StoredCase, plan: Plan) -> Patch:
    """A case as the network takes it: (C, X, Y, Z) float32, with the first stage's channels in a cascade, and its labels."""
    image, labels = case.read_all()
    if plan.previous_channels:
        mask = case.read_previous((0, 0, 0), case.shape_xyz)
        image = with_previous(image, mask, plan.previous_channels)
    return Patch(image, labels)


def join_previous(
    images: Tensor, samples: Sequence[Sample], size_xyz: Triple, *, count: int, extra: Extra | None = None
) -> Tensor:
    """The batch with the first stage's channels behind the image's.

    Args:
        images: (B, C, X, Y, Z) float32 on the training device, after all changes.
        samples: the batch's, with their masks and what was drawn for them.
        size_xyz: of a patch.
        count: foreground classes.
        extra: MONAI's transforms, as the images went through them: masks are bent alike.

    Returns:
        (B, C + count, X, Y, Z) float32 on the same device.
    """
    masks = torch.empty((len(samples), *size_xyz), dtype=torch.uint8)
    for mask, image, sample in zip(masks, images, samples, strict=True):
        _turned(sample, mask)
        if extra is not None:
            mask.copy_(extra(image, mask.to(image.device), sample.intensity.extra_seed)[1])
        assert sample.previous_draw is not None
        change_previous(mask.numpy(), sample.previous_draw)
    classes = torch.arange(1, count + 1, dtype=torch.uint8, device=images.device).view(1, -1, 1, 1, 1)
    hot = masks.to(images.device)[:, None] == classes
    return torch.cat((images, hot.to(images.dtype)), dim=1)


def _turned(sample: Sample, out: Tensor) -> None:
    assert sample.previous is not None
    if sample.box is None:
        axes = sample.spatial.mirrored_axes
        turned = tuple(slice(None, None, -1 if axis in axes else 1) for axis in range(3))
        np.copyto(out.numpy(), sample.previous[turned])
        return
    nothing, mask = torch.empty((0, *sample.box.shape_xyz)), torch.from_numpy(sample.previous)
    resample_box(sample.box, nothing, mask, out_image=torch.empty((0, *out.shape)), out_labels=out)


def first_stage_models(
    section: PrepareSection, prepared: PreparedData, *, fold: int | None, config_folder: Path
) -> dict[str, Path]:
    """Name to model folder of the first stage that a cascade's second stage will carry; empty where there is no cascade.

    A fold's run carries the first stage of the same fold, which saw none of the fold's held-out cases; a run on all cases
    carries all of them.

    Args:
        section: of the config.
        prepared: the second stage's data.
        fold: that is trained; None trains on every case.
        config_folder: where ``prepare.previous_work`` starts.

    Raises:
        InputError: the fold has no first-stage model.
        ChangedError: a first-stage model is not the one that drew the masks of the prepared data.
    """
    if not prepared.plan.previous_channels:
        return {}
    if section.previous_work is None:
        raise InputError(
            "prepare.previous_work: is null, expected the first stage's work folder; the prepared data are a cascade's"
        )
    names = list(prepared.previous) if fold is None else [run_name(fold)]
    found = {}
    for name in names:
        run = latest_run(config_folder / section.previous_work, int(name.removeprefix("fold_")))
        path = run / "model" / "model.json"
        if name not in prepared.previous or not path.is_file():
            raise InputError(
                f"prepare.previous_work: {name} has no finished model, expected the one that drew the masks; run medseg train "
                "--fold all there, then medseg prepare here"
            )
        if sha256_file(path) != prepared.previous[name]:
            fault = (
                f"prepare.previous_work: the model of {name} is not the one that drew the masks of the prepared data; run "
                "medseg crossval there, then medseg prepare here"
            )
            raise ChangedError([fault])
        found[name] = path.parent
    return found
