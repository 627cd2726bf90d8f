"""One optimiser step: forward, loss over the whole batch however it is split, backward, update, average."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medseg.config.train_sections import TrainSection
from medseg.training.batch import Batch
from medseg.training.distributed import ALONE, Processes
from medseg.training.losses import Loss, supervised_sums, supervised_value
from medseg.training.state import TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    section: TrainSection,
    loss: Loss,
    rate: float,
    seed: int,
    precision: torch.dtype | None,
    processes: Processes = ALONE,
) -> float:
    """One optimiser step; a loss or gradient that is not finite changes no weight.

    Losses are sums over samples first and a value later, so a batch in micro-batches or shared over processes has the loss
    and the gradient of the whole (up to rounding; batch norm sees micro-batches, dropout draws for each).

    Args:
        state: changed in place.
        batch: this process's share.
        section: the config's ``train``.
        loss: of one resolution.
        rate: learning rate.
        seed: of everything drawn in the step.
        precision: autocast type, None for float32.
        processes: those that share the batch.

    Returns:
        The loss of the whole batch; NaN where it or the gradient was not finite.
    """
    # Dropout draws from the global generator: seeded per step, a resumed run draws what an undisturbed one would.
    torch.manual_seed((seed * 1_000_003 + state.progress.step + processes.rank * 1_000_000_007) % 2**63)
    network, optimiser = state.network, state.optimiser
    parts = _micro_batches(batch, section.micro_batch)

    def forward(part: Batch) -> Sequence[Tensor]:
        with torch.autocast(part.images.device.type, dtype=precision, enabled=precision is not None):
            outputs = network(part.images)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    optimiser.zero_grad(set_to_none=True)
    # Kept graphs cost the memory of the whole batch and no time. Where memory is short (CUDA) one part's graph is held at a
    # time, and a loss that needs the whole batch's sums first gets them from a forward pass of its own.
    one_by_one = len(parts) > 1 and batch.images.device.type == "cuda"
    backward = _backward_one_by_one if one_by_one else _backward_together
    value = backward(forward, parts, loss, network, processes)
    parameters = [p for p in network.parameters() if p.requires_grad]
    processes.add_up_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, section.optimiser.gradient_norm or math.inf)
    result, length = torch.stack([value.detach(), norm.to(value.dtype)]).tolist()  # the step's only wait for the device
    if not (math.isfinite(result) and math.isfinite(length)):
        return float("nan")
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    _follow(state, section.optimiser.ema_decay)
    return float(result)


def _micro_batches(batch: Batch, size: int | None) -> list[Batch]:
    count = len(batch.images)
    if size is None or size >= count:
        return [batch]
    return [
        Batch(
            batch.images[i : i + size],
            batch.classes[i : i + size],
            batch.case_ids[i : i + size],
            None if batch.known is None else batch.known[i : i + size],
        )
        for i in range(0, count, size)
    ]


def _sums(outputs: Sequence[Tensor], part: Batch, loss: Loss) -> Tensor:
    return supervised_sums(outputs, part.classes, part.known, loss)


def _backward_together(
    forward: Callable[[Batch], Sequence[Tensor]],
    parts: Sequence[Batch],
    loss: Loss,
    _network: nn.Module,
    processes: Processes,
) -> Tensor:
    local = torch.stack([_sums(forward(part), part, loss) for part in parts]).sum(0)
    value = _value_of_total(local, processes.add_up(local), loss)
    value.backward()  # type: ignore[no-untyped-call]
    return value


def _value_of_total(local: Tensor, total: Tensor, loss: Loss) -> Tensor:
    # The value of everybody's sums, through which the gradient reaches only the local ones.
    return supervised_value(local + (total - local).detach() if total is not local else local, loss)


def _backward_one_by_one(
    forward: Callable[[Batch], Sequence[Tensor]],
    parts: Sequence[Batch],
    loss: Loss,
    network: nn.Module,
    processes: Processes,
) -> Tensor:
    first: Sequence[Tensor] | None = None
    if loss.needs_whole_batch:
        foreseen = _without_graph(forward, parts, loss, network)
    else:
        # Only the sums over labels matter for the gradient's scale; logits of the right shapes give them without a network.
        first = forward(parts[0])
        foreseen = torch.stack([_sums(_zeros(first, part), part, loss) for part in parts])
    total = processes.add_up(foreseen.sum(0))
    seen = []
    for part, ahead in zip(parts, foreseen, strict=True):
        local = _sums(first if first is not None else forward(part), part, loss)
        first = None
        supervised_value(local + (total - ahead).detach(), loss).backward()  # type: ignore[no-untyped-call]
        seen.append(local.detach())
    return supervised_value(processes.add_up(torch.stack(seen).sum(0)), loss)


@torch.no_grad()
def _without_graph(
    forward: Callable[[Batch], Sequence[Tensor]], parts: Sequence[Batch], loss: Loss, network: nn.Module
) -> Tensor:
    # The pass that counts comes later: it must find the running statistics and the generator as they were.
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    device = parts[0].images.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        result = torch.stack([_sums(forward(part), part, loss) for part in parts])
    for buffer, before in buffers:
        buffer.copy_(before)
    return result


def _zeros(outputs: Sequence[Tensor], part: Batch) -> list[Tensor]:
    return [output.new_zeros(()).expand(len(part.images), *output.shape[1:]) for output in outputs]


@torch.no_grad()
def _follow(state: TrainState, decay: float) -> None:
    # The decay rises with the steps, so that a short run's average is not dominated by its untrained beginning.
    share = 1 - min(decay, (1 + state.progress.step) / (10 + state.progress.step)) if decay > 0 else 1.0
    pairs = list(zip(_values(state.average), _values(state.network), strict=True))
    floating = [(average, own) for average, own in pairs if own.is_floating_point()]
    torch._foreach_lerp_([average for average, _ in floating], [own for _, own in floating], share)
    for average, own in pairs:
        if not own.is_floating_point():
            average.copy_(own)


def _values(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
