"""The private folder in which bodies lie for as long as their request lasts."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from medseg.durable import remove_stale_temporaries
from medseg.durable.writing import temporary_name
from medseg.errors import EnvironmentFault


class Spool:
    """A folder that only this user can read, for this process alone; a context manager that removes it.

    What a killed service of this host left is removed at the next start.

    Args:
        parent: where it is made; None is a folder of this user's in the system's place for temporary files.

    Raises (on enter):
        EnvironmentFault: the folder can't be made, or another user's lies in its place.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        parent = self._parent or Path(tempfile.gettempdir()) / f"medseg-serve-{os.getuid()}"
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = parent.lstat()
            if self._parent is None and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid()):
                raise EnvironmentFault(f"{parent.name}: belongs to somebody else; name another folder with --spool")
            remove_stale_temporaries(parent)
            self._folder = temporary_name(parent / "spool")
            self._folder.mkdir(mode=0o700)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise EnvironmentFault(
                f"{parent.name}: can't be written ({reason}); name another folder with --spool"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """The folder, while it is there."""
        assert self._folder is not None
        return self._folder

    def new(self) -> Path:
        """A new empty folder for one request, which removes it.

        Raises:
            OSError: the disk.
        """
        return Path(tempfile.mkdtemp(prefix="", dir=self.folder))

    @staticmethod
    def remove(folder: Path) -> None:
        """Removes a request's folder and all in it."""
        shutil.rmtree(folder, ignore_errors=True)

    def __len__(self) -> int:
        """How many requests' folders there are now."""
        return sum(1 for _ in self.folder.iterdir())
