"""Names of registered models, and their local copies. `test_promote.py` has MLflow's own registry."""

import json
import subprocess

import pytest

from medseg.durable import sha256_bytes, sha256_file
from medseg.errors import EnvironmentFault, InputError, UsageError
from medseg.tracking import fetching
from medseg.tracking.fetching import fetch, model_folder
from medseg.tracking.registry import ModelName, RegisteredVersion


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("models:/liver@champion", ModelName("liver", alias="champion")),
        ("models:/liver/3", ModelName("liver", version=3)),
        ("models:///liver/12", ModelName("liver", version=12)),
    ],
)
def test_names(text, name):
    assert ModelName.parse(text) == name
    assert ModelName.parse(str(name)) == name


@pytest.mark.parametrize("text", ["models:/liver", "models:/liver/latest", "models:/a/b@c", "liver", "models:/@x"])
def test_other_names_are_refused(text):
    with pytest.raises(UsageError, match="expected models:/NAME@ALIAS or models:/NAME/VERSION"):
        ModelName.parse(text)


class FakeRegistry:
    def __init__(self, content=b"{}"):
        self.content = content
        self.downloads = 0

    def download(self, version, folder):
        self.downloads += 1
        (folder / "model").mkdir()
        (folder / "model" / "model.json").write_bytes(self.content)


def _version(tmp_path, content=b"{}", number=1):
    path = tmp_path / "x"
    path.write_bytes(content)
    return RegisteredVersion("liver", number, sha256_file(path), "file:///somewhere")


def test_a_version_is_fetched_once_and_named_by_number_and_checksum(tmp_path):
    registry, version = FakeRegistry(), _version(tmp_path)
    folder = fetch(registry, version, tmp_path / "work")
    assert folder == tmp_path / "work" / "registry" / "liver" / f"1-{version.sha256[:16]}" / "model"
    assert fetch(registry, version, tmp_path / "work") == folder
    assert registry.downloads == 1
    assert [path.name for path in folder.parents[1].iterdir()] == [folder.parent.name]


def test_a_damaged_copy_is_not_taken(tmp_path):
    registry, version = FakeRegistry(), _version(tmp_path)
    folder = fetch(registry, version, tmp_path / "work")
    (folder / "model.json").write_text("other")
    assert fetch(registry, version, tmp_path / "work") == folder
    assert (folder / "model.json").read_bytes() == b"{}"
    assert len(list((tmp_path / "work" / "registry" / "liver").iterdir())) == 1


def test_weights_that_were_damaged_later_are_seen(tmp_path):
    content = json.dumps({"files": {"weights.safetensors": sha256_bytes(b"w")}}).encode()
    folder = fetch(FakeRegistry(content), _version(tmp_path, content), tmp_path)
    (folder / "weights.safetensors").write_bytes(b"w")
    assert fetching._kept(tmp_path, "liver", 1) == folder
    (folder / "weights.safetensors").write_bytes(b"x")
    assert fetching._kept(tmp_path, "liver", 1) is None


def test_another_model_under_the_same_number_is_another_folder(tmp_path):
    work = tmp_path / "work"
    one = fetch(FakeRegistry(), _version(tmp_path), work)
    two = fetch(FakeRegistry(b"[]"), _version(tmp_path, b"[]"), work)
    assert one != two
    assert two.joinpath("model.json").read_bytes() == b"[]"


def test_a_version_by_number_that_is_there_asks_nobody(tmp_path, monkeypatch):
    folder = fetch(FakeRegistry(), _version(tmp_path), tmp_path)
    monkeypatch.setattr(subprocess, "run", None)
    assert model_folder("models:/liver/1", work=tmp_path) == folder


def _answers(monkeypatch, text, code=0):
    def run(command, **_):
        return subprocess.CompletedProcess(command, code, stdout=text, stderr="")

    monkeypatch.setattr(subprocess, "run", run)


def test_what_the_other_process_says(tmp_path, monkeypatch):
    _answers(monkeypatch, "a warning\n" + json.dumps({"folder": "w/model", "version": 2, "sha256": "ab" * 32}) + "\n")
    assert model_folder("models:/liver@champion", work=tmp_path).as_posix() == "w/model"
    _answers(monkeypatch, json.dumps({"error": "models:/liver@champion: is not in the registry", "code": 3}))
    with pytest.raises(InputError, match="is not in the registry"):
        model_folder("models:/liver@champion", work=tmp_path)
    _answers(monkeypatch, json.dumps({"error": "registry: can't be asked", "code": 5}))
    with pytest.raises(EnvironmentFault, match="can't be asked"):
        model_folder("models:/liver@champion", work=tmp_path)
    _answers(monkeypatch, "", code=-9)
    with pytest.raises(EnvironmentFault, match=r"can't be fetched \(exit code -9\)"):
        model_folder("models:/liver@champion", work=tmp_path)


def test_without_mlflow_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "mlflow_is_installed", lambda: False)
    with pytest.raises(EnvironmentFault, match="needs mlflow"):
        model_folder("models:/liver@champion", work=tmp_path)
