"""How cases are scored: the settings that travel together from the config to every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medseg.errors import UsageError
from medseg.evaluation.policy import POLICIES, EmptyPolicy
from medseg.evaluation.registry import choose_metrics, metric_names
from medseg.imaging.structures import Naming


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What, besides the files, decides the scores. Made by :func:`make_protocol`.

    Attributes:
        labels: class name to file values, background first; a class's values are one region.
        ignore: value of reference voxels that are taken out of both masks, or None.
        tolerance_mm: NSD's tolerance of every class but the background.
        policy: what undefined values count for in a mean.
        aliases: class name to other names by which files of named structures (DICOM-SEG, RTSTRUCT, .seg.nrrd) know it.
        metrics: names of what is computed, in the order of the tables' columns.
    """

    labels: Mapping[str, tuple[int, ...]]
    ignore: int | None
    tolerance_mm: Mapping[str, float]
    policy: EmptyPolicy
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: tuple[str, ...] = metric_names()

    @property
    def naming(self) -> Naming:
        """By which structures of label files are known."""
        return Naming(self.labels, self.aliases)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that are scored: all but the background."""
        return tuple(self.labels)[1:]

    def plain(self) -> dict[str, object]:
        """As plain values, for records."""
        return {
            "labels": {name: list(values) for name, values in self.labels.items()},
            "ignore": self.ignore,
            "tolerance_mm": dict(self.tolerance_mm),
            "empty": self.policy.name,
            "metrics": list(self.metrics),
        }


def make_protocol(
    *,
    labels: Mapping[str, tuple[int, ...]],
    ignore: int | None = None,
    tolerance_mm: float | Mapping[str, float] = 1.0,
    empty: str = "standard",
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    metrics: Sequence[str] = (),
) -> Protocol:
    """Checks the settings and fills in a tolerance for every class.

    Args:
        labels: class name to file values, background first.
        ignore: reference value that counts for nothing.
        tolerance_mm: one for all classes, or one for each.
        empty: name of a policy for empty masks.
        aliases: other names of classes in files of named structures.
        metrics: what to compute besides the default ones; see :func:`~medseg.evaluation.registry.choose_metrics`.

    Raises:
        UsageError: no class, an unknown policy or metric, or tolerances that do not fit the classes.
    """
    class_names = tuple(labels)[1:]
    if not class_names:
        raise UsageError("labels: hold no class besides the background, expected at least one")
    if empty not in POLICIES:
        raise UsageError(f"policy for empty masks: is {empty!r}, expected one of {', '.join(POLICIES)}")
    return Protocol(
        labels=dict(labels),
        ignore=ignore,
        tolerance_mm=_tolerances(class_names, tolerance_mm),
        policy=POLICIES[empty],
        aliases=dict(aliases or {}),
        metrics=choose_metrics(metrics),
    )


def _tolerances(class_names: Sequence[str], tolerance_mm: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(tolerance_mm, Mapping):
        return dict.fromkeys(class_names, float(tolerance_mm))
    if set(tolerance_mm) != set(class_names):
        raise UsageError(
            f"tolerance_mm: is given for {', '.join(tolerance_mm)}, expected exactly {', '.join(class_names)}; "
            "give one number for all classes or one for each"
        )
    return {name: float(tolerance_mm[name]) for name in class_names}
