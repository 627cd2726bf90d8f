"""How much memory a scan will take, before it is computed, and where its scores are gathered for it to fit.

The ladder, from its top: scores gathered on the device, in host memory, fewer windows a pass, the network on the CPU. In host
memory, all scores at once, or as many planes as a window is deep while finished ones wait in a temporary file. Which steps
are tried follows from the shapes; the ones below stay for the case that the device's memory runs out all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from medseg.networks.windows import default_batch_size

Gather = Literal["device", "host", "file"]

SHARE_OF_FREE = 0.75
"""Of what is free, that a scan may take; the rest is for what others begin meanwhile and for what is not predicted."""
_DEVICE_SHARE = 0.9
# The finest decoder stage holds its input twice (concatenated and reordered), its output and its norm's.
_FINEST_COPIES = 8
_SLAB_BYTES = 256 << 20
_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


@dataclass(frozen=True, kw_only=True)
class MemoryPrediction:
    """What one scan will take.

    Attributes:
        host_bytes: at most, beside what the process takes without a scan.
        device_bytes: at most; 0 where the network is on the CPU.
        file_bytes: of a temporary file that finished scores wait in; 0 where they fit in memory.
        windows: forward passes of one window, over all models and mirrored copies.
        way: where scores are gathered: "device", "host" or "file".
        refused: the sentence that the scan would be refused with; None where it fits.
    """

    host_bytes: int
    device_bytes: int = 0
    file_bytes: int = 0
    windows: int = 0
    way: str = "host"
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one scan needs at each point, in bytes.

    Attributes:
        scan: the volume as read, with its crop.
        image: the prepared array, padded.
        scores: all planes of all that is blended.
        rolling: the planes that one row of windows covers.
        one_pass: activations of one window.
        mask: class indices on the scan's grid, twice.
    """

    scan: int
    image: int
    scores: int
    rolling: int
    one_pass: int
    mask: int

    @classmethod
    def of(
        cls,
        *,
        scan_voxels: int,
        prepared_xyz: Sequence[int],
        patch_xyz: Sequence[int],
        channels: int,
        carried: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
    ) -> Need:
        """From shapes alone.

        Args:
            scan_voxels: of the scan's own grid.
            prepared_xyz: of the network's grid.
            patch_xyz: window.
            channels: that the network is given.
            carried: planes that are blended: classes, or features.
            features: channels per stage of the network.
            strides: per stage.
        """
        padded = [max(size, patch) for size, patch in zip(prepared_xyz, patch_xyz, strict=True)]
        voxels, axis = math.prod(padded), rolling_axis(prepared_xyz)
        scores = 4 * carried * voxels
        return cls(
            scan=4 * channels * 2 * scan_voxels,
            image=4 * channels * voxels,
            scores=scores,
            rolling=scores * min(padded[axis], patch_xyz[axis]) // padded[axis],
            one_pass=_pass_bytes(patch_xyz, features, strides) + 3 * 4 * carried * math.prod(patch_xyz),
            mask=2 * scan_voxels,
        )

    def host_bytes(self, way: Way) -> int:
        """The peak of the host's memory on a way."""
        computing = way.batch_size * self.one_pass if way.device.type == "cpu" else 0
        kept = {"device": self.scores, "host": self.scores, "file": self.rolling}[way.gather]
        written = self.scores if way.gather != "file" else 0
        return max(self.scan + 2 * self.image, 2 * self.image + kept + computing, written + self.mask + _SLAB_BYTES)

    def device_bytes(self, way: Way) -> int:
        """The peak of the device's memory on a way; 0 on the CPU."""
        if way.device.type == "cpu":
            return 0
        gathered = self.image + self.scores if way.gather == "device" else 0
        return gathered + way.batch_size * self.one_pass

    def least(self) -> int:
        """Host memory of the way that takes least."""
        return self.host_bytes(Way(device=torch.device("cpu"), gather="file", batch_size=1))


@dataclass(frozen=True, kw_only=True)
class Way:
    """A step of the ladder.

    Attributes:
        device: where the network computes.
        gather: where scores are added up: on the device, in host memory, or there with finished planes in a file.
        batch_size: windows a pass.
    """

    device: torch.device
    gather: Gather
    batch_size: int

    def __str__(self) -> str:
        place = {"device": "the device's memory", "host": "host memory", "file": "a temporary file"}[self.gather]
        return f"network on {self.device.type}, {self.batch_size} window(s) a pass, scores in {place}"


def _pass_bytes(patch_xyz: Sequence[int], features: Sequence[int], strides: Sequence[Sequence[int]]) -> int:
    """Activations of one window, float32: every stage's skip, and what the finest decoder stage holds at once."""
    voxels = math.prod(patch_xyz)
    skips, left = 0.0, float(voxels)
    for width, stride in zip(features, strides, strict=True):
        left /= math.prod(stride)
        skips += width * left
    return int(4 * (skips + _FINEST_COPIES * features[0] * voxels))


def rolling_axis(prepared_xyz: Sequence[int]) -> int:
    """The longest axis: the buffer of a window's depth is smallest along it."""
    return max(range(3), key=lambda axis: prepared_xyz[axis])


def ladder(
    need: Need,
    *,
    device: torch.device,
    patch_xyz: Sequence[int],
    batch_size: int | None,
    host_free: int,
    device_free: int = 0,
) -> tuple[Way, ...]:
    """The steps that fit by prediction, best first, then those that take less; empty where even the last does not fit."""
    cpu = torch.device("cpu")
    steps = _device_steps(need, device, patch_xyz, batch_size, device_free) if device.type != "cpu" else []
    own = batch_size or default_batch_size(patch_xyz, cpu)
    steps += [Way(device=cpu, gather="host", batch_size=size) for size in dict.fromkeys((own, 1))]
    steps += [Way(device=cpu, gather="file", batch_size=size) for size in dict.fromkeys((own, 1))]
    return tuple(way for way in steps if need.host_bytes(way) <= host_free)


def _device_steps(
    need: Need, device: torch.device, patch_xyz: Sequence[int], batch_size: int | None, free: int
) -> list[Way]:
    own = batch_size or default_batch_size(patch_xyz, device)
    sizes = list(dict.fromkeys(max(1, own >> halving) for halving in range(own.bit_length())))
    gathers: tuple[Gather, ...] = ("device", "host", "file")
    steps = [Way(device=device, gather=gather, batch_size=size) for gather in gathers for size in sizes]
    return [way for way in steps if need.device_bytes(way) <= _DEVICE_SHARE * free]


def refusal(need: Need, prepared_xyz: Sequence[int], limit: int) -> str:
    """The sentence for a scan that no step of the ladder is low enough for."""
    return (
        f"scan: has {' x '.join(map(str, prepared_xyz))} voxels at the model's resolution and takes "
        f"{need.least() / 1e9:.1f} GB of memory at least, expected at most {limit / 1e9:.1f} GB; free some, or crop the scan"
    )


def free_main_bytes() -> int:
    """What the machine, or the container where that has less left, could still give."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    return min([free, *_left_in_containers()])


def _left_in_containers() -> Iterator[int]:
    root = Path("/sys/fs/cgroup")
    for limit, used, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):  # no limit ("max"), or another layout of control groups
            left = int((root / limit).read_text()) - int((root / used).read_text())
            stat = dict(line.split() for line in (root / used).with_name("memory.stat").read_text().splitlines())
            yield left + int(stat[reclaimable])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the host's or a device's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def together(predictions: Sequence[MemoryPrediction]) -> MemoryPrediction:
    """Of several configurations whose scores are all kept until the last is done."""
    return MemoryPrediction(
        host_bytes=sum(one.host_bytes for one in predictions),
        device_bytes=max(one.device_bytes for one in predictions),
        file_bytes=sum(one.file_bytes for one in predictions),
        windows=sum(one.windows for one in predictions),
        way=" ".join(dict.fromkeys(one.way for one in predictions)),
        refused=next((one.refused for one in predictions if one.refused is not None), None),
    )
