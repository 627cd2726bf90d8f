"""A cascade: a first network's mask of the scan is further channels of a second one's input, nnU-Net's 3d_cascade_fullres.

The first stage, mostly an ensemble at a low resolution, makes a mask on the scan's own grid, as it would for itself. That
mask goes to the second stage's prepared grid as label maps do, and in one channel per class beside the image. It is what
``nnUNetv2_predict -prev_stage_predictions`` does with the masks that it wrote before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medseg.config.sections import InferSection
from medseg.errors import ModelError
from medseg.evaluation.postprocessing import Step
from medseg.imaging import Header, LabelMap, Volume
from medseg.imaging.volume import Affine
from medseg.inference.engine import ClassArray, Engine, Scores
from medseg.inference.memory import MemoryPrediction
from medseg.inference.model import Model
from medseg.inference.sliding_window import FloatArray
from medseg.preparation.grid import Grid
from medseg.preparation.plan import Plan
from medseg.preparation.previous import with_previous

if TYPE_CHECKING:
    from medseg.inference.ensemble import MaskMaker


@dataclass(frozen=True, kw_only=True)
class CascadeArrays:
    """A scan as both stages see it.

    Attributes:
        first, first_grid: what the first stage's ``prepare`` gave.
        image: (C, X, Y, Z) float32 as the second stage prepares it, without the first's mask.
        grid: of ``image``.
    """

    first: Any
    first_grid: Any
    image: FloatArray
    grid: Grid

    @property
    def nbytes(self) -> int:
        """Of the arrays of both stages."""
        parts = self.first if isinstance(self.first, tuple) else (self.first,)
        return int(self.image.nbytes) + sum(int(part.nbytes) for part in parts)


class CascadeEngine:
    """Two engines, the first of which draws a mask for the second.

    Args:
        first: of the first stage; its post-processing, where it has any, is part of it.
        second: of models whose plans have ``previous_channels``.

    Raises:
        ModelError: the stages have other labels or channels, or the second has another number of mask channels.
    """

    def __init__(self, first: MaskMaker, second: Engine) -> None:
        self.first, self.second, self.section = first, second, second.section
        name, plan = second.models[0].folder.name, second.plan
        for what, own, wanted in (
            ("labels", plan.labels, first.plan.labels),
            ("channels", [c.name for c in plan.channels], [c.name for c in first.plan.channels]),
            ("previous_channels", plan.previous_channels, first.plan.class_count - 1),
        ):
            if own != wanted:
                raise ModelError(
                    f"{name}: {what} of its plan is {own}, expected {wanted} as of its first stage; train both stages on one "
                    "data set"
                )

    @property
    def models(self) -> tuple[Model, ...]:
        """The second stage's."""
        return self.second.models

    @property
    def plan(self) -> Plan:
        """The second stage's."""
        return self.second.plan

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return self.second.class_names

    @property
    def steps(self) -> tuple[Step, ...]:
        """Post-processing of the masks."""
        return self.second.steps

    def settings(self) -> dict[str, str]:
        """All that a mask depends on beside the scan, as checksums and short texts."""
        own, first = self.second.settings(), self.first.settings()
        # The arrow parts stages: the same models side by side would give other masks.
        return own | {"models": f"{first['models']} > {own['models']}"}

    def model_sha256s(self) -> dict[str, str]:
        """Checksum per model, the second stage's numbered in their order, then the first's."""
        first = {f"previous_{name}": sha256 for name, sha256 in self.first.model_sha256s().items()}
        return self.second.model_sha256s() | first

    def versions(self) -> dict[str, str]:
        """What computed, for the record."""
        return self.second.versions()

    def prepare(self, volume: Volume) -> tuple[CascadeArrays, Grid]:
        """The scan as both stages see it, and the second's way back.

        Raises:
            ScanError, GeometryError: as `Engine.prepare`.
        """
        first, first_grid = self.first.prepare(volume)
        image, grid = self.second.prepare(volume)
        return CascadeArrays(first=first, first_grid=first_grid, image=image, grid=grid), grid

    def scores(self, array: CascadeArrays) -> Scores:
        """Class scores of the second stage, after the first has drawn its mask."""
        mask = self.first.classes(self.first.scores(array.first), array.first_grid)
        previous = self.second.previous_mask(mask, array.grid)
        return self.second.scores(with_previous(array.image, previous, self.plan.previous_channels))

    def classes(self, scores: Scores, grid: Grid) -> ClassArray:
        """(X, Y, Z) uint8 class indices on the scan's own grid, after post-processing; background outside the crop."""
        return self.second.classes(scores, grid)

    def slabs(self, scores: Scores, grid: Grid, *, prepared: bool = False) -> Iterator[tuple[slice, FloatArray]]:
        """Probabilities of the second stage, as `Engine.slabs` gives them."""
        return self.second.slabs(scores, grid, prepared=prepared)

    def label_map(self, classes: ClassArray, *, affine: Affine, header: Header | None) -> LabelMap:
        """The classes as the label values of the model's manifest, on the scan's grid."""
        return self.second.label_map(classes, affine=affine, header=header)

    def peak_bytes(self, shape_xyz: Sequence[int], affine: Affine) -> MemoryPrediction:
        """What a scan of this grid would take at most: the first stage's scores are gone before the second begins."""
        first, second = self.first.peak_bytes(shape_xyz, affine), self.second.peak_bytes(shape_xyz, affine)
        return replace(
            second,
            host_bytes=max(first.host_bytes, second.host_bytes),
            device_bytes=max(first.device_bytes, second.device_bytes),
            file_bytes=max(first.file_bytes, second.file_bytes),
            windows=first.windows + second.windows,
            refused=first.refused or second.refused,
        )

    def effort(self) -> dict[str, Any]:
        """What the last ``scores`` did: windows of both stages, where the second's scores were gathered."""
        first, second = self.first.effort(), self.second.effort()
        counts = {
            name: first.get(name, 0) + second.get(name, 0) for name in ("windows", "skipped_windows") if name in second
        }
        return second | counts


def first_stage(models: Sequence[Model]) -> tuple[Model, ...]:
    """The first-stage models of a cascade's second-stage ``models``, each once, in their order.

    Raises:
        ModelError: there is none, as where a member was taken out of its ensemble's folder.
    """
    found = {one.sha256: one for model in models for one in model.previous}
    if not found:
        raise ModelError(
            f"{models[0].folder.name}: is a cascade's second stage and was loaded without its first; name the whole model "
            "folder"
        )
    return tuple(found.values())


def without_steps(section: InferSection) -> InferSection:
    """The section for the first stage, whose masks are never post-processed: the second stage was trained on such masks."""
    return section.model_copy(update={"postprocess": False})
