"""Which values the label files of cases hold: to name classes nobody named, and to stratify folds by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import MedsegError
from medseg.manifest.cases import Case

_MAX_BYTES = 256 << 20
_SAMPLE = 20
_MAX_VALUES = 254


@dataclass(frozen=True)
class LabelSurvey:
    """What was found in label files.

    Attributes:
        values: case id to the values in its labels; only cases that were looked at.
        complete: whether all cases with labels were.
        faults: one line for every label that could not be read.
    """

    values: Mapping[str, frozenset[int]] = field(default_factory=dict)
    complete: bool = True
    faults: tuple[str, ...] = ()

    @property
    def all_values(self) -> tuple[int, ...]:
        """Every value that occurs, sorted."""
        return tuple(sorted(frozenset().union(*self.values.values())))


def survey_labels(cases: Sequence[Case], root: Path, *, max_bytes: int = _MAX_BYTES) -> LabelSurvey:
    """Reads label files for the values they hold: all where the files have at most ``max_bytes`` together, else 20.

    Args:
        cases: cases, with or without labels.
        root: where their paths start.
        max_bytes: size of files on disk up to which all are read.

    Returns:
        The survey; cases without labels are passed over, so none gives an empty and complete one.
    """
    labelled = [case for case in cases if case.labels]
    total = sum((root / path).stat().st_size for case in labelled for path in case.labels)
    complete = total <= max_bytes or len(labelled) <= _SAMPLE
    # Evenly spaced, because neighbours in a list are often of one scanner or one person.
    chosen = labelled if complete else [labelled[i * len(labelled) // _SAMPLE] for i in range(_SAMPLE)]
    values: dict[str, frozenset[int]] = {}
    faults = []
    for case in chosen:
        try:
            values[case.id] = frozenset().union(*(_values(root / path) for path in case.labels))
        except MedsegError as error:
            faults.append(f"{case.id}: {error}")
    return LabelSurvey(values, complete, tuple(faults))


def _values(path: Path) -> frozenset[int]:
    import numpy as np

    from medseg.imaging import read_label_map

    return frozenset(np.unique(read_label_map(path).array).astype(int).tolist())


def guessed_labels(survey: LabelSurvey) -> dict[str, tuple[int, ...]]:
    """Names for the values found: ``background`` 0, ``foreground`` for one other value, ``class_<value>`` for several.

    Many values are left to the caller as they are: an instance map has hundreds, and a manifest refuses more than 254.
    """
    found = [value for value in survey.all_values if value > 0][: _MAX_VALUES + 1]
    names = ["foreground"] if len(found) == 1 else [f"class_{value}" for value in found]
    labels: dict[str, tuple[int, ...]] = {"background": (0,)}
    return labels | {name: (value,) for name, value in zip(names, found, strict=True)}


def class_strata(survey: LabelSurvey, labels: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Case id to the classes present in its labels, without background, as tags for ``make_folds``."""
    names = [name for name in labels if name != "background"]
    return {
        case: sorted(name for name in names if not values.isdisjoint(labels[name]))
        for case, values in survey.values.items()
    }
