"""Sends one spool to a store, in order, each record at least once and with the effect of once.

The offset up to which the store has everything is kept after each batch. A kill between sending and keeping it sends the
batch again, which changes nothing: equal metrics are one metric, files replace themselves, runs are found by their key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.durable import sha256_file
from medseg.tracking import privacy
from medseg.tracking.address import Sent, StoreAddress, read_sent, write_sent
from medseg.tracking.spool import SPOOL_NAME, Record, read_records, spool_folders, writer_is_alive
from medseg.tracking.store import CANDIDATE, DatasetNote, Metric, Store, StoreRefusedError, VersionNote
from medseg.tracking.views import EXPERIMENT, STAGE_TAG

_log = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000
SCORES_TAG = "medseg.scores_run"
"""Of a registered version: the run that scored it last."""
_DIGEST_CHARACTERS = 32


class Replay:
    """The sending of one spool.

    Args:
        store: where to.
        address: names the store in the note about what it has.
        work: the work folder, in which logged folders lie.
        folder: the spool's folder.
    """

    def __init__(self, store: Store, address: StoreAddress, *, work: Path, folder: Path) -> None:
        self._store = store
        self._address = address
        self._work = work
        self._folder = folder
        self._sent = read_sent(folder, address)
        self._checked = False
        self._dropping = False
        self._handlers: dict[str, Callable[[str, Mapping[str, Any]], None]] = {
            "params": self._params,
            "tags": self._tags,
            "table": self._table,
            "image": self._image,
            "figure": self._figure,
            "dataset": self._dataset,
            "file": self._file,
            "folder": self._folder_files,
            "model": self._model,
            "headline": self._headline,
            "evidence": self._evidence,
            "end": self._end,
        }

    @property
    def offset(self) -> int:
        """Bytes of the spool that the store has."""
        return self._sent.offset

    def _keep(self, offset: int, *, run_id: str | None = None, refused: int = 0) -> None:
        self._sent = Sent(offset, run_id or self._sent.run_id, self._sent.refused + refused)
        write_sent(self._folder, self._address, self._sent)

    def send(self) -> int:
        """Sends what the spool has and the store has not.

        Returns:
            how many records were sent.

        Raises:
            StoreAwayError: the store can't be had; what was sent before is kept as sent.
        """
        size = (self._folder / SPOOL_NAME).stat().st_size
        if self._sent.offset == size:
            return 0
        if self._sent.offset > size:  # the machine lost power: begin anew, repeating changes nothing
            self._sent = Sent()
        self._make_durable()
        self._check_run()
        count = 0
        for batch in _batches(read_records(self._folder, self._sent.offset)):
            self._send_batch(batch)
            count += len(batch)
        return count

    def refuse_next(self) -> None:
        """Passes over the next batch, which the store answers with an error each time though it is there."""
        batch = next(_batches(read_records(self._folder, self._sent.offset)), None)
        if batch:
            _log.warning("a %s record of run %s is passed over", batch[0].kind, self._folder.name)
            self._keep(batch[-1].end, refused=len(batch))

    def _make_durable(self) -> None:
        with contextlib.suppress(OSError), (self._folder / SPOOL_NAME).open("rb") as stream:
            os.fsync(stream.fileno())

    def _check_run(self) -> None:
        if self._checked:
            return
        if self._sent.run_id is not None:
            active = self._store.is_active(self._sent.run_id)
            if active is None:  # the store was removed and made anew: tell it everything
                self._sent = Sent()
            elif not active:
                _log.warning("run %s was deleted in the tracker; its records are passed over", self._folder.name)
                self._dropping = True
        self._checked = True

    def _send_batch(self, batch: list[Record]) -> None:
        first = batch[0]
        try:
            if first.kind == "start":
                self._keep(first.end, run_id=self._begin(first.fields))
                self._dropping = False
                return
            if not self._dropping:
                self._handle(batch)
        except (StoreRefusedError, KeyError, TypeError, ValueError, AttributeError) as error:
            if len(batch) > 1:
                for record in batch:
                    self._send_batch([record])
                return
            reason = privacy.scrub(f"{type(error).__name__}: {error}")
            _log.warning("a %s record of run %s is refused (%s)", first.kind, self._folder.name, reason)
            self._keep(first.end, refused=1)
        else:
            self._keep(batch[-1].end)

    def _handle(self, batch: list[Record]) -> None:
        kind, run_id = batch[0].kind, self._sent.run_id
        if run_id is None:
            raise StoreRefusedError("no start record before it")
        if kind == "metrics":
            self._metrics(run_id, batch)
        elif kind in self._handlers:
            self._handlers[kind](run_id, batch[0].fields)
        else:
            raise StoreRefusedError("unknown kind of record")

    def _begin(self, fields: Mapping[str, Any]) -> str:
        """Finds or makes the run, and the parent above it, both RUNNING."""
        experiment = self._store.experiment(fields["experiment"])
        parent = self._parent(experiment, fields)
        run_id = self._known(fields) or self._store.find_run(experiment, fields["key"])
        tags = {"medseg.key": fields["key"]} | fields["tags"] | _neutral(fields["stage"])
        if parent:
            tags["mlflow.parentRunId"] = parent
        if run_id is None:
            run_id = self._store.create_run(experiment, name=fields["name"], start_ms=fields["ms"], tags=tags)
        else:
            self._store.reopen(run_id)
            self._store.set_tags(run_id, tags)
        self._new_params(run_id, fields["params"])
        return run_id

    def _known(self, fields: Mapping[str, Any]) -> str | None:
        known: str | None = self._sent.run_id or fields["known"].get(self._address.code)
        return known if known and self._store.is_active(known) else None

    def _parent(self, experiment: str, fields: Mapping[str, Any]) -> str | None:
        parent = fields["parent"]
        run_id = self._store.find_run(experiment, parent["key"])
        if parent["spooled"]:
            return run_id  # a run of its own, sent before this one
        if run_id is None:
            tags = {"medseg.key": parent["key"]} | _neutral("experiment")
            run_id = self._store.create_run(experiment, name=parent["name"], start_ms=fields["ms"], tags=tags)
        else:
            self._store.reopen(run_id)
        self._new_params(run_id, parent["params"])
        return run_id

    def _new_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Adds parameters that are new; MLflow never changes one, so a changed one becomes a tag."""
        present = self._store.params(run_id) if params else {}
        self._store.log_params(run_id, {name: value for name, value in params.items() if name not in present})
        changed = {f"changed.{n}": v for n, v in params.items() if n in present and present[n] != v}
        if changed:
            self._store.set_tags(run_id, changed)

    def _metrics(self, run_id: str, batch: list[Record]) -> None:
        metrics = [
            Metric(name, float(value), int(record.fields["ms"]), int(record.fields["step"]))
            for record in batch
            for name, value in record.fields["values"].items()
        ]
        for first in range(0, len(metrics), METRICS_PER_BATCH):
            self._store.log_metrics(run_id, metrics[first : first + METRICS_PER_BATCH])

    def _params(self, run_id: str, fields: Mapping[str, Any]) -> None:
        self._new_params(run_id, fields["values"])

    def _tags(self, run_id: str, fields: Mapping[str, Any]) -> None:
        self._store.set_tags(run_id, fields["values"])

    def _blob(self, fields: Mapping[str, Any]) -> Path:
        path: Path = self._folder / "blobs" / Path(fields["blob"]).name
        if not path.is_file() or sha256_file(path) != path.name.split(".")[0]:
            raise StoreRefusedError("its content is missing or damaged")
        return path

    def _put(self, run_id: str, path: Path, artifact: str) -> None:
        """Uploads under the artifact's own name: MLflow takes the name from the file."""
        scratch = self._folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
        scratch.mkdir()
        try:
            named = scratch / Path(artifact).name
            try:
                named.hardlink_to(path)
            except OSError:
                shutil.copyfile(path, named)
            self._store.put_file(run_id, named, artifact)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _table(self, run_id: str, fields: Mapping[str, Any]) -> None:
        artifact = f"{fields['name']}.json"
        self._put(run_id, self._blob(fields), artifact)
        self._store.note_table(run_id, artifact)

    def _image(self, run_id: str, fields: Mapping[str, Any]) -> None:
        # The layout of MLflow's log_image, whose names hold a random part: ours is the content's, so a repeat replaces.
        blob = self._blob(fields)
        key = fields["name"].replace("/", "~")
        stem = f"images/{key}+step+{fields['step']}+timestamp+{fields['ms']}+{blob.name[:32]}"
        self._put(run_id, blob, f"{stem}.png")
        self._put(run_id, _preview(blob), f"{stem}+compressed.webp")
        self._store.set_tags(run_id, {"mlflow.loggedImages": "True"})

    def _figure(self, run_id: str, fields: Mapping[str, Any]) -> None:
        self._put(run_id, self._blob(fields), f"figures/{fields['name']}.png")

    def _dataset(self, run_id: str, fields: Mapping[str, Any]) -> None:
        digest = str(fields["digest"])[:_DIGEST_CHARACTERS]
        note = DatasetNote(fields["name"], digest, fields["context"], fields["cases"])
        self._store.log_dataset(run_id, note)
        if fields["cases"]:
            self._table(run_id, {**fields, "name": f"datasets/{fields['name']}"})

    def _file(self, run_id: str, fields: Mapping[str, Any]) -> None:
        self._put(run_id, self._blob(fields), fields["name"])

    def _in_work(self, fields: Mapping[str, Any]) -> Path:
        folder: Path = (self._work / fields["path"]).resolve()
        if not folder.is_dir() or not folder.is_relative_to(self._work.resolve()):
            raise StoreRefusedError("the folder is gone")
        return folder

    def _folder_files(self, run_id: str, fields: Mapping[str, Any]) -> None:
        folder = self._in_work(fields)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and privacy.may_be_logged(path):
                self._store.put_file(run_id, path, f"{fields['name']}/{path.relative_to(folder).as_posix()}")

    def _model(self, run_id: str, fields: Mapping[str, Any]) -> None:
        folder, sha256 = self._in_work(fields), fields["sha256"]
        described = folder / "model.json"
        if not described.is_file() or sha256_file(described) != sha256:
            raise StoreRefusedError("the folder holds another model now")
        self._folder_files(run_id, fields)
        self._store.put_package(run_id, fields["name"], ms=fields["ms"])
        if fields["registered_as"]:
            note = VersionNote(
                name=fields["registered_as"],
                artifact=fields["name"],
                sha256=sha256,
                alias=CANDIDATE,
                tags=fields["tags"],
                description=fields["description"],
            )
            self._store.register(run_id, note)

    def _headline(self, run_id: str, fields: Mapping[str, Any]) -> None:  # noqa: ARG002 - it goes to the run above
        parent = self._parent_of_spool()
        if parent is None:
            raise StoreRefusedError("no run above it")
        metrics = [Metric(name, float(value), int(fields["ms"]), 0) for name, value in fields["values"].items()]
        self._store.set_tags(parent, fields["tags"] | {STAGE_TAG: EXPERIMENT})
        if metrics:
            self._store.log_metrics(parent, metrics)
            experiment = self._store.experiment(self._start()["experiment"])
            self._store.show_metrics(experiment, list(fields["values"]), ms=int(fields["ms"]))

    def _evidence(self, run_id: str, fields: Mapping[str, Any]) -> None:
        self._store.tag_versions(fields["sha256"], {**fields["tags"], SCORES_TAG: run_id})

    def _start(self) -> Mapping[str, Any]:
        start = next((r.fields for r in read_records(self._folder) if r.kind == "start"), None)
        if start is None:
            raise StoreRefusedError("no start record before it")
        return start

    def _parent_of_spool(self) -> str | None:
        start = self._start()
        return self._store.find_run(self._store.experiment(start["experiment"]), start["parent"]["key"])

    def _end(self, run_id: str, fields: Mapping[str, Any]) -> None:
        if fields["reason"]:
            self._store.set_tags(run_id, {"medseg.ended_by": fields["reason"]})
        self._store.end(run_id, status=fields["status"], ms=fields["ms"])
        others = (f for f in spool_folders(self._folder.parent) if f != self._folder)
        if self._start()["parent"]["spooled"] or any(writer_is_alive(folder) for folder in others):
            return  # the parent goes on as long as a run below it does
        parent = self._parent_of_spool()
        if parent:
            self._store.end(parent, status=fields["status"], ms=fields["ms"])


def _neutral(stage: str) -> dict[str, str]:
    # MLflow fills these with the login name and the script's path where they are missing.
    return {"mlflow.user": "medseg", "mlflow.source.name": f"medseg {stage}", "mlflow.source.type": "LOCAL"}


def _preview(blob: Path) -> Path:
    """A small WebP beside the picture, as MLflow's gallery wants it."""
    from PIL import Image

    path = blob.with_suffix(".webp")
    if not path.exists():
        with Image.open(blob) as picture:
            picture.thumbnail((256, 256))
            temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
            picture.save(temporary, "WEBP")
        temporary.replace(path)
    return path


def _values(record: Record) -> int:
    values = record.fields.get("values")
    return len(values) if record.kind == "metrics" and isinstance(values, Mapping) else METRICS_PER_BATCH


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Joins neighbouring metrics records up to MLflow's batch size; every other record stands alone."""
    batch: list[Record] = []
    size = 0
    for record in records:
        count = _values(record)
        if batch and size + count > METRICS_PER_BATCH:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += count
        if record.kind != "metrics":
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
