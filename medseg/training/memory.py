"""The peak memory of training, from shapes alone.

One training step is run on tensors without content (PyTorch's ``FakeTensorMode``: shapes, types and devices are real, nothing
is allocated or computed) while every storage's birth and death is noted. So any network, loss and precision is counted as
it is, and a step that would not fit costs nothing to look at. What no tensor shows is added from measurements, see `_OVERHEAD`.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.config.train_sections import OptimiserSection, TrainSection
from medseg.networks.build import build_network
from medseg.preparation.plan import Plan
from medseg.training.losses import Loss, supervised_loss
from medseg.training.schedule import build_optimiser

_LOG = logging.getLogger(__name__)
_FRAGMENTS = 1.05
"""Allocated over used. CPU (glibc, oneDNN's reordered copies): 1.02 to 1.10 over four networks."""
_OVERHEAD = {"cpu": 0.2e9, "cuda": 0.6e9}
"""Bytes that come with the first step whatever the network: kernels, primitive caches, on CUDA the context."""


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes that training will have taken at its peak.

    Attributes:
        weights: network, its moving average and the optimiser's state.
        step: the rest of one step at its peak: batch, activations, gradients, temporaries.
        overhead: libraries, kernels, and what the allocator wastes.
        base: what the process holds already; 0 on CUDA, whose memory it does not touch.
    """

    weights: int
    step: int
    overhead: int
    base: int = 0

    @property
    def peak(self) -> int:
        """All of it."""
        return self.weights + self.step + self.overhead + self.base


def predict_memory(
    architecture: Mapping[str, Any],
    *,
    plan: Plan,
    section: TrainSection,
    loss: Loss,
    device: torch.device,
    precision: torch.dtype | None,
    base_bytes: int = 0,
) -> MemoryForecast:
    """The peak of training's steps; validation is not looked at.

    Args:
        architecture: of the network.
        plan: for patch, batch and channels.
        section: the config's ``train``.
        loss: of one resolution.
        device: where to train.
        precision: autocast type, None for float32.
        base_bytes: what the process takes before.
    """
    samples = plan.batch_size
    if device.type == "cuda" and section.micro_batch is not None:  # one micro-batch's graph is held at a time
        samples = min(samples, section.micro_batch)
    spatial = [n for axis, n in enumerate(plan.patch_size_xyz) if axis != plan.slice_axis]
    with FakeTensorMode(), _LiveBytes() as live:
        with torch.device(device):
            network = build_network(architecture).train()
            batch = torch.empty((plan.batch_size, plan.input_count, *spatial))
            classes = torch.zeros((plan.batch_size, *spatial), dtype=torch.uint8)
        parameters = _parameter_bytes(network)
        _step(network, batch[:samples], classes[:samples], loss, precision)
    copies = _optimiser_copies(section.optimiser)
    own = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    weights = 2 * own + copies * parameters
    # The optimiser works in lists over all parameters: gradients, and a temporary or two of their size.
    step = max(live.peak - own, 3 * parameters + batch.nbytes + classes.nbytes)
    overhead = _OVERHEAD.get(device.type, 0.0) + (_FRAGMENTS - 1) * (weights + step)
    return MemoryForecast(weights, step, int(overhead), base_bytes if device.type == "cpu" else 0)


def _step(network: nn.Module, images: Tensor, classes: Tensor, loss: Loss, precision: torch.dtype | None) -> None:
    with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
        outputs = network(images)
    try:
        value = supervised_loss(outputs, classes, loss)
    except Exception as error:  # noqa: BLE001 - a loss that looks at values can't be traced: cross-entropy stands for it
        _LOG.debug("the loss can't be traced (%s), cross-entropy stands for it", type(error).__name__)
        finest = (outputs if isinstance(outputs, Tensor) else outputs[0]).float()
        value = nn.functional.cross_entropy(finest, finest.argmax(1))
    value.backward()  # type: ignore[no-untyped-call]


def _parameter_bytes(network: nn.Module) -> int:
    return sum(p.nbytes for p in network.parameters() if p.requires_grad)


def _optimiser_copies(section: OptimiserSection) -> int:
    """Tensors of a parameter's size that the optimiser keeps for it, found by stepping once on a small one."""
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.zeros(3)
    optimiser = build_optimiser(section, [parameter])
    optimiser.step()
    return sum(isinstance(v, Tensor) and v.numel() == 3 for v in optimiser.state[parameter].values())


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operation makes, until the last tensor on it is gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor):
                    self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001 - the storage's address; Python wrappers come and go
        if key in self._known:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def resident_bytes() -> int:
    """Main memory that this process takes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
