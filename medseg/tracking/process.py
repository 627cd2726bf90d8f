"""The stage's side of the sender process: start it, tell it which run to watch, wait for it at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

from medseg.durable import read_json
from medseg.errors import InputError
from medseg.tracking.address import TRACKING_NAME

_log = logging.getLogger(__name__)

STATUS_NAME = "sender.json"
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]

# Said to the sender alone: one thread, no device, no telemetry, and bounded patience with a server
# (MLflow's own defaults block one call for 247 s on a dead server and 1,208 s on a hung one).
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
    "GIT_PYTHON_REFRESH": "quiet",
    "PYTHONWARNINGS": "ignore",
}


def set_environment() -> None:
    """Sets the sender's environment in this process; to be called before mlflow is imported."""
    os.environ.update(_ENVIRONMENT)


def sender_environment() -> dict[str, str]:
    """The environment that the sender process is started with."""
    environment = os.environ | _ENVIRONMENT
    if (_PACKAGE_PARENT / "pyproject.toml").exists():  # a checkout, perhaps not installed
        paths = [str(_PACKAGE_PARENT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return dict(environment)


class SenderProcess:
    """A running sender; it stays in this process's group, so that what kills the group kills it too."""

    def __init__(self, process: subprocess.Popen[bytes], work: Path) -> None:
        self._process = process
        self._work = work

    @classmethod
    def start(cls, work: Path) -> SenderProcess | None:
        """Starts it; None, with a warning, if this machine can't."""
        command = [sys.executable, "-P", "-m", "medseg.tracking.sender", "--work", str(work.resolve())]
        command += ["--parent", str(os.getpid())]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=sender_environment(),
            )
        except OSError as error:
            reason = error.strerror or type(error).__name__
            _log.warning("tracking: the sender did not start (%s); `medseg sync` sends the records later", reason)
            return None
        return cls(process, work)

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it ended early: told at the end
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def watch(self, key: str) -> None:
        """Lets the sender sample this process's memory and processor use for the run ``key``."""
        self._say(f"watch {key}")

    def finish(self, wait_seconds: float) -> str:
        """Tells it to send the rest and end, waits for that long at most, then ends it.

        Returns:
            what kept it from sending, in a few words; empty if nothing is known.
        """
        self._say("close")
        try:
            self._process.wait(timeout=wait_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(OSError):
                if self._process.stdin:
                    self._process.stdin.close()
        return self._reason()

    def _reason(self) -> str:
        try:
            return str(read_json(self._work / TRACKING_NAME / STATUS_NAME).get("reason", ""))
        except (InputError, AttributeError):
            return ""


def send_now(work: Path, *, wait_seconds: float) -> str:
    """Sends all records of a work folder with a sender of its own, for at most so long.

    Returns:
        what kept it from sending, in a few words; empty if nothing is known.
    """
    sender = SenderProcess.start(work)
    return sender.finish(wait_seconds) if sender else "the sender did not start"
