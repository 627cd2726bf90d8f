"""Adding up what a network answers to overlapping windows: all of an image at once, or a few planes at a time."""

from __future__ import annotations

from typing import Protocol

import torch


class Windows(Protocol):
    """Where the windows of an image are and how much each counts at its voxels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(X, Y, Z) of the image with its padding."""

    @property
    def patch(self) -> tuple[int, ...]:
        """(X, Y, Z) of a window."""

    def __len__(self) -> int:
        """How many there are."""

    def start(self, index: int, axis: int) -> int:
        """First voxel of a window along an axis."""

    def where(self, index: int) -> tuple[slice, ...]:
        """Slices of (channels, X, Y, Z)."""

    def weight(self, index: int, device: torch.device) -> torch.Tensor | None:
        """(X, Y, Z) share of each voxel; None where it is 1."""


class Sink(Protocol):
    """Takes finished planes, each once and in their order."""

    axis: int
    """Along which planes follow each other (0 = x)."""

    def take(self, planes: torch.Tensor, start: int) -> None:
        """The next planes: (K, X, Y, Z) float32 with n planes along ``axis``, the first of which is plane ``start``."""


class Blend:
    """The growing result: the mean of a window's mirror copies, times the window's share of each voxel, added up.

    Args:
        windows: of the padded image.
        copies: mirror copies of each.
        device: where the result lies.
        cut: the image within its padding.
        sink: None here.
    """

    def __init__(
        self, windows: Windows, copies: int, device: torch.device, cut: tuple[slice, ...], sink: Sink | None
    ) -> None:
        self._windows, self._copies, self._device = windows, copies, device
        self._cut, self._sink = cut, sink
        self._sum: torch.Tensor | None = None
        self._summed = 0
        self._result: torch.Tensor | None = None
        self.background_window: int | None = None
        """The first window of background alone; its answer holds for all of them."""
        self._background: torch.Tensor | None = None
        self._waiting: list[int] = []
        self.repeated = 0

    def add(self, window: int, scores: torch.Tensor) -> None:
        """Adds one copy's scores (K, X, Y, Z) float32; a window's copies must follow each other."""
        if self._copies == 1:
            self._sum = scores
        else:
            self._sum = scores.clone() if self._sum is None else self._sum.add_(scores)
        self._summed += 1
        if self._summed < self._copies:
            return
        mean = self._sum if self._copies == 1 else self._sum.div_(self._copies)
        self._sum, self._summed = None, 0
        if window == self.background_window:
            self._background = mean.clone()
        self._place(window, mean)
        if self._background is not None:
            for other in self._waiting:
                self._place(other, self._background)
            self._waiting.clear()

    def repeat(self, window: int) -> None:
        """Gives a window the answer of the background window, at once or as soon as that one is computed."""
        self.repeated += 1
        if self._background is None:
            self._waiting.append(window)
        else:
            self._place(window, self._background)

    def _place(self, window: int, mean: torch.Tensor) -> None:
        if self._result is None:
            self._result = self._new(mean.shape[0])
        target = self._target(window)
        weight = self._windows.weight(window, mean.device)
        if mean.device != target.device:
            target.add_((mean if weight is None else mean * weight).to(target.device))
        elif weight is None:
            target.add_(mean)
        else:
            target.addcmul_(mean, weight)

    def _new(self, classes: int) -> torch.Tensor:
        return torch.zeros((classes, *self._windows.shape), dtype=torch.float32, device=self._device)

    def _target(self, window: int) -> torch.Tensor:
        assert self._result is not None
        return self._result[self._windows.where(window)]

    def finish(self) -> torch.Tensor:
        """(K, X, Y, Z) of the image, without its padding; after the last window."""
        assert self._result is not None
        return self._result[(slice(None), *self._cut)]


class RollingBlend(Blend):
    """A buffer as deep as a window along the sink's axis; planes leave it when the windows have passed them."""

    _first = 0
    """The plane of the image (with its padding) that the buffer begins with."""

    def repeat(self, window: int) -> None:
        """As `Blend.repeat`, once all windows before it have been placed: windows must not overtake each other here."""
        self.repeated += 1
        self._waiting.append(window)

    def add(self, window: int, scores: torch.Tensor) -> None:
        """As `Blend.add`; background windows that stand before this one are placed first."""
        self._place_waiting(before=window)
        super_waiting, self._waiting = self._waiting, []
        super().add(window, scores)
        self._waiting = super_waiting

    def _place_waiting(self, before: int) -> None:
        while self._waiting and self._waiting[0] < before and self._background is not None:
            self._place(self._waiting.pop(0), self._background)

    def _new(self, classes: int) -> torch.Tensor:
        assert self._sink is not None
        shape = list(self._windows.shape)
        shape[self._sink.axis] = self._windows.patch[self._sink.axis]
        return torch.zeros((classes, *shape), dtype=torch.float32, device=self._device)

    def _target(self, window: int) -> torch.Tensor:
        assert self._sink is not None
        assert self._result is not None
        axis = self._sink.axis
        self._advance(self._windows.start(window, axis))
        where = list(self._windows.where(window))
        where[1 + axis] = slice(None)
        return self._result[tuple(where)]

    def _advance(self, start: int) -> None:
        """Hands over the planes before ``start`` and moves the rest to the front."""
        assert self._sink is not None
        assert self._result is not None
        axis, count = 1 + self._sink.axis, start - self._first
        if count <= 0:
            return
        depth = self._result.shape[axis]
        self._hand_over(self._result.narrow(axis, 0, min(count, depth)))
        if count < depth:
            rest = self._result.narrow(axis, count, depth - count).clone()
            self._result.narrow(axis, 0, depth - count).copy_(rest)
        self._result.narrow(axis, max(0, depth - count), min(count, depth)).zero_()
        self._first = start

    def _hand_over(self, planes: torch.Tensor) -> None:
        """Without what is padding."""
        assert self._sink is not None
        axis, cut = self._sink.axis, self._cut[self._sink.axis]
        low, high = max(cut.start, self._first), min(cut.stop, self._first + planes.shape[1 + axis])
        if low >= high:
            return
        where = [slice(None), *self._cut]
        where[1 + axis] = slice(low - self._first, high - self._first)
        self._sink.take(planes[tuple(where)], low - cut.start)

    def finish(self) -> torch.Tensor:
        """Hands over what is left; the result is empty."""
        assert self._result is not None
        self._place_waiting(before=len(self._windows))
        self._hand_over(self._result)
        return torch.empty(0)
