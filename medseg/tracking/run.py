"""One run's side of the tracker: what a stage may log, each call an append to the spool."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, cast

from medseg.durable import sha256_file
from medseg.tracking import privacy
from medseg.tracking.payloads import png, table_json
from medseg.tracking.spool import SpoolWriter, number

if TYPE_CHECKING:  # numpy is not needed by those who only set up the log
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")

NOTE_TAG = "mlflow.note.content"
"""Where MLflow keeps a run's description."""
MODEL_TAG = "medseg.model_sha256"
"""Of a run: which model its scores are of; of a registered version: which model it is."""

SCORE_FILES = ("cases.csv", "metrics.json")

Status = Literal["FINISHED", "FAILED", "KILLED"]


def _quietly(
    method: Callable[Concatenate[TrackedRun, _P], None],
) -> Callable[Concatenate[TrackedRun, _P], None]:
    """Lets no fault of tracking stop the stage; the first one of a run is said, the others counted."""

    @functools.wraps(method)
    def call(self: TrackedRun, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001
            self.lost(method.__name__, error)

    return cast("Callable[Concatenate[TrackedRun, _P], None]", call)


class TrackedRun:
    """One run in the tracker; a context manager that ends FINISHED, FAILED (an error) or KILLED (a signal).

    No method raises or waits for the tracker. Names may hold letters, digits and ``_ - . / blank``; other characters
    become ``_``.

    Attributes:
        key: the run's own name in the work folder.
        finished_before: the stage has ended well before, with everything of it recorded.
    """

    def __init__(
        self,
        writer: SpoolWriter | None,
        *,
        key: str,
        work: Path,
        images: bool,
        begin: Callable[[TrackedRun], bool] = lambda _run: True,
        finished_before: bool = False,
    ) -> None:
        self.key = key
        self._writer = writer
        self._work = work
        self._images = images
        self._begin: Callable[[TrackedRun], bool] | None = begin
        self.finished_before = finished_before
        self._ended = False
        self._faults = 0

    def lost(self, what: str, error: Exception) -> None:
        """Says once that something was not recorded."""
        self._faults += 1
        level = logging.WARNING if self._faults == 1 else logging.DEBUG
        _log.log(level, "tracking: %s was not recorded (%s: %s); the run goes on", what, type(error).__name__, error)

    @contextlib.contextmanager
    def best_effort(self, what: str) -> Iterator[None]:
        """For what is only made to be recorded (pictures, descriptions): a fault in making it stops no stage either."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self.lost(what, error)

    def _append(self, kind: str, **fields: Any) -> None:
        if self._writer is not None and not self._ended:
            self.begin()
            self._writer.append(kind, **fields)

    def begin(self) -> None:
        """Begins the run, if it has not yet; the first record does it by itself."""
        # Where the disk would not take it, the next record tries again: a run without its start can't be sent.
        begin, self._begin = self._begin, None
        if begin is not None and not begin(self):
            self._begin = begin

    def _blob(self, data: bytes, suffix: str) -> str:
        return self._writer.put_blob(data, suffix) if self._writer is not None else ""

    @_quietly
    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step; NaN and infinities are kept as such. An empty mapping writes nothing."""
        if values:
            named = {privacy.safe_name(name): number(value) for name, value in values.items()}
            self._append("metrics", values=named, step=int(step))

    @_quietly
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Settings, nested or flat; one that already has another value in MLflow becomes a tag ``changed.<name>``."""
        self._append("params", values=privacy.safe_params(params))

    @_quietly
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Short texts; a later one replaces an earlier one."""
        self._append("tags", values=safe_tags(tags))

    @_quietly
    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Rows, such as scores per case, as the table ``<name>.json``; it replaces an earlier one."""
        self._append("table", name=privacy.safe_name(name), blob=self._blob(table_json(rows), ".json"))

    @_quietly
    def log_image(self, array: NDArray[np.uint8], name: str, step: int) -> None:
        """A picture (H, W, 3) or (H, W), uint8, shown with a slider over steps. Left out unless ``tracking.images``."""
        if self._images:
            self._append("image", name=privacy.safe_name(name), step=int(step), blob=self._blob(png(array), ".png"))

    @_quietly
    def log_figure_png(self, data: bytes, name: str) -> None:
        """A PNG that shows no scan (curves, histograms) as ``figures/<name>.png``; it replaces an earlier one."""
        if not data.startswith(b"\x89PNG"):
            raise ValueError(f"figure {name} is no PNG")
        self._append("figure", name=privacy.safe_name(name), blob=self._blob(data, ".png"))

    @_quietly
    def log_dataset(
        self, name: str, digest: str, rows: Sequence[Mapping[str, Any]] = (), *, context: str = "training"
    ) -> None:
        """The data set as the run's input: its fingerprint, and case ids with hashes as ``datasets/<name>.json``."""
        fields = {"name": privacy.safe_name(name), "digest": digest, "context": context, "cases": len(rows)}
        self._append("dataset", **fields, blob=self._blob(table_json(rows), ".json"))

    @_quietly
    def log_file(self, path: Path, name: str | None = None) -> None:
        """A small text-like file as the artifact ``name`` (default: its own name), as it is now."""
        if not privacy.may_be_logged(path):
            raise ValueError(f"{path.suffix or 'a file without suffix'} is no kind of file that may be logged")
        blob = self._blob(path.read_bytes(), path.suffix)
        self._append("file", name=privacy.safe_name(name or path.name), blob=blob)

    @_quietly
    def log_folder(self, path: Path, name: str) -> None:
        """A folder inside the work folder (a model), as the artifact folder ``name``; read when it is sent."""
        relative = path.resolve().relative_to(self._work.resolve())
        self._append("folder", name=privacy.safe_name(name), path=relative.as_posix())

    @_quietly
    def log_model(
        self,
        path: Path,
        *,
        registered_as: str | None = None,
        tags: Mapping[str, str] | None = None,
        description: str = "",
    ) -> None:
        """A model folder inside the work folder, as the artifact folder ``model``, which MLflow can load as it is.

        Args:
            path: the folder; read when it is sent, and passed over if it holds another model by then.
            registered_as: name in the model registry, of which it becomes a version with the alias ``candidate``.
            tags: of the version.
            description: of the version, in Markdown.
        """
        relative = path.resolve().relative_to(self._work.resolve())
        self._append(
            "model",
            name="model",
            path=relative.as_posix(),
            sha256=sha256_file(path / "model.json"),
            registered_as=registered_as,
            tags=safe_tags(tags or {}),
            description=privacy.scrub_lines(description),
        )

    @_quietly
    def log_note(self, text: str) -> None:
        """The run's description in Markdown, which the user interface shows first; a later one replaces it."""
        self._append("tags", values={NOTE_TAG: privacy.scrub_lines(text)})

    @_quietly
    def log_headline(
        self, values: Mapping[str, float], *, tags: Mapping[str, str] | None = None, note: str = ""
    ) -> None:
        """What of this run is shown at the run above it, the experiment's: a few numbers, short texts, its description."""
        named = {privacy.safe_name(name): number(value) for name, value in values.items()}
        described = {NOTE_TAG: privacy.scrub_lines(note)} if note else {}
        self._append("headline", values=named, tags=safe_tags(tags or {}) | described)

    @_quietly
    def log_scores(self, folder: Path, *, model_sha256: str, of: str, tags: Mapping[str, str]) -> None:
        """Scores per case of a model, kept under its checksum, so that `medseg promote` finds them whatever comes later.

        Args:
            folder: with ``cases.csv`` and ``metrics.json``.
            model_sha256: of the model folder whose masks were scored.
            of: name of the set of cases, e.g. "fold_0"; models are compared on sets of the same name.
            tags: of the model's registered versions, where there are any.
        """
        for name in SCORE_FILES:
            self.log_file(folder / name, f"{scores_artifact(model_sha256)}/{name}")
        self._append("tags", values={scores_tag(model_sha256): privacy.scrub(of), MODEL_TAG: model_sha256})
        self._append("evidence", sha256=model_sha256, tags=safe_tags(tags))

    @_quietly
    def finish(self, status: Status, reason: str = "") -> None:
        """Ends the run; what is logged after it is left out. The end of the ``with`` block calls it."""
        if self._writer is None or self._ended:
            return
        try:
            if self._begin is not None and self.finished_before:
                return  # nothing of this start was worth a record, a refusal neither: what is recorded stays true
            self._append("end", status=status, reason=privacy.scrub(reason))
            self._writer.sync()
        finally:
            self._ended = True
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status, reason = _ending(error)
        self.finish(status, reason)


def _ending(error: BaseException | None) -> tuple[Status, str]:
    # Only the type of an error: its text may name a case's file, and the stage's own log has it.
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "FINISHED", ""
    interrupted = not isinstance(error, Exception | SystemExit)  # KeyboardInterrupt and its like
    interrupted |= isinstance(error, SystemExit) and error.code in (130, 143)
    return ("KILLED" if interrupted else "FAILED"), type(error).__name__


def safe_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags with names and texts that may be logged."""
    return {privacy.safe_name(name): privacy.scrub(str(value)) for name, value in tags.items()}


def scores_tag(model_sha256: str) -> str:
    """Tag of a run that scored a model; its value is the name of the set of cases."""
    return f"medseg.scores.{model_sha256[:16]}"


def scores_artifact(model_sha256: str) -> str:
    """Artifact folder with a model's scores per case."""
    return f"scores/{model_sha256[:16]}"
