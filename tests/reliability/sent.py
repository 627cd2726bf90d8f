"""Whether a tracking server has everything that the spools of a work folder hold, read back through MLflow's own client."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.durable import sha256_file
from medseg.tracking.spool import Record, read_records, spool_folders
from medseg.tracking.store import CANDIDATE


@dataclass
class Found:
    """What was compared and what is wrong.

    Attributes:
        counts: of what was found as it should be, by kind.
        faults: one line each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def expect(self, kind: str, what: str, *, there: bool) -> None:
        """Counts it, or notes that it is missing or differs."""
        if there:
            self.counts[kind] += 1
        else:
            self.faults.append(f"{kind}: {what}")


def compare(uri: str, work: Path, scratch: Path) -> Found:
    """Compares every record of every run of ``work`` with the server at ``uri``."""
    from mlflow import MlflowClient

    client, found = MlflowClient(tracking_uri=uri), Found()
    for folder in spool_folders(work / "tracking"):
        records = list(read_records(folder))
        first = records[0].fields
        experiment = client.get_experiment_by_name(first["experiment"])
        runs = client.search_runs([experiment.experiment_id], filter_string=f"tags.`medseg.key` = '{first['key']}'")
        found.expect("runs", f"{folder.name} is there {len(runs)} times", there=len(runs) == 1)
        if len(runs) == 1:
            _compare_run(client, runs[0], records, folder, work, scratch, found)
    return found


def _compare_run(
    client: Any, run: Any, records: list[Record], folder: Path, work: Path, scratch: Path, found: Found
) -> None:
    name = folder.name
    status = [record.fields["status"] for record in records if record.kind == "end"][-1]
    found.expect("statuses", f"{name} is {run.info.status}, expected {status}", there=run.info.status == status)
    wanted = Counter(_points(records))
    for metric in {point[0] for point in wanted}:
        has = {
            (m.key, repr(float(m.value)), m.timestamp, m.step)
            for m in client.get_metric_history(run.info.run_id, metric)
        }
        for point in (point for point in wanted if point[0] == metric):
            found.expect("metric points", f"{name} {point}", there=point in has)
        extra = has - set(wanted)
        found.expect("metrics without a point too many", f"{name} {metric}: {sorted(extra)[:3]}", there=not extra)
    params = {**records[0].fields["params"]}
    for key, value in params.items():
        has_value = run.data.params.get(key) == value or run.data.tags.get(f"changed.{key}") == value
        found.expect("params", f"{name} {key}", there=has_value)
    for key, value in _tags(records).items():
        found.expect("tags", f"{name} {key}", there=run.data.tags.get(key) == value)
    digests = {one.dataset.digest for one in run.inputs.dataset_inputs}
    for record in records:
        if record.kind == "dataset":
            found.expect("data sets", name, there=str(record.fields["digest"])[:32] in digests)
        if record.kind == "model" and record.fields["registered_as"]:
            _compare_version(client, record.fields, name, found)
    place = scratch / name
    place.mkdir(parents=True)
    client.download_artifacts(run.info.run_id, "", str(place))
    for artifact, expected in _files(records, folder, work):
        path = place / artifact
        found.expect("files", f"{name} {artifact}", there=path.is_file() and sha256_file(path) == expected)


def _points(records: list[Record]) -> Iterator[tuple[str, str, int, int]]:
    for record in records:
        if record.kind == "metrics":
            for key, value in record.fields["values"].items():
                yield key, repr(float(value)), int(record.fields["ms"]), int(record.fields["step"])


def _tags(records: list[Record]) -> dict[str, str]:
    tags = dict(records[0].fields["tags"])
    for record in records:
        if record.kind == "tags":
            tags |= record.fields["values"]
    return tags


def _files(records: list[Record], folder: Path, work: Path) -> Iterator[tuple[str, str]]:
    """Artifact to checksum; the last one of a name counts."""
    files: dict[str, Path] = {}
    for record in records:
        fields = record.fields
        if record.kind in ("table", "figure", "file", "dataset"):
            place = {"table": "{}.json", "figure": "figures/{}.png", "dataset": "datasets/{}.json"}.get(
                record.kind, "{}"
            )
            files[place.format(fields["name"])] = folder / "blobs" / fields["blob"]
        elif record.kind == "model":
            source = work / fields["path"]
            files |= {f"model/{path.relative_to(source)}": path for path in source.rglob("*") if path.is_file()}
    yield from ((artifact, sha256_file(path)) for artifact, path in files.items())


def _compare_version(client: Any, fields: Mapping[str, Any], name: str, found: Found) -> None:
    registered = fields["registered_as"]
    tag = f"tags.`medseg.model_sha256` = '{fields['sha256']}'"
    versions = client.search_model_versions(f"name = '{registered}' and {tag}")
    found.expect("registered versions", f"{name}: {len(versions)} versions", there=len(versions) == 1)
    everything = [int(version.version) for version in client.search_model_versions(f"name = '{registered}'")]
    alias = client.get_model_version_by_alias(registered, CANDIDATE)
    found.expect("aliases", f"{name}: {alias.version} of {everything}", there=int(alias.version) == max(everything))


def table(found: Found) -> str:
    """The counts as text."""
    return json.dumps(dict(sorted(found.counts.items())))
