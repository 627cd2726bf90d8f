"""Where log lines go: a readable console on stderr, and a plain file in the stage's folder."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path

from medseg.errors import EnvironmentFault
from medseg.tracking.privacy import PrivacyFilter

OWN_LOGGERS = ("medseg", "pipelines", "__main__")
"""Loggers heard from INFO on; everybody else's from WARNING on."""
_MARK = "_medseg_handler"
_FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _UtcFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _QuietFileHandler(logging.FileHandler):
    """A log file whose disk is full is told once on stderr, not with a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):  # what is still buffered has no place either
            self.close()
        sys.stderr.write(f"{Path(self.baseFilename).name}: can't be written any more; the log goes on here only\n")


def _console(level: int) -> logging.Handler:
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False, rich_tracebacks=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.setLevel(level)
    return handler


def _file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _QuietFileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"{path.name}: can't be written ({reason}); check the folder's permissions and disk"
        raise EnvironmentFault(message) from error
    handler.setFormatter(_UtcFormatter(_FILE_FORMAT))
    handler.setLevel(logging.DEBUG)
    return handler


def set_up_logging(log_file: Path | None, verbose: bool = False, *, level: int = logging.INFO) -> None:
    """Sets up the root logger's handlers, each behind the privacy filter; a second call replaces the first one's.

    Args:
        log_file: a file to append to, with everything from DEBUG on; None for the console alone.
        verbose: the console shows DEBUG too.
        level: lowest level on the console when not ``verbose``.

    Raises:
        EnvironmentFault: the log file can't be opened.
    """
    console_level = logging.DEBUG if verbose else level
    handlers = [_console(console_level)] + ([_file(log_file)] if log_file else [])
    tear_down_logging()
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in handlers:
        handler.addFilter(PrivacyFilter())
        setattr(handler, _MARK, True)
        root.addHandler(handler)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG if log_file else console_level)
    logging.captureWarnings(capture=True)


def tear_down_logging() -> None:
    """Takes away and closes what :func:`set_up_logging` added."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if hasattr(h, _MARK)]:
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(capture=False)
