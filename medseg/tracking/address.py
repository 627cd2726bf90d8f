"""Which MLflow store a work folder reports to, and how far that store has got each spool."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.durable import read_json, sha256_bytes, write_json
from medseg.errors import InputError
from medseg.tracking.spool import FORMAT

DATABASE_NAME = "mlflow.db"
ARTIFACTS_NAME = "mlartifacts"
TRACKING_NAME = "tracking"


@dataclass(frozen=True)
class StoreAddress:
    """An MLflow store.

    Attributes:
        uri: what MLflow is given. It may hold a password, so it is never logged.
        code: names the store in files of ours: ``local`` for the embedded one, else a short hash of the address.
        embedded: whether it is the work folder's own database.
    """

    uri: str
    code: str
    embedded: bool

    @property
    def kind(self) -> str:
        """What may be said about it: ``embedded sqlite``, ``http server``, ``postgresql`` and so on."""
        scheme = self.uri.split(":", 1)[0].split("+")[0] if ":" in self.uri else "folder"
        return "embedded sqlite" if self.embedded else f"{scheme} server" if scheme.startswith("http") else scheme


def store_address(work: Path, environment: Mapping[str, str] = os.environ) -> StoreAddress:
    """``MLFLOW_TRACKING_URI`` where it is set, else the sqlite database in the work folder."""
    uri = environment.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return StoreAddress(f"sqlite:///{work.resolve() / DATABASE_NAME}", "local", embedded=True)
    bare = re.sub(r"(?<=://)[^/@]*@", "", uri).rstrip("/")  # a new password is not a new store
    return StoreAddress(uri, sha256_bytes(bare.encode())[:8], embedded=False)


def tracker_at(work: Path, uri: str | None) -> StoreAddress:
    """The tracker that was named, else the work folder's (:func:`store_address`)."""
    return store_address(work, {"MLFLOW_TRACKING_URI": uri} if uri else os.environ)


def mlflow_is_installed() -> bool:
    """Whether ``import mlflow`` would find something; imports nothing."""
    return importlib.util.find_spec("mlflow") is not None


@dataclass(frozen=True)
class Sent:
    """How far one store has got one spool.

    Attributes:
        offset: bytes of the spool that the store has.
        run_id: the run's id in that store; None before it was made.
        refused: records that the store refused for good.
    """

    offset: int = 0
    run_id: str | None = None
    refused: int = 0


def read_sent(folder: Path, store: StoreAddress) -> Sent:
    """What ``store`` has of the spool in ``folder``; nothing where that is not known."""
    try:
        content: Any = read_json(folder / f"sent-{store.code}.json")
        return Sent(int(content["offset"]), content["run_id"], int(content["refused"]))
    except (InputError, KeyError, TypeError, ValueError):
        return Sent()  # sending twice changes nothing in MLflow, so a lost note only costs time


def write_sent(folder: Path, store: StoreAddress, sent: Sent) -> None:
    """Keeps it atomically, without waiting for the disk: a note that a power cut loses only costs sending again."""
    content = {"format": FORMAT, "offset": sent.offset, "run_id": sent.run_id, "refused": sent.refused}
    path = folder / f"sent-{store.code}.json"
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def lasting_key(path: Path, stem: str) -> str:
    """``<stem>-<8 hex digits>``, made once and kept in ``path``; processes that start together agree on it."""
    try:
        return str(read_json(path)["key"])
    except (InputError, KeyError, TypeError):
        path.parent.mkdir(parents=True, exist_ok=True)
    private = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    write_json(private, {"format": FORMAT, "key": f"{stem}-{secrets.token_hex(4)}"})
    try:
        os.link(private, path)  # fails where another process was first, and then its key holds
    except FileExistsError:
        pass
    finally:
        private.unlink()
    return str(read_json(path)["key"])
