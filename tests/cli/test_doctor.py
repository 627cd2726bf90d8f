import getpass
import json
import socket

from medseg.cli.doctor import main


def test_report_has_what_a_bug_report_needs_and_nothing_private(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    work = tmp_path / "SMITH_JANE"
    assert main(["--work", str(work), "--json"]) == 0
    text = capsys.readouterr().out
    report = json.loads(text)
    assert set(report) == {"versions", "commit", "system", "device", "memory", "disk", "limits", "tracker"}
    assert {"cores", "threads", "cpu_bf16", "cuda"} <= set(report["device"])
    assert report["tracker"]["state"] == "not made yet"
    assert report["disk"]["work_free_gb"] > 0
    assert "SMITH" not in text
    assert str(tmp_path) not in text
    for name in (getpass.getuser(), socket.gethostname()):
        assert f'"{name}"' not in text
    assert not work.exists()


def test_plain_text_has_a_line_per_value(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["--work", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("versions.torch ") for line in lines)
    assert any(line.startswith("tracker.store ") and line.endswith("embedded sqlite") for line in lines)
