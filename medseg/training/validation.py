"""Sliding-window validation on whole prepared cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from medseg.inference.sliding_window import predict_scores
from medseg.networks.windows import window_starts
from medseg.preparation.plan import Plan
from medseg.preparation.store import StoredCase
from medseg.training.distributed import ALONE, Processes
from medseg.training.losses import IGNORED
from medseg.training.previous import whole_case

_FEW_WINDOWS = 64


class Interrupted(Exception):
    """A validation that was given up because the run has to stop."""


def validation_dice(
    network: nn.Module,
    cases: Sequence[StoredCase],
    *,
    plan: Plan,
    overlap: float,
    device: torch.device,
    precision: torch.dtype | None,
    processes: Processes = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Mean Dice per foreground class over whole cases, on the prepared grid and without mirrors.

    A case where neither the labels nor the prediction have the class does not count for it; a class no case has is left
    out. Voxels nobody labelled do not count. Several processes take every n-th case each, and all of them get the result.

    Args:
        network: in eval mode.
        cases: with labels; none gives an empty result.
        plan: of the prepared cases.
        overlap: of neighbouring windows.
        device: where the network is.
        precision: autocast type, None for float32.
        processes: those that share the cases.
        stop: asked before each window's forward pass.

    Returns:
        Class name to mean Dice in [0, 1].

    Raises:
        Interrupted: ``stop`` said so, in any of the processes.
    """
    done: list[dict[str, float]] = []
    mine: list[dict[str, float]] | None = done
    try:
        with _asked_before_each_pass(network, stop):
            done.extend(
                case_dice(network, case, plan=plan, overlap=overlap, device=device, precision=precision)
                for case in cases[processes.rank :: processes.count]
            )
    except Interrupted:
        mine = None
    scores: list[Mapping[str, float]] = [{}] * len(cases)
    for rank, share in enumerate(processes.gather(mine)):
        if share is None:
            raise Interrupted
        scores[rank :: processes.count] = share
    by_class = {name: [score[name] for score in scores if name in score] for name in list(plan.labels)[1:]}
    return {name: float(np.mean(values)) for name, values in by_class.items() if values}


def case_dice(
    network: nn.Module,
    case: StoredCase,
    *,
    plan: Plan,
    overlap: float,
    device: torch.device,
    precision: torch.dtype | None,
) -> dict[str, float]:
    """Dice per foreground class of one case; without those that neither labels nor prediction have, or nobody looked for."""
    image, labels = whole_case(case, plan)
    scores = predict_scores(
        image,
        network,
        patch_size_xyz=plan.patch_size_xyz,
        class_count=plan.output_count,
        overlap=overlap,
        slice_axis=plan.slice_axis,
        device=device,
        precision=precision,
    )
    regions, labelled = plan.regions, case.labelled
    predicted = scores.argmax(axis=0) if regions is None else regions.decide(scores)
    predicted[labels == IGNORED] = 0
    result = {}
    for index, name in enumerate(list(plan.labels)[1:], start=1):
        if labelled is not None and name not in labelled:
            continue
        indices = (index,) if regions is None else regions.indices_of(name)
        found, truth = np.isin(predicted, indices), np.isin(labels, indices)
        total = int(np.count_nonzero(found)) + int(np.count_nonzero(truth))
        if total > 0:
            result[name] = 2 * int(np.count_nonzero(found & truth)) / total
    return result


def window_count(shape_xyz: Sequence[int], plan: Plan) -> int:
    """Windows that inference takes for an array of this shape, overlapping by half; every slice for itself in 2D."""
    counts = [
        size if axis == plan.slice_axis else len(window_starts(max(size, patch), patch, 0.5))
        for axis, (size, patch) in enumerate(zip(shape_xyz, plan.patch_size_xyz, strict=True))
    ]
    return math.prod(counts)


def timing_sample(cases: Sequence[StoredCase], plan: Plan) -> tuple[list[StoredCase], float]:
    """A few of the cases to time a validation with, and their share of all its windows, in (0, 1].

    The smallest cases, up to a quarter of the windows and at least one; all of them where they have 64 windows or fewer.
    """
    windows = {case.id: window_count(case.shape_xyz, plan) for case in cases}
    total = sum(windows.values())
    if total <= _FEW_WINDOWS:
        return list(cases), 1.0
    chosen: list[StoredCase] = []
    taken = 0
    for case in sorted(cases, key=lambda case: (windows[case.id], case.id)):
        if chosen and taken + windows[case.id] > total / 4:
            break
        chosen.append(case)
        taken += windows[case.id]
    return chosen, taken / total


@contextmanager
def _asked_before_each_pass(network: nn.Module, stop: Callable[[], bool]) -> Iterator[None]:
    def ask(*_: object) -> None:
        if stop():
            raise Interrupted

    hook = network.register_forward_pre_hook(ask)
    try:
        yield
    finally:
        hook.remove()
