"""A tracking store on MLflow. Only the sender process and ``medseg sync`` load it, and nothing else pays for MLflow."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from medseg.tracking import privacy
from medseg.tracking.address import ARTIFACTS_NAME, StoreAddress
from medseg.tracking.database import prepare_database
from medseg.tracking.packaging import write_package
from medseg.tracking.run import MODEL_TAG
from medseg.tracking.store import DatasetNote, Metric, StoreAwayError, StoreRefusedError, VersionNote
from medseg.tracking.views import KIND_TAGS, VIEW_TAG, view_with

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")

_PER_BATCH = 100
_TAG_CHARACTERS = 8000
_TABLES_TAG = "mlflow.loggedArtifacts"
# BAD_REQUEST is what the SQL store makes of a broken constraint. Everything else may be better the next time.
_REFUSALS = frozenset(
    {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"}
)


def reason_of(error: BaseException) -> str:
    """What is wrong in a few words, without the server's address."""
    text = f"{error} {error.__cause__ or ''}"
    if status := re.search(r"error code (\d{3})|(\d{3}) (?:Client|Server) Error|too many (\d{3}) error", text):
        return f"the tracker answers {next(filter(None, status.groups()))}"
    for sign, meaning in (
        ("Connection refused", "the tracker refuses the connection"),
        ("timed out", "the tracker does not answer in time"),
        ("resolve", "the tracker's name is not known"),
        ("database is locked", "the database is locked"),
        ("out-of-date database schema", "the database is of another MLflow version"),
        ("No space left", "no space left on the disk"),
        ("Max retries exceeded", "the tracker can't be reached"),
    ):
        if sign in text:
            return meaning
    return str(getattr(error, "error_code", type(error).__name__))


def _translated(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turns what MLflow, requests and the disk raise into the two errors that the replay knows."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        from mlflow.exceptions import MlflowException

        try:
            return method(*args, **kwargs)
        except (StoreAwayError, StoreRefusedError):
            raise
        except MlflowException as error:
            _log.debug("MLflow: %s", error)
            if error.error_code in _REFUSALS or "error code 413" in str(error):
                raise StoreRefusedError(reason_of(error)) from error
            raise StoreAwayError(reason_of(error)) from error
        except Exception as error:
            _log.debug("MLflow: %s: %s", type(error).__name__, error)
            if " 413 " in str(error):
                raise StoreRefusedError(reason_of(error)) from error
            raise StoreAwayError(reason_of(error)) from error

    return call


def _chunks(values: Mapping[str, str]) -> list[list[tuple[str, str]]]:
    items = list(values.items())
    return [items[first : first + _PER_BATCH] for first in range(0, len(items), _PER_BATCH)]


class MlflowStore:
    """A :class:`medseg.tracking.store.Store` on MLflow's client.

    The client's low-level calls are used alone: the fluent ones (``mlflow.start_run``) add login name and script path.

    Raises (on construction):
        StoreAwayError: the store can't be had now.
    """

    @_translated
    def __init__(self, address: StoreAddress, *, work: Path) -> None:
        from mlflow import MlflowClient

        self._artifacts = (work.resolve() / ARTIFACTS_NAME) if address.embedded else None
        self._experiments: dict[str, str] = {}
        if address.uri.startswith("sqlite:"):
            prepare_database(address.uri, self._artifacts)
        self._client: Any = MlflowClient(tracking_uri=address.uri)

    @_translated
    def ping(self) -> None:
        """Returns if the store answers."""
        self._client.search_experiments(max_results=1)

    @_translated
    def experiment(self, name: str) -> str:
        """Id of the experiment, which is made if missing."""
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage != "active":
                raise StoreAwayError("the experiment was deleted in the tracker; restore it there")
            self._experiments[name] = found.experiment_id if found else self._create_experiment(name)
        return self._experiments[name]

    def _create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        place = str(self._artifacts / re.sub(r"[^\w.-]", "_", name)) if self._artifacts else None
        try:
            return str(self._client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by somebody else just now
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    @_translated
    def is_active(self, run_id: str) -> bool | None:
        """Whether the run takes records: None if the store does not know it, False if somebody deleted it."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    @_translated
    def find_run(self, experiment: str, key: str) -> str | None:
        """Id of the run with this tag ``medseg.key``."""
        found = self._client.search_runs([experiment], filter_string=f"tags.`medseg.key` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    @_translated
    def create_run(self, experiment: str, *, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Makes a run and returns its id."""
        run = self._client.create_run(experiment, start_time=start_ms, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    @_translated
    def reopen(self, run_id: str) -> None:
        """Sets the run's status to RUNNING."""
        self._client.update_run(run_id, status="RUNNING")

    @_translated
    def end(self, run_id: str, *, status: str, ms: int) -> None:
        """Sets the run's final status."""
        self._client.set_terminated(run_id, status=status, end_time=ms)

    @_translated
    def params(self, run_id: str) -> dict[str, str]:
        """The run's parameters."""
        return dict(self._client.get_run(run_id).data.params)

    @_translated
    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Adds parameters, any number; none of them may have another value already."""
        from mlflow.entities import Param

        for chunk in _chunks(params):
            self._client.log_batch(run_id, params=[Param(name, value) for name, value in chunk])

    @_translated
    def log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Adds values, at most 1000."""
        from mlflow.entities import Metric as MlflowMetric

        self._client.log_batch(run_id, metrics=[MlflowMetric(m.name, m.value, m.ms, m.step) for m in metrics])

    @_translated
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags, any number; values are cut to 8000 characters."""
        from mlflow.entities import RunTag

        for chunk in _chunks(tags):
            self._client.log_batch(run_id, tags=[RunTag(name, value[:_TAG_CHARACTERS]) for name, value in chunk])

    @_translated
    def log_dataset(self, run_id: str, note: DatasetNote) -> None:
        """Adds a data set to the run's inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=note.name,
            digest=note.digest,
            source_type="code",  # MLflow has no type for a list of scans; this one it can load again, and it holds no path
            source=json.dumps({"tags": {"mlflow.user": "medseg", "mlflow.source.name": "medseg prepare"}}),
            profile=json.dumps({"num_rows": note.cases}),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", note.context)])])

    @_translated
    def put_file(self, run_id: str, path: Path, artifact: str) -> None:
        """Uploads a file as the artifact of that name, over an earlier one."""
        folder, _, name = artifact.rpartition("/")
        if name != path.name:
            raise StoreRefusedError(f"artifact {privacy.scrub(name)} is named otherwise than its file")
        self._client.log_artifact(run_id, str(path), folder or None)

    @_translated
    def note_table(self, run_id: str, artifact: str) -> None:
        """Lets the user interface show that artifact as a table, as MLflow's own ``log_table`` does."""
        present = json.loads(self._client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
        entry = {"path": artifact, "type": "table"}
        if entry not in present:
            self._client.set_tag(run_id, _TABLES_TAG, json.dumps([*present, entry]))

    @_translated
    def put_package(self, run_id: str, artifact: str, *, ms: int) -> None:
        """Adds the files that make an artifact folder a model of MLflow's."""
        with tempfile.TemporaryDirectory(prefix="medseg-") as scratch:
            for path in write_package(Path(scratch), run_id=run_id, artifact=artifact, ms=ms):
                self._client.log_artifact(run_id, str(path), artifact)

    @_translated
    def register(self, run_id: str, note: VersionNote) -> None:
        """Makes an artifact folder a version; where the model is one already, that is left as it is."""
        version = self._version_of(note)
        if version is None:
            self._make_registered(note.name)
            run = self._client.get_run(run_id)
            made = self._client.create_model_version(
                note.name,
                f"{run.info.artifact_uri}/{note.artifact}",
                run_id,
                tags={MODEL_TAG: note.sha256, **note.tags},
                description=note.description,
                await_creation_for=0,
            )
            version = int(made.version)
        present = self._client.get_registered_model(note.name).aliases.get(note.alias)
        if present is None or int(present) < version:
            self._client.set_registered_model_alias(note.name, note.alias, str(version))

    def _version_of(self, note: VersionNote) -> int | None:
        found = self._client.search_model_versions(f"name = '{note.name}' and tags.`{MODEL_TAG}` = '{note.sha256}'")
        return int(found[0].version) if found else None

    def _make_registered(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # it is there: what else is wrong, the next call says
            self._client.create_registered_model(name)

    @_translated
    def tag_versions(self, model_sha256: str, tags: Mapping[str, str]) -> None:
        """Sets tags of all registered versions of a model."""
        for version in self._client.search_model_versions(f"tags.`{MODEL_TAG}` = '{model_sha256}'"):
            for name, value in tags.items():
                self._client.set_model_version_tag(version.name, version.version, name, value[:_TAG_CHARACTERS])

    @_translated
    def show_metrics(self, experiment: str, metrics: Sequence[str], *, ms: int) -> None:
        """Lets the experiment's page show these metrics as columns."""
        present = self._client.get_experiment(experiment).tags
        wanted = {VIEW_TAG: view_with(present.get(VIEW_TAG), metrics, ms=ms)}
        for name, value in (KIND_TAGS | wanted).items():
            if present.get(name) != value:
                self._client.set_experiment_tag(experiment, name, value)
