"""What the replay asks of a tracking store, in plain values; ``mlflow_store.py`` does it with MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CANDIDATE = "candidate"
"""Alias of the newest version of a registered model."""


class StoreAwayError(Exception):
    """The store can't be had now (refused, hung, locked, full); the same call may succeed later. The text is the reason."""


class StoreRefusedError(Exception):
    """The store won't ever take this record."""


@dataclass(frozen=True)
class Metric:
    """One value of one metric; equal ones sent twice count once.

    Attributes:
        name: a safe name.
        value: may be NaN or infinite.
        ms: when, in milliseconds since 1970.
        step: epoch, step or seconds, as the metric has it.
    """

    name: str
    value: float
    ms: int
    step: int


@dataclass(frozen=True)
class DatasetNote:
    """A data set as a run's input.

    Attributes:
        name: the manifest's name.
        digest: fingerprint, at most 36 characters.
        context: training, validation, testing.
        cases: how many.
    """

    name: str
    digest: str
    context: str
    cases: int


@dataclass(frozen=True)
class VersionNote:
    """A version of a registered model. The same model never becomes a second version of one name.

    Attributes:
        name: the registered model's.
        artifact: folder of the run that holds it.
        sha256: of the model folder.
        alias: given to this version, unless a later one has it.
        tags: short texts.
        description: Markdown.
    """

    name: str
    artifact: str
    sha256: str
    alias: str
    tags: Mapping[str, str]
    description: str


class Store(Protocol):
    """A tracking store. Every method may raise StoreAwayError or StoreRefusedError, and repeating one changes nothing."""

    def ping(self) -> None:
        """Returns if the store answers."""

    def experiment(self, name: str) -> str:
        """Id of the experiment, which is made if missing."""

    def is_active(self, run_id: str) -> bool | None:
        """Whether the run takes records: None if the store does not know it, False if somebody deleted it."""

    def find_run(self, experiment: str, key: str) -> str | None:
        """Id of the run with this tag ``medseg.key``."""

    def create_run(self, experiment: str, *, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        """Makes a run and returns its id."""

    def reopen(self, run_id: str) -> None:
        """Sets the run's status to RUNNING."""

    def end(self, run_id: str, *, status: str, ms: int) -> None:
        """Sets the run's final status."""

    def params(self, run_id: str) -> dict[str, str]:
        """The run's parameters."""

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Adds parameters, any number; none of them may have another value already."""

    def log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Adds values, at most 1000."""

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags, any number."""

    def log_dataset(self, run_id: str, note: DatasetNote) -> None:
        """Adds a data set to the run's inputs."""

    def put_file(self, run_id: str, path: Path, artifact: str) -> None:
        """Uploads a file as the artifact of that name, over an earlier one."""

    def note_table(self, run_id: str, artifact: str) -> None:
        """Lets the user interface show that artifact as a table."""

    def put_package(self, run_id: str, artifact: str, *, ms: int) -> None:
        """Adds what MLflow needs to load that artifact folder, a model folder of ours, as a model."""

    def register(self, run_id: str, note: VersionNote) -> None:
        """Makes that artifact folder a version of a registered model, which is made if missing."""

    def tag_versions(self, model_sha256: str, tags: Mapping[str, str]) -> None:
        """Sets tags of all registered versions of a model; none is no error."""

    def show_metrics(self, experiment: str, metrics: Sequence[str], *, ms: int) -> None:
        """Lets the experiment's page show these metrics as columns, the first of them as what runs are sorted by."""
