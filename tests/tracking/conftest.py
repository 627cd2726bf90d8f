"""A tracking store in memory, which can be told to fail at its n-th call."""

import copy
from pathlib import Path

import pytest

from medseg.tracking import privacy
from medseg.tracking.store import StoreAwayError, StoreRefusedError


class FakeStore:
    """Keeps what it is told; ``fail_at`` makes call number n fail, ``torn`` after it has taken effect."""

    def __init__(self):
        self.runs = {}
        self.experiments = {}
        self.versions = {}
        self.aliases = {}
        self.columns = {}
        self.calls = []
        self.fail_at = None
        self.torn = False
        self.error = StoreAwayError("away")
        self.refused_names = set()

    def _call(self, method, effect):
        self.calls.append(method)
        failing = self.fail_at is not None and len(self.calls) == self.fail_at
        if failing and not self.torn:
            raise self.error
        result = effect()
        if failing:
            raise self.error
        return result

    def ping(self):
        self._call("ping", lambda: None)

    def experiment(self, name):
        return self._call("experiment", lambda: self.experiments.setdefault(name, f"e{len(self.experiments)}"))

    def is_active(self, run_id):
        return self._call("is_active", lambda: self.runs[run_id]["active"] if run_id in self.runs else None)

    def find_run(self, experiment, key):
        def find():
            active = {i: r for i, r in self.runs.items() if r["active"] and r["in"] == experiment}
            found = [i for i, r in active.items() if r["tags"].get("medseg.key") == key]
            return found[0] if found else None

        return self._call("find_run", find)

    def create_run(self, experiment, *, name, start_ms, tags):
        def create():
            run_id = f"r{len(self.runs)}"
            self.runs[run_id] = {
                "in": experiment, "name": name, "status": "RUNNING", "tags": dict(tags), "params": {}, "metrics": set(),
                "inputs": set(), "files": {}, "tables": set(), "active": True, "statuses": ["RUNNING"],
            }  # fmt: skip
            return run_id

        return self._call("create_run", create)

    def _set_status(self, run_id, status):
        self.runs[run_id]["status"] = status
        self.runs[run_id]["statuses"].append(status)

    def reopen(self, run_id):
        self._call("reopen", lambda: self._set_status(run_id, "RUNNING"))

    def end(self, run_id, *, status, ms):
        self._call("end", lambda: self._set_status(run_id, status))

    def params(self, run_id):
        return self._call("params", lambda: dict(self.runs[run_id]["params"]))

    def log_params(self, run_id, params):
        def log():
            present = self.runs[run_id]["params"]
            if any(present.get(name, value) != value for name, value in params.items()):
                raise StoreRefusedError("a param can't be changed")
            present.update(params)

        self._call("log_params", log)

    def log_metrics(self, run_id, metrics):
        def log():
            assert len(metrics) <= 1000
            if self.refused_names & {m.name for m in metrics}:
                raise StoreRefusedError("bad metric")
            self.runs[run_id]["metrics"] |= {(m.name, repr(m.value), m.ms, m.step) for m in metrics}

        self._call("log_metrics", log)

    def set_tags(self, run_id, tags):
        self._call("set_tags", lambda: self.runs[run_id]["tags"].update(tags))

    def log_dataset(self, run_id, note):
        self._call("log_dataset", lambda: self.runs[run_id]["inputs"].add(note))

    def put_file(self, run_id, path, artifact):
        def put():
            assert Path(artifact).name == path.name
            self.runs[run_id]["files"][artifact] = path.read_bytes()

        self._call("put_file", put)

    def note_table(self, run_id, artifact):
        self._call("note_table", lambda: self.runs[run_id]["tables"].add(artifact))

    def put_package(self, run_id, artifact, *, ms):
        self._call("put_package", lambda: self.runs[run_id]["files"].update({f"{artifact}/MLmodel": f"{ms}".encode()}))

    def register(self, run_id, note):
        def register():
            version = self.versions.setdefault(
                (note.name, note.sha256), {"number": len(self.versions) + 1, "run": run_id}
            )
            version.setdefault("tags", dict(note.tags))
            present = self.aliases.get((note.name, note.alias), 0)
            self.aliases[note.name, note.alias] = max(present, version["number"])

        self._call("register", register)

    def tag_versions(self, model_sha256, tags):
        def tag():
            for (_, sha256), version in self.versions.items():
                if sha256 == model_sha256:
                    version["tags"].update(tags)

        self._call("tag_versions", tag)

    def show_metrics(self, experiment, metrics, *, ms):
        self._call("show_metrics", lambda: self.columns.update(dict.fromkeys((experiment, name) for name in metrics)))

    def run(self, name):
        (found,) = [r for r in self.runs.values() if r["name"] == name]
        return found

    def content(self):
        """What matters of it: statuses passed through on the way do not."""
        runs = copy.deepcopy(self.runs)
        for run in runs.values():
            del run["statuses"]
        return runs, copy.deepcopy(self.versions), dict(self.aliases), list(self.columns)


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture
def new_store():
    return FakeStore


@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    """No test reaches a tracker outside its folder, and none starts a sender unless it says so."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MEDSEG_TRACKING", "off")
    shown = dict(privacy.this_machine()._shown)
    yield
    privacy.this_machine()._shown = shown
