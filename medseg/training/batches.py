"""Step number to batch: reading, spatial change and intensity change of each sample, as a pure function."""

from __future__ import annotations

import collections
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from medseg.augmentation.drawing import draw_intensity, draw_spatial, in_plane_axis, largest_rotation, mirror_axes
from medseg.augmentation.previous import draw_previous
from medseg.config.train_sections import TrainSection
from medseg.preparation.plan import Plan
from medseg.training.augmentation import Sample, make_tensors, read_sample, side_labels
from medseg.training.batch import Batch
from medseg.training.previous import join_previous
from medseg.training.sampling import PatchSource, draw_patch, sample_rng

if TYPE_CHECKING:
    from medseg.adapters.monai_random import ExtraTransforms

_LOG = logging.getLogger(__name__)
_CUDA_WORKERS = 4
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of any step: ``maker(step)``; sample k is the (k mod batch size)-th of step k // batch size.

    It may be called by several threads at once. On a CPU a batch does not depend on the number of threads to the last bit.
    """

    sources: Sequence[PatchSource]
    plan: Plan
    section: TrainSection
    seed: int
    device: torch.device
    share: tuple[int, int] = (0, 1)
    """(rank, processes): this process makes its consecutive share of each batch; the shares in rank order are the batch."""
    partly_labelled: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    """Case id to which of the plan's labels, background first, it was labelled for; cases not named have all."""

    def __call__(self, step: int) -> Batch:
        """(B, C, X, Y, Z) images and (B, X, Y, Z) classes on the device; 2D plans leave out their slice axis."""
        size = self.plan.batch_size
        rank, processes = self.share
        first, last = size * rank // processes, size * (rank + 1) // processes
        samples = [self._sample(step * size + i) for i in range(first, last)]
        images, classes = make_tensors(
            samples,
            self.plan.patch_size_xyz,
            device=self.device,
            masked_channels=tuple(i for i, channel in enumerate(self.plan.channels) if channel.use_mask),
            only_axis=self._only_axis,
            extra=self.extra,
        )
        if count := self.plan.previous_channels:
            images = join_previous(images, samples, self.plan.patch_size_xyz, count=count, extra=self.extra)
        if (axis := self.plan.slice_axis) is not None:
            images, classes = images.squeeze(2 + axis), classes.squeeze(1 + axis)
        case_ids = tuple(sample.case_id for sample in samples)
        return Batch(images, classes, case_ids, self._known(case_ids))

    def _known(self, case_ids: Sequence[str]) -> torch.Tensor | None:
        if not self.partly_labelled:
            return None
        everything = (True,) * len(self.plan.labels)
        return torch.tensor([self.partly_labelled.get(case_id, everything) for case_id in case_ids], device=self.device)

    @cached_property
    def _only_axis(self) -> int | None:
        return in_plane_axis(self.plan.patch_size_xyz, self.plan.spacing_xyz_mm, self.plan.slice_axis)

    @cached_property
    def extra(self) -> ExtraTransforms | None:
        """The config's MONAI transforms, None where it names none.

        Raises:
            ConfigError: arguments that they don't take.
        """
        wanted = [(one.name, one.arguments) for one in self.section.augmentation.extra]
        if not wanted:
            return None
        from medseg.adapters.monai_random import ExtraTransforms  # MONAI takes seconds to import

        return ExtraTransforms(wanted, slice_axis=self.plan.slice_axis)

    def _sample(self, k: int) -> Sample:
        plan, augmentation = self.plan, self.section.augmentation
        patch = draw_patch(
            self.sources,
            seed=self.seed,
            k=k,
            size_xyz=plan.patch_size_xyz,
            batch_size=plan.batch_size,
            foreground_share=self.section.foreground_share,
        )
        spatial = draw_spatial(
            patch.rng,
            augmentation,
            axes=mirror_axes(augmentation, plan.slice_axis, plan.mirror_axes),
            only_axis=self._only_axis,
            spacing_xyz_mm=plan.spacing_xyz_mm,
            largest_degrees=largest_rotation(plan.patch_size_xyz, self._only_axis, plan.slice_axis),
        )
        intensity = draw_intensity(patch.rng, augmentation, len(plan.channels))
        previous = None
        if plan.previous_channels:
            # A stream of its own: what is drawn for image and labels is as without a first stage.
            rng = sample_rng(self.seed, k, stream=2)
            previous = draw_previous(rng, augmentation, plan.previous_channels)
        return read_sample(self.sources[patch.case], patch.start_xyz, plan.patch_size_xyz, spatial, intensity, previous)


def open_batches(maker: BatchMaker, workers: int | None) -> Callable[[int], Batch]:
    """``maker`` itself, or `Prefetched` around it; the batches are the same.

    Says once where sides of the body would be mirrored into each other.

    Args:
        maker: of the batches; its device decides what ``workers: null`` means.
        workers: threads that make the next batches meanwhile; 0 makes each batch when it is asked for; None is 0 on a CPU,
            whose cores the step itself keeps busy, and up to 4 on a GPU.

    Raises:
        ConfigError: MONAI transforms of the config get arguments that they don't take.
    """
    warn_of_mirrored_sides(maker.plan, maker.section)
    _ = maker.extra  # so that faults of the config show before anything is trained
    if workers is None:
        workers = min(_CUDA_WORKERS, max(1, (os.cpu_count() or 1) - 1)) if maker.device.type == "cuda" else 0
    return Prefetched(maker, workers, device=maker.device) if workers else maker


def warn_of_mirrored_sides(plan: Plan, section: TrainSection) -> None:
    """Warns where labels look like sides of the body and patches are mirrored from left to right."""
    sided = side_labels([name for name in plan.labels if name != "background"])
    mirrored = mirror_axes(section.augmentation, plan.slice_axis, plan.mirror_axes)
    risky = tuple(axis for axis in mirrored if axis == 0 or plan.orientation == "native")
    if not sided or not risky:
        return
    kept = ", ".join("xyz"[axis] for axis in mirrored if axis not in risky)
    shown = ", ".join(sided[:4]) + (", ..." if len(sided) > 4 else "")
    _LOG.warning(
        "train.augmentation.mirror_axes: mirrors along %s, while labels look like sides of the body (%s), which a mirror "
        "exchanges; set mirror_axes: [%s] unless that is meant",
        ", ".join("xyz"[axis] for axis in risky), shown, kept,
    )  # fmt: skip


class Prefetched:
    """The same batches, the next few made in threads meanwhile.

    Threads, not processes: nearly all of the work is done outside Python's lock, nothing has to be copied or pickled, and
    none can die unseen. What one of them raises is raised where its batch is asked for, with its name; where it does not
    answer (a network drive that hangs), a warning names it every minute. On a GPU the threads copy and augment on a stream
    of their own, so that the device need not wait for the batch and the batch not for the device.

    Args:
        make: step to batch; called by several threads at once.
        threads: how many.
        device: where batches are made.
    """

    def __init__(self, make: Callable[[int], Batch], threads: int, device: torch.device | None = None) -> None:
        self._make, self._threads = make, threads
        on_gpu = device is not None and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._waiting: collections.deque[tuple[int, Future[_Made]]] = collections.deque()
        self._busy: dict[int, str] = {}
        # Each thread computes on one core; the number of threads of the caller has to be set again after.
        own = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, "loader", initializer=torch.set_num_threads, initargs=(1,))
        everyone = threading.Barrier(threads + 1)
        for _ in range(threads):
            self._pool.submit(everyone.wait)
        everyone.wait()
        torch.set_num_threads(own)

    def __call__(self, step: int) -> Batch:
        """The batch of ``step``; asking out of order costs only the batches made in vain."""
        if not self._waiting or self._waiting[0][0] != step:
            self._forget()
            self._waiting.append((step, self._pool.submit(self._made, step)))
        while len(self._waiting) <= self._threads:
            ahead = self._waiting[-1][0] + 1
            self._waiting.append((ahead, self._pool.submit(self._made, ahead)))
        return self._taken(step, self._waiting.popleft()[1])

    def close(self) -> None:
        """Gives up the batches not yet asked for and ends the threads."""
        self._forget()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _forget(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    def _made(self, step: int) -> _Made:
        self._busy[step] = worker = threading.current_thread().name
        try:
            if self._stream is None:
                return _Made(self._make(step))
            with torch.cuda.stream(self._stream):
                return _Made(self._make(step), self._stream.record_event())
        except BaseException as error:
            error.add_note(f"raised by {worker} while it made the batch of step {step}")
            raise
        finally:
            del self._busy[step]

    def _taken(self, step: int, future: Future[_Made]) -> Batch:
        while not wait([future], timeout=_PATIENCE_SECONDS).done:
            worker = self._busy.get(step, "loader")
            _LOG.warning(
                "%s: the batch of step %d is not there after %g s; is the disk away?",
                worker,
                step,
                _PATIENCE_SECONDS,
            )
        made = future.result()
        if made.ready is not None:
            current = torch.cuda.current_stream()
            current.wait_event(made.ready)
            for tensor in (made.batch.images, made.batch.classes, made.batch.known):
                if tensor is not None and tensor.is_cuda:
                    tensor.record_stream(current)
        return made.batch


@dataclass(frozen=True)
class _Made:
    """A batch, and on a GPU the event after which it is there."""

    batch: Batch
    ready: torch.cuda.Event | None = None
