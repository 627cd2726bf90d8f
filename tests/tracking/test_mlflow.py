"""The sender process with MLflow itself, and with servers that misbehave. Slow: each sender imports MLflow."""

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from medseg.config.sections import TrackingSection
from medseg.durable import read_json
from medseg.tracking.address import store_address
from medseg.tracking.pending import count_pending
from medseg.tracking.process import send_now, sender_environment
from medseg.tracking.tracker import open_tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

STAGE = """
import pathlib, sys, time
from medseg.config.sections import TrackingSection
from medseg.tracking.tracker import open_tracker
work, name, steps, pause = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
with open_tracker(TrackingSection(wait_seconds=120), work=work, experiment="demo", config={"a": {"b": 1}}) as tracker:
    with tracker.run("train", name, resume_file=work / "runs" / name / "tracking.json") as run:
        for step in range(steps):
            run.log_metrics({"train/loss": 1 / (step + 1)}, step=step)
            print(step, flush=True)
            time.sleep(pause)
"""


@pytest.fixture(autouse=True)
def _sender_allowed(monkeypatch, _own_store):
    monkeypatch.delenv("MEDSEG_TRACKING")


def _environment():
    environment = sender_environment()
    environment.pop("MEDSEG_TRACKING", None)
    return environment


def _stage(work, name, steps=3, pause=0.0):
    command = [sys.executable, "-c", STAGE, str(work), name, str(steps), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=_environment(), start_new_session=True)


def _query(work, text):
    with contextlib.closing(sqlite3.connect(work / "mlflow.db")) as database:
        return database.execute(text).fetchall()


def _statuses(work):
    return dict(_query(work, "SELECT name, status FROM runs"))


def _python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True).stdout


def _in_session(leader):
    """Living processes of the session that ``leader`` began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def test_a_run_with_everything(tmp_path):
    work = tmp_path / "a work folder"
    model = work / "model"
    model.mkdir(parents=True)
    (model / "weights.safetensors").write_bytes(b"w")
    (model / "scan.nii.gz").write_bytes(b"s")
    section = TrackingSection(images=True, wait_seconds=120)
    tracker = open_tracker(section, work=work, experiment="demo", config={"a": {"b": 1}})
    with tracker, tracker.run("train", "fold 0", resume_file=work / "tracking.json") as run:
        run.log_dataset("demo", "d" * 64, [{"case": "a"}])
        for step in range(1500):
            run.log_metrics({"train/loss": float("inf") if step else 0.5, "dice": float("nan")}, step=step)
        run.log_table([{"case": "a", "dice": 0.5}, {"case": "b", "dice": float("nan")}], "scores/cases")
        run.log_image(np.zeros((8, 9, 3), dtype=np.uint8), "overlay/a", step=2)
        run.log_folder(model, "model")
    assert tracker.pending().records == 0
    assert tracker.pending().refused == 0
    assert _statuses(work) == {"demo": "FINISHED", "fold 0": "FINISHED"}
    assert _query(work, "SELECT count(*) FROM metrics") == [(3000,)]
    run_id = read_json(work / "tracking.json")["runs"]["local"]
    artifacts = work / "mlartifacts" / "demo" / run_id / "artifacts"
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert {"model/weights.safetensors", "scores/cases.json", "datasets/demo.json"} <= files
    assert not [name for name in files if "scan" in name]
    code = """
import sys, json
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
run = client.get_run(sys.argv[2])
import mlflow; mlflow.set_tracking_uri(sys.argv[1])
table = client.load_table(run.info.experiment_id, "scores/cases.json")
print(json.dumps({"user": run.info.user_id, "tags": run.data.tags, "params": run.data.params,
  "table": table.fillna(-1).to_dict("list"), "digest": run.inputs.dataset_inputs[0].dataset.digest,
  "source": type(mlflow.data.get_source(run.inputs.dataset_inputs[0].dataset)).__name__}))
"""
    seen = json.loads(_python(code, store_address(work).uri, run_id))
    assert seen["user"] == seen["tags"]["mlflow.user"] == "medseg"
    assert seen["tags"]["mlflow.source.name"] == "medseg train"
    assert seen["params"] == {"a.b": "1"}
    assert seen["table"] == {"case": ["a", "b"], "dice": [0.5, -1]}
    assert seen["digest"] == "d" * 32
    if getpass.getuser() not in ("root", "user"):
        assert getpass.getuser().encode() not in (work / "mlflow.db").read_bytes().replace(str(work).encode(), b"")


def test_five_stages_at_once_on_a_fresh_store(tmp_path):
    stages = [_stage(tmp_path, f"fold {k}", steps=20) for k in range(5)]
    assert [stage.wait(timeout=250) for stage in stages] == [0] * 5
    for stage in stages:
        stage.stdout.close()
    assert _query(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    assert _statuses(tmp_path) == {"demo": "FINISHED"} | {f"fold {k}": "FINISHED" for k in range(5)}
    assert _query(tmp_path, "SELECT count(*) FROM metrics WHERE key = 'train/loss'") == [(100,)]
    assert count_pending(tmp_path, store_address(tmp_path)).records == 0


def test_five_processes_make_one_database(tmp_path):
    code = (
        "import sys, pathlib; from medseg.tracking.database import prepare_database as p\n"
        "p(f'sqlite:///{sys.argv[1]}/mlflow.db', pathlib.Path(sys.argv[1]) / 'mlartifacts')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, env=_environment()) for _ in range(5)]
    assert [process.wait(timeout=200) for process in processes] == [0] * 5
    assert _query(tmp_path, "SELECT name, artifact_location FROM experiments") == [
        ("Default", f"{tmp_path}/mlartifacts/default")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


def test_a_kill_while_the_database_is_made_leaves_none(tmp_path):
    for seconds in (1.0, 2.0, 3.0):
        stage = _stage(tmp_path, "fold 0", steps=1000, pause=0.05)
        stage.stdout.readline()
        time.sleep(seconds)
        os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
        stage.stdout.close()
    with _stage(tmp_path, "fold 0") as stage:
        assert stage.wait(timeout=200) == 0
    assert _query(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    assert _statuses(tmp_path) == {"demo": "FINISHED", "fold 0": "FINISHED"}
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_killed_stage_is_ended_by_sync_and_goes_on_when_started_again(tmp_path):
    with _stage(tmp_path, "fold 0", steps=10_000, pause=0.05) as stage:
        while not (tmp_path / "mlflow.db").exists() or "fold 0" not in _statuses(tmp_path):
            assert stage.poll() is None
            time.sleep(0.2)
        os.killpg(stage.pid, signal.SIGKILL)
    _wait_until_alone(stage.pid)
    assert _statuses(tmp_path)["fold 0"] == "RUNNING"
    send_now(tmp_path, wait_seconds=120)
    assert _statuses(tmp_path) == {"demo": "KILLED", "fold 0": "KILLED"}
    with _stage(tmp_path, "fold 0") as again:
        assert again.wait(timeout=200) == 0
    assert _statuses(tmp_path) == {"demo": "FINISHED", "fold 0": "FINISHED"}
    assert _query(tmp_path, "SELECT count(*) FROM runs") == [(2,)]


def test_the_sender_ends_when_the_stage_alone_is_killed(tmp_path):
    with _stage(tmp_path, "fold 0", steps=10_000, pause=0.05) as stage:
        stage.stdout.readline()
        assert len(_in_session(stage.pid)) == 2
        stage.kill()
    _wait_until_alone(stage.pid)


def _wait_until_alone(leader):
    for _ in range(100):
        if not _in_session(leader):
            return
        time.sleep(0.1)
    pytest.fail("the sender outlived its stage by more than ten seconds")


@contextlib.contextmanager
def _server(kind):
    """Address of a server that refuses, hangs, fails, or is slow."""
    if kind == "refuses":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        return
    if kind == "hangs":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(5 if kind == "slow" else 0)
            self.send_response(int(kind) if kind.isdigit() else 200)
            self.send_header("Retry-After", "3600")
            self.send_header("Content-Length", "2")
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(b"{}")

        do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["refuses", "hangs", "500", "503", "413", "slow"])
@pytest.mark.timeout(200)  # one metric would block 247 s on a dead server, 1,208 s on a hung one
def test_a_bad_server_blocks_nothing_and_its_records_are_sent_later(tmp_path, monkeypatch, caplog, kind):
    with _server(kind) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        section = TrackingSection(wait_seconds=6)
        with open_tracker(section, work=tmp_path, experiment="demo") as tracker, tracker.run("train", "x") as run:
            for step in range(300):
                run.log_metrics({"train/loss": 1.0}, step=step)
        left = tracker.pending()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "127.0.0.1" not in caplog.text
    if kind != "413":  # a server that finds each record too large has refused them, which is an answer
        assert left.records == 303  # start, environment, 300 metrics, end
        assert caplog.text.count("303 records wait for `medseg sync`") == 1
    assert send_now(tmp_path, wait_seconds=150) == ""
    assert _statuses(tmp_path) == {"demo": "FINISHED", "x": "FINISHED"}
    assert _query(tmp_path, "SELECT count(*) FROM metrics WHERE key = 'train/loss'") == [(300,)]


def test_the_sender_of_a_killed_stage_ends_though_the_server_hangs(tmp_path, monkeypatch):
    with _server("hangs") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with _stage(tmp_path, "fold 0", steps=10_000, pause=0.05) as stage:
            stage.stdout.readline()
            time.sleep(5)  # MLflow is imported and the call hangs
            stage.kill()
        _wait_until_alone(stage.pid)


def test_a_copied_work_folder_writes_into_itself(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    section = TrackingSection(wait_seconds=120)
    for work in (one, two):
        tracker = open_tracker(section, work=work, experiment="demo")
        with tracker, tracker.run("evaluate", "x", resume_file=work / "tracking.json") as run:
            run.log_table([{"case": "a"}], f"table {work.name}")
        if work is one:
            shutil.copytree(one, two)
    (table,) = two.rglob("mlartifacts/demo/*/artifacts/table two.json")
    assert (table.parent / "table one.json").exists()
    assert not list(one.rglob("table two.json"))
    places = _query(two, "SELECT artifact_location FROM experiments UNION SELECT artifact_uri FROM runs")
    assert all(place.startswith(f"{two}/mlartifacts/") for (place,) in places)


def test_an_older_database_is_brought_up_to_date_on_a_copy(tmp_path):
    code = """
import sys
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import InitialBase, _get_alembic_config, create_sqlalchemy_engine
InitialBase.metadata.create_all(create_sqlalchemy_engine(sys.argv[1]))
config = _get_alembic_config(sys.argv[1])
older = list(ScriptDirectory.from_config(config).walk_revisions())[5].revision
command.upgrade(config, older)
"""
    _python(code, store_address(tmp_path).uri)
    before = _query(tmp_path, "SELECT version_num FROM alembic_version")
    section = TrackingSection(wait_seconds=200)
    with open_tracker(section, work=tmp_path, experiment="demo") as tracker, tracker.run("train", "x"):
        pass
    assert tracker.pending().records == 0
    assert _statuses(tmp_path)["x"] == "FINISHED"
    assert _query(tmp_path, "SELECT version_num FROM alembic_version") != before
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db.before-upgrade")) as kept:
        assert kept.execute("SELECT version_num FROM alembic_version").fetchall() == before
