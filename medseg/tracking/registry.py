"""MLflow's model registry: which version a name means, its files, its scores, and the alias ``champion``.

Only processes of their own use it (``fetching.py`` and the verb ``promote``); a training run registers through its spool.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from medseg.durable import sha256_file
from medseg.errors import EnvironmentFault, InputError, UsageError
from medseg.tracking import privacy
from medseg.tracking.address import ARTIFACTS_NAME, StoreAddress
from medseg.tracking.database import prepare_database
from medseg.tracking.mlflow_store import reason_of
from medseg.tracking.run import MODEL_TAG, scores_artifact, scores_tag
from medseg.tracking.store import StoreAwayError

CHAMPION = "champion"
_P = ParamSpec("_P")
_R = TypeVar("_R")
# A name is the name of a folder below the work folder too.
_URI = re.compile(r"models:/+(?P<name>(?!\.{1,2}[@/])[^/@:\\'\x00-\x1f]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")
_MOST_EXPERIMENTS = 1000


@dataclass(frozen=True)
class ModelName:
    """What ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` says; one of the two is None."""

    name: str
    alias: str | None = None
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Reads it.

        Raises:
            UsageError: it is neither.
        """
        match = _URI.fullmatch(text)
        if match is None:
            raise UsageError(f"{text}: is no registered model, expected models:/NAME@ALIAS or models:/NAME/VERSION")
        version = match["version"]
        return cls(match["name"], match["alias"], int(version) if version else None)

    def __str__(self) -> str:
        return f"models:/{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model.

    Attributes:
        name: the registered model's.
        version: counted from 1.
        sha256: of the model folder, as the run that registered it had it; None where somebody else registered it.
        source: where MLflow keeps the folder.
        tags: all of them.
    """

    name: str
    version: int
    sha256: str | None
    source: str
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}"


def _told(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turns what MLflow, requests and the disk raise into one line without an address."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        from mlflow.exceptions import MlflowException

        try:
            return method(*args, **kwargs)
        except (MlflowException, OSError, StoreAwayError) as error:
            raise EnvironmentFault(f"registry: can't be asked ({reason_of(error)}); try again later") from error

    return call


class Registry:
    """The registry of a tracker.

    Args:
        address: the tracker.
        work: the work folder.

    Raises (every method too):
        EnvironmentFault: the tracker can't be had now.
    """

    @_told
    def __init__(self, address: StoreAddress, *, work: Path) -> None:
        from mlflow import MlflowClient

        if address.uri.startswith("sqlite:"):
            prepare_database(address.uri, (work.resolve() / ARTIFACTS_NAME) if address.embedded else None)
        self._uri = address.uri
        self._client: Any = MlflowClient(tracking_uri=address.uri, registry_uri=address.uri)

    @_told
    def find(self, model: ModelName) -> RegisteredVersion | None:
        """The version that a name means; None if there is none.

        Raises:
            InputError: the tracker answers with another model or version.
        """
        from mlflow.exceptions import MlflowException

        try:
            if model.alias is not None:
                found = self._client.get_model_version_by_alias(model.name, model.alias)
            else:
                found = self._client.get_model_version(model.name, str(model.version))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
                return None
            raise
        version = _version(found, model.name)
        if model.version not in (None, version.version):
            raise InputError(f"{model}: the tracker answers with version {version.version}, expected the one asked for")
        return version

    @_told
    def find_model(self, name: str, sha256: str) -> RegisteredVersion | None:
        """The version of a registered model that is this model folder; None if there is none."""
        found = self._client.search_model_versions(f"name = '{name}' and tags.`{MODEL_TAG}` = '{sha256}'")
        return _version(found[0], name) if found else None

    def get(self, model: ModelName) -> RegisteredVersion:
        """As :meth:`find`.

        Raises:
            InputError: there is none.
        """
        found = self.find(model)
        if found is None:
            raise InputError(f"{model}: is not in the registry, expected a registered model; see its page in MLflow")
        return found

    @_told
    def download(self, version: RegisteredVersion, folder: Path) -> None:
        """Copies the files of a version into ``folder``, which exists.

        Raises:
            InputError: what came is not the model that was registered.
        """
        import mlflow

        place = local_place(version.source)
        if place is not None and not (place / "model.json").is_file():  # a tracker may name any folder of this machine
            raise InputError(f"{version}: holds no model.json, expected a model that medseg registered")
        came = mlflow.artifacts.download_artifacts(
            artifact_uri=version.source, dst_path=str(folder), tracking_uri=self._uri
        )
        Path(came).rename(folder / "model")  # its name on the way is that of the run's artifact folder
        found = folder / "model" / "model.json"
        if not found.is_file():
            raise InputError(f"{version}: holds no model.json, expected a model that medseg registered")
        if version.sha256 is not None and sha256_file(found) != version.sha256:
            raise InputError(f"{version}: is not the model that was registered; register it again")

    @_told
    def scores(self, version: RegisteredVersion) -> dict[str, str]:
        """Name of a set of cases to the newest run that scored this version's model on it; empty if nobody did."""
        if version.sha256 is None:
            return {}
        tag = scores_tag(version.sha256)
        experiments = [one.experiment_id for one in self._client.search_experiments(max_results=_MOST_EXPERIMENTS)]
        runs = self._client.search_runs(
            experiments, filter_string=f"tags.`{tag}` LIKE '%'", order_by=["attributes.start_time ASC"]
        )
        # The names are printed: a tracker's answer must not drive a terminal.
        return {privacy.scrub(run.data.tags[tag]): run.info.run_id for run in runs}

    @_told
    def fetch_scores(self, version: RegisteredVersion, run_id: str, folder: Path) -> Path:
        """Copies ``cases.csv`` and ``metrics.json`` of a version's model into ``folder`` and returns where they lie."""
        assert version.sha256 is not None
        return Path(self._client.download_artifacts(run_id, scores_artifact(version.sha256), str(folder)))

    @_told
    def name_champion(self, version: RegisteredVersion) -> None:
        """Moves the alias ``champion`` to a version."""
        self._client.set_registered_model_alias(version.name, CHAMPION, str(version.version))

    @_told
    def tag(self, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
        """Sets tags of a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(version.name, str(version.version), name, privacy.scrub(value))


def local_place(source: str) -> Path | None:
    """The folder of this machine that a version's source names; None where it lies elsewhere."""
    parts = urlsplit(source)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(source)


def _version(found: Any, name: str) -> RegisteredVersion:
    """What the tracker answered about a version of the model ``name``.

    Raises:
        InputError: it speaks of another model; its names become folders here.
    """
    if found.name != name:
        raise InputError(f"models:/{name}: the tracker answers with another model, expected the one asked for")
    tags = dict(found.tags)
    return RegisteredVersion(name, int(found.version), tags.get(MODEL_TAG), found.source, tags)
