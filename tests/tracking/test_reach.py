import http.server
import socket
import sqlite3
import threading

import pytest

from medseg.tracking import reach
from medseg.tracking.reach import tracker_state


def _state(tmp_path):
    return tracker_state(tmp_path)["state"]


def test_embedded_store(tmp_path):
    assert tracker_state(tmp_path) == {
        "store": "embedded sqlite", "state": "not made yet", "waiting_records": 0, "refused_records": 0,
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    database = sqlite3.connect(tmp_path / "mlflow.db")
    database.execute("CREATE TABLE runs (x)")
    database.close()
    assert _state(tmp_path) == "readable, 0 runs"
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    assert _state(tmp_path) == "can't be read (DatabaseError)"


def test_without_mlflow(tmp_path, monkeypatch):
    monkeypatch.setattr(reach, "mlflow_is_installed", lambda: False)
    assert "not installed" in _state(tmp_path)


@pytest.mark.parametrize(("code", "state"), [(200, "answers"), (500, "answers 500"), (401, "answers 401")])
def test_server(tmp_path, monkeypatch, code, state):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:pw@127.0.0.1:{server.server_port}/")
        report = tracker_state(tmp_path)
    assert report["state"] == state
    assert report["store"] == "http server"
    assert "127.0.0.1" not in str(report)


def test_server_that_hangs_or_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(reach, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert _state(tmp_path) == "does not answer in time"
    assert _state(tmp_path) == "can't be reached (Connection refused)"
