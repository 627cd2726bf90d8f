"""Several processes train one network: which of them this one is, and the few things they tell each other.

Each process makes its share of every batch. Loss sums and gradients are added up over the processes, so all of them take
the same optimiser step and hold the same weights; nothing but these sums travels.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medseg.errors import EnvironmentFault, MedsegError

T = TypeVar("T")
_CPU = torch.device("cpu")
_TIMEOUT = timedelta(hours=1)  # one process may validate a large scan while the others wait


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. With ``count`` 1 nothing is sent and no backend is needed.

    Attributes:
        rank: of this process, from 0.
        count: of processes.
        device: where tensors lie that are sent: NCCL wants CUDA, gloo the CPU.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = _CPU

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and logs."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of every process's ``tensor``, on the tensor's own device; ``tensor`` itself where there is one process."""
        if self.count == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        with _together():
            dist.all_reduce(total)
        return total.to(tensor.device)

    def any(self, flag: object) -> bool:
        """Whether ``flag`` is true in any process."""
        if self.count == 1:
            return bool(flag)
        return bool(self.add_up(torch.tensor(float(bool(flag)), device=self.device)) > 0)

    def from_first(self, value: T) -> T:
        """The value that the first process has."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        with _together():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return cast("T", box[0])

    def clock(self) -> float:
        """``time.monotonic()`` of the first process, so that all of them decide alike."""
        if self.count == 1:
            return time.monotonic()
        now = torch.tensor(time.monotonic(), dtype=torch.float64, device=self.device)
        with _together():
            dist.broadcast(now, src=0)
        return float(now)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(values, value)
        return values

    def only_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in the first process, the only one that does it; its refusals are raised in all of them."""
        if self.count == 1:
            return work()
        outcome: tuple[Any, type[MedsegError] | None, Any] = (None, None, None)
        if self.first:
            try:
                outcome = (work(), None, None)
            except MedsegError as error:
                outcome = (None, type(error), list(getattr(error, "faults", ())) or str(error))
        value, kind, message = self.from_first(outcome)
        if kind is not None:
            raise kind(message)
        return cast("T", value)

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each parameter's gradient by its sum over the processes, in one message.

        A parameter without a gradient (a head that takes no part in the loss) has none in any process, and stays so.
        """
        if self.count == 1:
            return
        learning = [p for p in parameters if p.grad is not None]
        flat = self.add_up(torch.cat([cast("Tensor", p.grad).reshape(-1) for p in learning]))
        for parameter, part in zip(learning, torch.split(flat, [p.numel() for p in learning]), strict=True):
            parameter.grad = part.view_as(parameter)


ALONE = Processes()
"""The only process of a run."""


@contextlib.contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that ``torchrun`` started beside this one; ``ALONE`` where it started none.

    Unless one fails, they leave together.

    Reads the variables ``torchrun`` sets (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); any launcher may set them.

    Raises:
        EnvironmentFault: the others can't be reached.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if count == 1:
        yield ALONE
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT, device_id=device if cuda else None)
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(
            f"training: {count} processes were announced and can't be joined ({type(error).__name__}); start them with "
            "torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each"
        ) from error
    try:
        yield Processes(dist.get_rank(), count, device if cuda else _CPU)
        # A launcher ends the others once one has ended, and the first may still be writing.
        with contextlib.suppress(RuntimeError):
            dist.barrier()
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several on one machine the n-th takes the n-th GPU, where none was asked for by number.

    Raises:
        EnvironmentFault: there are fewer GPUs than processes.
    """
    if device != torch.device("cuda") or "LOCAL_RANK" not in os.environ:
        return device
    number, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= found:
        raise EnvironmentFault(f"training: process {number} has no GPU, found {found}; start as many processes as GPUs")
    return torch.device("cuda", number)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors; a peer that died shows as one
        raise EnvironmentFault(
            "training: another process of this run is gone or can't be reached; the state is saved, run the same command again"
        ) from error


class _Added(torch.autograd.Function):
    """The sum over processes, as a step of the computation that gradients flow through."""

    @staticmethod
    def forward(context: Any, processes: Processes, tensor: Tensor) -> Tensor:
        context.processes = processes
        return processes.add_up(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, context.processes.add_up(gradients[0])


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the common base of batch norms
    """Batch norm whose training statistics are those of the whole batch, over all processes; any backend, 2D and 3D.

    Statistics are taken in float32, the variance about the mean (not as a difference of sums, which cancels).
    """

    processes: Processes = ALONE

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002, ARG002 - torch's name
        return

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(B, C, ...) to the same shape."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        axes = [0, *range(2, input.ndim)]
        shape = (1, -1, *([1] * (input.ndim - 2)))
        count = self.processes.add_up(values.new_tensor(float(values.numel() // values.shape[1])))
        mean = self._total(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = self._total(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        result = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)

    def _total(self, sums: Tensor) -> Tensor:
        return cast("Tensor", _Added.apply(self.processes, sums))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        seen = cast("Tensor", self.num_batches_tracked).add_(1)
        share = 1 / float(seen) if self.momentum is None else self.momentum
        cast("Tensor", self.running_mean).lerp_(mean, share)
        cast("Tensor", self.running_var).lerp_(variance, share)


def share_batch_norms(network: nn.Module, processes: Processes) -> nn.Module:
    """``network`` with each batch norm replaced by one over all processes; names and tensors of the weights stay.

    Instance and group norms look at one sample and need nothing. With one process the network is returned as it is.
    """
    if processes.count == 1:
        return network
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, SharedBatchNorm):  # noqa: SLF001
                setattr(parent, name, _shared(child, processes))
    return network


def _shared(norm: nn.modules.batchnorm._BatchNorm, processes: Processes) -> SharedBatchNorm:
    result = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    result.processes = processes
    result.weight, result.bias = norm.weight, norm.bias
    result.running_mean, result.running_var = norm.running_mean, norm.running_var
    result.num_batches_tracked = norm.num_batches_tracked
    return result.train(norm.training)
