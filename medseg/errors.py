"""Every error that medseg raises on purpose, and the exit code each one ends a command with.

::

    MedsegError                     1   our own fault, if nothing below fits
    ├── UsageError                  2   the command line makes no sense
    ├── ConfigError                 2   faults of a config, all of them at once
    ├── ChangedError                2   config, data, plan or code differ from what the run began with
    ├── InputError                  3   input refused, nothing done
    │   ├── ManifestError           3   faults of a manifest, all of them at once
    │   ├── ScanError               3   one scan file can't be used
    │   │   └── UnsupportedScanError 3  the file is sound, but of a kind that is not read
    │   ├── LabelError              3   a label map holds values it should not
    │   ├── GeometryError           3   two grids that must be one are not
    │   └── ModelError              3   a model folder is damaged, foreign or too new
    ├── PartialError                4   some cases failed or were skipped, the rest is done
    ├── EnvironmentFault            5   disk, permission, device
    │   └── DamagedFileError        5   a file of ours fails its checksum
    └── LockedError                 6   another process works on this output

A message is one line: ``<file or case>: <what> is <got>, expected <rule>; <what to do>``.
It never holds header text (names, dates, identifiers), and no path other than the one the user gave.
"""

from __future__ import annotations

from collections.abc import Sequence


class MedsegError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is what a command ends with."""

    exit_code = 1


class UsageError(MedsegError):
    """The command line makes no sense."""

    exit_code = 2


class _ListedError(MedsegError):
    """Several faults found in one pass, printed one a line.

    Args:
        faults: one line each, already in the house's message form; at least one.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class ConfigError(_ListedError):
    """Faults of a config, all of them at once, as ``file:line: key: what is wrong``."""

    exit_code = 2


class ChangedError(_ListedError):
    """What a run depends on is no longer what it began with; one line per difference."""

    exit_code = 2


class InputError(MedsegError):
    """Input refused; nothing was done with it."""

    exit_code = 3


class ManifestError(_ListedError, InputError):
    """Faults of a manifest, all of them at once."""

    exit_code = 3


class ScanError(InputError):
    """One scan file can't be used."""


class UnsupportedScanError(ScanError):
    """The file is sound as far as can be told, but of a kind medseg does not read."""


class LabelError(InputError):
    """A label map holds values that are not whole numbers or not in the manifest."""


class GeometryError(InputError):
    """Two grids that must be one are not, or a grid can't be used."""


class ModelError(InputError):
    """A model folder is damaged, foreign or written by a newer medseg."""


class PartialError(MedsegError):
    """Some cases failed or were skipped; the rest is done."""

    exit_code = 4


class EnvironmentFault(MedsegError):
    """The machine can't do it: disk, permission, device."""

    exit_code = 5


class DamagedFileError(EnvironmentFault):
    """A file of ours fails its checksum; it has to be made again."""


class LockedError(MedsegError):
    """Another live process works on the same output."""

    exit_code = 6
