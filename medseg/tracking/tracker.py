"""What a pipeline calls to have its runs recorded.

Nothing here waits for the tracker or raises into the stage: a call appends to a spool on disk (``spool.py``), and a
process of its own (``sender.py``) replays the spool into MLflow. If MLflow is missing, away, hung or switched off, the
spool is the log, and ``medseg sync`` sends it later.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medseg.config.sections import TrackingSection
from medseg.durable import read_json, write_json
from medseg.errors import InputError
from medseg.tracking import privacy
from medseg.tracking.address import (
    TRACKING_NAME,
    StoreAddress,
    lasting_key,
    mlflow_is_installed,
    read_sent,
    store_address,
)
from medseg.tracking.pending import Pending, count_pending
from medseg.tracking.process import SenderProcess
from medseg.tracking.record import code_commit
from medseg.tracking.run import TrackedRun, safe_tags
from medseg.tracking.spool import FORMAT, SpoolWriter, last_status

_log = logging.getLogger(__name__)

SWITCH = "MEDSEG_TRACKING"
"""Environment variable; ``off`` keeps every record on disk and starts no sender."""
_INTERRUPTED_WAIT_SECONDS = 5.0
_LOCK_ATTEMPTS = 20
_LOCK_PAUSE_SECONDS = 0.05


class Tracker:
    """Records the runs of one command; use :func:`open_tracker`.

    Args:
        section: the config's ``tracking`` section.
        work: the work folder.
        experiment: name of the MLflow experiment and of the parent run, unless the section names an experiment.
        config: the resolved config as plain values; logged as params of the parent run and of every run, its section
            ``evaluate`` alone of those that score.
        sends: whether a sender process is started.
    """

    def __init__(
        self, section: TrackingSection, *, work: Path, experiment: str, config: Mapping[str, Any], sends: bool
    ) -> None:
        self.folder = work / TRACKING_NAME
        self._section = section
        self._work = work
        self._name = experiment
        self._experiment = section.experiment or experiment
        self._config = privacy.safe_params(config)
        self._store: StoreAddress = store_address(work)
        self._sender: SenderProcess | None = None
        self._started: list[tuple[Path, Path | None]] = []
        privacy.show_folder(work, "<work>")
        self._sends = sends

    def run(
        self,
        stage: str,
        name: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        resume_file: Path | None = None,
        parent: TrackedRun | None = None,
    ) -> TrackedRun:
        """A run, or the one that ``resume_file`` names, which goes on.

        It begins with the first thing that is logged: a stage that finds nothing left to do, and had finished before,
        leaves its record alone and need not wait for the tracker.

        Args:
            stage: prepare, train, infer or evaluate.
            name: what people see, e.g. ``train fold 0``.
            params: settings besides the config's.
            tags: short texts.
            resume_file: ``tracking.json`` of the stage's folder; made if missing, so that the same command later goes
                on with the same run. None makes a new run each time.
            parent: the run that this one belongs to; None takes the experiment's.

        Returns:
            the run; on a disk that can't be written it is one that records nothing, and a warning is logged.
        """
        key = f"{_slug(name)}-{secrets.token_hex(4)}"
        try:
            if resume_file is not None:
                key = lasting_key(resume_file, _slug(name))
            writer = self._writer(key)
        except Exception as error:  # noqa: BLE001 - tracking never stops a stage
            reason = getattr(error, "strerror", None) or type(error).__name__
            _log.warning("tracking: run %s is not recorded (%s); the stage goes on", name, reason)
            return TrackedRun(None, key=key, work=self._work, images=False)
        return TrackedRun(
            writer,
            key=writer.folder.name,
            work=self._work,
            images=self._section.images,
            begin=lambda run: self._start(run, writer, stage, name, params or {}, tags or {}, resume_file, parent),
            finished_before=last_status(writer.folder) == "FINISHED",
        )

    def _writer(self, key: str) -> SpoolWriter:
        for _ in range(_LOCK_ATTEMPTS):  # a sender that ends this run as abandoned holds the lock for a moment
            try:
                return SpoolWriter(self.folder / key)
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_SECONDS)
        # Two commands on one stage folder: the pipelines' own lock stops that, but a copied folder has the same key.
        return SpoolWriter(self.folder / f"{key}-{secrets.token_hex(4)}")

    def _start(
        self,
        run: TrackedRun,
        writer: SpoolWriter,
        stage: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        resume_file: Path | None,
        parent: TrackedRun | None,
    ) -> bool:
        try:
            commit = code_commit()
            neutral = {"medseg.stage": stage} | ({"mlflow.source.git.commit": commit} if commit else {})
            writer.append(
                "start",
                format=FORMAT,
                key=run.key,
                stage=privacy.safe_name(stage),
                name=privacy.scrub(name),
                experiment=privacy.scrub(self._experiment),
                parent=self._parent(parent),
                params=self._params_of(stage) | privacy.safe_params(params),
                tags=safe_tags(tags) | neutral,
                known=_known_ids(resume_file),
            )
            writer.sync()
        except Exception as error:  # noqa: BLE001 - tracking never stops a stage
            run.lost("start", error)
            return False
        self._started.append((writer.folder, resume_file))
        if self._sends and self._sender is None:
            self._sender = SenderProcess.start(self._work)
        if self._sender:
            self._sender.watch(run.key)
        return True

    def _params_of(self, stage: str) -> dict[str, str]:
        # Beside each picture MLflow lists the run's parameters: more than a few leave no room for it.
        if stage != "evaluate":
            return self._config
        return {name: value for name, value in self._config.items() if name.startswith("evaluate.")}

    def _parent(self, run: TrackedRun | None) -> dict[str, Any]:
        if run is not None:
            run.begin()  # a parent is sent before its children
            return {"key": run.key, "spooled": True}
        key = lasting_key(self.folder / "parent.json", _slug(self._name))
        return {"key": key, "spooled": False, "name": privacy.scrub(self._name), "params": self._config}

    def pending(self) -> Pending:
        """What the store does not have yet, of all runs of the work folder."""
        return count_pending(self._work, self._store)

    def close(self, *, interrupted: bool = False) -> None:
        """Waits for the sender, at most ``tracking.wait_seconds`` (5 after an interruption), and says what is left."""
        if self._sender is None:
            return
        wait = self._section.wait_seconds
        reason = self._sender.finish(min(wait, _INTERRUPTED_WAIT_SECONDS) if interrupted else wait)
        self._keep_ids()
        left = self.pending()
        if left.records:
            _log.warning(
                "tracking: %d records wait for `medseg sync` (%s); they are kept in the work folder",
                left.records,
                reason or "the tracker is slow",
            )

    def _keep_ids(self) -> None:
        for folder, resume_file in self._started:
            run_id = read_sent(folder, self._store).run_id
            if resume_file is None or run_id is None:
                continue
            try:
                content = read_json(resume_file)
                runs = content.get("runs", {}) | {self._store.code: run_id}
                if runs != content.get("runs"):
                    write_json(resume_file, content | {"runs": runs})
            except Exception as error:  # noqa: BLE001 - the id is found again by the run's key
                _log.debug("tracking: the run's id was not kept (%s)", type(error).__name__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(interrupted=error is not None and not isinstance(error, Exception))


def _known_ids(resume_file: Path | None) -> dict[str, str]:
    if resume_file is None:
        return {}
    try:
        return dict(read_json(resume_file).get("runs", {}))
    except (InputError, AttributeError, TypeError, ValueError):
        return {}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "run"


def open_tracker(
    section: TrackingSection, *, work: Path, experiment: str, config: Mapping[str, Any] | None = None
) -> Tracker:
    """Opens the tracker of a command, as a context manager.

    With ``section.enabled`` false, ``MEDSEG_TRACKING=off`` or no MLflow installed, no sender starts and the records
    stay in ``<work>/tracking``; the last of these is said in one line.

    Args:
        section: the config's ``tracking`` section.
        work: the work folder; made if missing.
        experiment: the config's name.
        config: the resolved config as plain values.
    """
    wanted = section.enabled and os.environ.get(SWITCH, "").lower() != "off"
    installed = mlflow_is_installed()
    if wanted and not installed:
        _log.info("tracking: mlflow is not installed; the records are kept in the work folder's tracking/ alone")
    return Tracker(section, work=work, experiment=experiment, config=config or {}, sends=wanted and installed)
