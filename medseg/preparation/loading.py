"""Scans for ``prepare``, read through MONAI's ``LoadImaged`` with our reader. The one module here that knows MONAI.

Importing it takes seconds, so it is imported by the processes that read. Inference reads with `case.load_case`, which gives
the same voxels.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from medseg.config.series import SeriesSection
from medseg.imaging import Volume, read_header
from medseg.manifest.cases import Channel
from medseg.preparation.case import join_channels
from medseg.preparation.plan import ChannelPlan
from medseg.runner.resources import quick_imports

with quick_imports():
    from monai.transforms import LoadImaged

    from medseg.adapters.reader import MedsegReader


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Holds a logger's warnings back."""
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@lru_cache(maxsize=16)
def _loader(channels: int, unit: str | None, series: SeriesSection | None) -> LoadImaged:
    # LoadImage makes every reader MONAI has, also those we don't use, and these complain of libraries they lack.
    with warnings.catch_warnings(), _quiet("monai.data.nvimgcodec_pydicom_plugin"):
        warnings.simplefilter("ignore")
        return LoadImaged(keys="image", reader=MedsegReader(channels=channels, unit=unit, series=series))


def load_scan(images: Sequence[Path], channels: Sequence[ChannelPlan | Channel]) -> Volume:
    """As `medseg.preparation.case.load_case`, by way of MONAI."""
    return join_channels(images, channels, _load)


def _load(path: Path, count: int, first: ChannelPlan | Channel) -> Volume:
    with _quiet("medseg.adapters.reader"):  # what it would warn of comes with the header, and prepare's table shows it
        tensor = _loader(count, first.unit, first.series)({"image": str(path)})["image"]
    array = np.asarray(tensor.as_tensor().numpy(), np.float32)
    affine = np.array(tensor.affine.numpy(), np.float64)
    return Volume(
        array, affine, replace(read_header(path, series=first.series), warnings=tuple(tensor.meta["warnings"]))
    )
