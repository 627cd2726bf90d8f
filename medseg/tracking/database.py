"""The embedded sqlite database: made once and whole, brought up to date on a copy, and moved with its folder.

Five processes that opened a fresh store at once left it broken for good, and so does a kill in the middle of making it.
So it is made under a lock beside its final name, and put there when it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.tracking.address import ARTIFACTS_NAME
from medseg.tracking.store import StoreAwayError

_log = logging.getLogger(__name__)

_LOCK_SECONDS = 300.0
_UPGRADE_SECONDS = 300.0
# Where MLflow keeps absolute places of artifacts.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def prepare_database(uri: str, artifacts: Path | None) -> None:
    """Makes sure that the database of a ``sqlite:`` address exists, is up to date and knows where its artifacts are.

    Args:
        uri: ``sqlite:///<path>``.
        artifacts: the artifact folder beside it, for the embedded store; None leaves what the database says.

    Raises:
        StoreAwayError: it is locked for too long, or of another MLflow version that can't be upgraded.
    """
    path = Path(uri.removeprefix("sqlite:///").split("?")[0])
    if not path.name or str(path) == ":memory:":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(path.with_name(f".{path.name}.lock")):
        if not path.exists() or path.stat().st_size == 0:
            _create(path)
        _upgrade_if_old(path)
        if artifacts is not None:
            _move_places(path, artifacts)


@contextlib.contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """A lock that the system frees when its process dies."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StoreAwayError("another process is making the database") from error
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    for stale in path.parent.glob(f".tmp-*-{path.name}*"):  # we hold the lock, so nobody else is making one
        stale.unlink(missing_ok=True)
    return path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


def _put(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def _create(path: Path) -> None:
    from mlflow import MlflowClient

    temporary = _temporary(path)
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{temporary}")
    client.search_experiments(max_results=1)  # the first call makes all tables
    _put(temporary, path)
    _log.info("the tracking database was made")


def _version(path: Path) -> str | None:
    """The schema's version as the database says; None for a database that is not MLflow's, or half made."""
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database, contextlib.suppress(sqlite3.DatabaseError):
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None
    return None


def _wanted_version() -> str | None:
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = Path(mlflow.__file__).parent / "store" / "db_migrations"
    return ScriptDirectory(str(scripts)).get_current_head()


def _upgrade_if_old(path: Path) -> None:
    """MLflow would upgrade in place, or refuse to; a kill in the middle of that breaks the database for good."""
    if _version(path) == _wanted_version():
        return
    temporary = _temporary(path)
    with contextlib.closing(sqlite3.connect(path)) as old, contextlib.closing(sqlite3.connect(temporary)) as new:
        old.backup(new)
    command = [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", f"sqlite:///{temporary}"]
    done = subprocess.run(command, capture_output=True, timeout=_UPGRADE_SECONDS, check=False)  # noqa: S603 - no shell
    if done.returncode != 0:
        temporary.unlink(missing_ok=True)
        raise StoreAwayError("the database is damaged or of a newer MLflow; install that version or move it away")
    kept = path.with_name(f"{path.name}.before-upgrade")
    kept.unlink(missing_ok=True)
    kept.hardlink_to(path)
    _put(temporary, path)
    _log.info("the tracking database was brought up to date; the former one is kept as %s", kept.name)


def _move_places(path: Path, artifacts: Path) -> None:
    """Rewrites the places of artifacts in a database whose work folder was moved or copied here from elsewhere.

    MLflow bakes absolute paths in, so that a copy would go on writing into the original's folder.
    """
    here = str(artifacts)
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database, database:
        for table, column in _PLACES:
            with contextlib.suppress(sqlite3.OperationalError):  # a table that this version does not have
                rows = database.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()  # noqa: S608 - our own names
                for (place,) in rows:
                    moved = _moved(place, here, default=table == "experiments")
                    if moved != place:
                        change = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"  # noqa: S608 - our own names
                        database.execute(change, (moved, place))


def _moved(place: str | None, here: str, *, default: bool) -> str | None:
    if not place or "://" in place.removeprefix("file://"):
        return place
    plain = place.removeprefix("file://")
    before, mark, rest = plain.rpartition(f"/{ARTIFACTS_NAME}/")
    if not mark:  # MLflow's own "Default" experiment, placed by the folder a process happened to start in
        return f"{here}/default" if default else place
    return place if f"{before}/{ARTIFACTS_NAME}" == here else f"{here}/{rest}"
