"""What a manifest says, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.config.series import SeriesRules, SeriesSection, rules_of_channels, told_apart
from medseg.manifest.faults import Faults


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan with its label, as the manifest names them.

    Attributes:
        id: unique in the manifest, of ``[A-Za-z0-9._-]{1,100}``, no leading dot or dash.
        patient: the person it belongs to; splits never part one patient. Equals ``id`` where not given.
        images: one relative POSIX path for all channels, or one per channel (a DICOM series is its folder). Channels may
            share a folder whose series the config's rules tell apart.
        labels: relative paths of label maps, one per rater; empty where the case has none.
        fold: cross-validation fold in which this case validates, None where no split was made.
        labelled: names of the classes that were looked for in this case, without background; None where all were.
        extra: any further column (site, scanner, sex, ...), as text.
    """

    id: str
    patient: str
    images: tuple[str, ...]
    labels: tuple[str, ...] = ()
    fold: int | None = None
    labelled: tuple[str, ...] | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One image channel: its ``name`` decides the normalisation (CT, MR, PET, RGB ...), ``unit`` "SUV" asks for SUV of PET.

    ``series`` is the config's rule for DICOM folders of several series; no manifest file holds it.
    """

    name: str
    unit: str | None = None
    series: SeriesSection | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set: what its files are and which cases it has.

    Attributes:
        name, licence: for people, logs and reports.
        channels: in the order of a case's images (or of one file's channels).
        labels: class name to the value or values it has in the label files. Background comes first and is class 0.
            Class k of everything inside medseg is the k-th name; masks are written with the class's first value.
            A value of several names makes them overlapping regions (``medseg.imaging.regions``).
        label_table: label to any of ``colour``, ``code``, ``scheme``, ``meaning``, ``category`` and ``aliases``: for files of
            other programs, see ``medseg.imaging.label_table``; nothing that is computed depends on it but ``aliases``, by
            which structures of label files are known.
        ignore: value of voxels that nobody labelled, or None.
        training, testing: cases; only ``training`` takes part in fingerprints and folds.
        path: the file it was read from.
        sha256: of that file's bytes.
    """

    name: str
    licence: str
    channels: tuple[Channel, ...]
    labels: Mapping[str, tuple[int, ...]]
    training: tuple[Case, ...]
    testing: tuple[Case, ...] = ()
    label_table: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ignore: int | None = None
    path: Path = Path()
    sha256: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return tuple(self.labels)

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Label to other names that structures of label files have, of those with any."""
        return {name: tuple(entry["aliases"]) for name, entry in self.label_table.items() if entry.get("aliases")}

    def with_series(self, series: SeriesRules | None) -> Manifest:
        """The manifest with a config's rule for DICOM folders of several series on every channel, or each channel's own.

        Raises:
            ConfigError: a rule is for a channel that is not there.
            ManifestError: a case names one folder for several channels that no rules tell apart; every such case.
        """
        rules = rules_of_channels(series, [channel.name for channel in self.channels], key="data.series")
        channels = tuple(replace(channel, series=rule) for channel, rule in zip(self.channels, rules, strict=True))
        self._check_shared_folders(channels)
        return replace(self, channels=channels)

    def _check_shared_folders(self, channels: Sequence[Channel]) -> None:
        faults = Faults(self.path.name)
        for case in (*self.training, *self.testing):
            if len(set(case.images)) == len(case.images):
                continue
            sharing: dict[str, list[Channel]] = {}
            for path, channel in zip(case.images, channels, strict=False):
                sharing.setdefault(path, []).append(channel)
            for path, those in sharing.items():
                if len(those) > 1 and not told_apart([channel.series for channel in those]):
                    names = ", ".join(channel.name for channel in those)
                    faults.add(
                        f"case {case.id!r}",
                        f"image {path!r} is that of the channels {names}, expected a rule of its own for each then; "
                        f"set data.series to {{{those[0].name}: {{...}}, ...}}, or part the folder",
                    )
        faults.raise_any()

    def fold_cases(self, fold: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """(training cases, validation cases) of ``fold``; a case without fold always trains."""
        kept = tuple(case for case in self.training if case.fold != fold)
        held_out = tuple(case for case in self.training if case.fold == fold)
        return kept, held_out
