"""Learning rate and optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from medseg.config.train_sections import OptimiserSection


def learning_rate(section: OptimiserSection, step: int, steps: int) -> float:
    """Rate of step ``step`` (0-based) of ``steps``: linear warm-up, then the schedule, which ends at 0 with the budget."""
    warmup = math.ceil(steps * section.warmup_fraction)
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if section.schedule == "cosine":
        return section.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if section.schedule == "poly":
        return float(section.learning_rate * (1 - done) ** 0.9)
    return section.learning_rate


def build_optimiser(section: OptimiserSection, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum; weight decay spares vectors (biases and norms)."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if section.kind == "sgd":
        nesterov = section.momentum > 0
        return torch.optim.SGD(groups, lr=section.learning_rate, momentum=section.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=section.learning_rate)
