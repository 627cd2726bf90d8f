"""Step number to batch: reading, spatial change and intensity change of each sample, as a pure function."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from medseg.config.train_sections import TrainSection
from medseg.preparation.plan import Plan
from medseg.training.augmentation import augment_intensity, draw_spatial, in_plane_axis, mirror_axes, read_sample
from medseg.training.batch import Batch
from medseg.training.sampling import PatchSource, draw_patch


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of any step: ``maker(step)``; sample k is the (k mod batch size)-th of step k // batch size."""

    sources: Sequence[PatchSource]
    plan: Plan
    section: TrainSection
    seed: int
    device: torch.device

    def __call__(self, step: int) -> Batch:
        """(B, C, X, Y, Z) images and (B, X, Y, Z) classes on the device; 2D plans leave out Z."""
        size = self.plan.batch_size
        samples = [self._sample(step * size + i) for i in range(size)]
        images = torch.stack([image for image, _, _ in samples])
        classes = torch.stack([labels for _, labels, _ in samples])
        if self.plan.dimensions == 2:
            images, classes = images.squeeze(-1), classes.squeeze(-1)
        return Batch(images, classes, tuple(case_id for _, _, case_id in samples))

    def _sample(self, k: int) -> tuple[torch.Tensor, torch.Tensor, str]:
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
            axes=mirror_axes(augmentation, plan.dimensions),
            only_axis=in_plane_axis(plan.patch_size_xyz, plan.spacing_xyz_mm, plan.dimensions),
            spacing_xyz_mm=plan.spacing_xyz_mm,
        )
        source = self.sources[patch.case]
        image, labels = read_sample(
            source, patch.start_xyz, plan.patch_size_xyz, spatial, class_count=plan.class_count, device=self.device
        )
        masked = tuple(i for i, channel in enumerate(plan.channels) if channel.use_mask)
        return augment_intensity(image, patch.rng, augmentation, masked_channels=masked), labels, source.id


class Prefetched:
    """The same batches, the next few made in threads meanwhile; for a device whose steps leave the host's cores idle."""

    def __init__(self, make: Callable[[int], Batch], threads: int) -> None:
        self._make, self._threads = make, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        self._waiting: collections.deque[tuple[int, Future[Batch]]] = collections.deque()

    def __call__(self, step: int) -> Batch:
        """The batch of ``step``; asking out of order costs only the batches made in vain."""
        if not self._waiting or self._waiting[0][0] != step:
            self.close_waiting()
            self._waiting.append((step, self._pool.submit(self._make, step)))
        while len(self._waiting) <= self._threads:
            ahead = self._waiting[-1][0] + 1
            self._waiting.append((ahead, self._pool.submit(self._make, ahead)))
        return self._waiting.popleft()[1].result()

    def close_waiting(self) -> None:
        """Gives up the batches not yet asked for."""
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
