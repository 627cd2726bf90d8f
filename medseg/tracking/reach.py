"""Whether the tracker can be had, in words that are fit for a public bug report: no address, no path."""

from __future__ import annotations

import contextlib
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path

from medseg.tracking.address import DATABASE_NAME, StoreAddress, mlflow_is_installed, store_address
from medseg.tracking.pending import count_pending

_SECONDS = 3.0


def tracker_state(work: Path) -> dict[str, str | int]:
    """What the tracker of a work folder is and whether it answers; waits 3 s at most, imports no MLflow, writes nothing.

    Returns:
        ``store`` (its kind), ``state`` (a few words), ``waiting_records`` and ``refused_records``.
    """
    store = store_address(work)
    pending = count_pending(work, store)
    state = _state(store, work) if mlflow_is_installed() else "mlflow is not installed; records stay on disk"
    return {
        "store": store.kind,
        "state": state,
        "waiting_records": pending.records,
        "refused_records": pending.refused,
    }


def _state(store: StoreAddress, work: Path) -> str:
    if store.embedded:
        return _database_state(work / DATABASE_NAME)
    if store.uri.startswith(("http://", "https://")):
        return _server_state(store.uri)
    return "not checked"


def _database_state(path: Path) -> str:
    if not path.exists():
        return "not made yet"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1)) as database:
            (runs,) = database.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        return f"can't be read ({type(error).__name__})"
    return f"readable, {runs} runs"


def _server_state(uri: str) -> str:
    bare = uri.split("://", 1)
    address = f"{bare[0]}://{bare[1].rsplit('@', 1)[-1].rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer:  # noqa: S310 - http and https alone come here
            return "answers" if answer.status == 200 else f"answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except TimeoutError:
        return "does not answer in time"
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, TimeoutError):
            return "does not answer in time"
        return f"can't be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"
    except (OSError, ValueError) as error:
        return f"can't be reached ({type(error).__name__})"
