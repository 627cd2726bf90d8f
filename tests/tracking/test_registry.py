"""Names of registered models, and their local copies. `test_promote.py` has MLflow's own registry."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from medseg.durable import sha256_bytes, sha256_file
from medseg.durable.writing import temporary_name
from medseg.errors import EnvironmentFault, InputError, UsageError
from medseg.tracking import fetching
from medseg.tracking.address import store_address
from medseg.tracking.fetching import fetch, model_folder
from medseg.tracking.registry import ModelName, RegisteredVersion, Registry
from medseg.tracking.run import scores_tag


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


@pytest.mark.parametrize("text", [
    "models:/liver", "models:/liver/latest", "models:/a/b@c", "liver", "models:/@x", "models:/../1", "models:/.@champion",
    "models:/..@champion", "models:/a\\b/1", "models:/a' or name = 'b/1", "models:/a\nb/1",
])  # fmt: skip
def test_other_names_are_refused(text):
    with pytest.raises(UsageError, match="expected models:/NAME@ALIAS or models:/NAME/VERSION"):
        ModelName.parse(text)


class FakeRegistry:
    def __init__(self, content=b"{}", **files):
        self.content = content
        self.files = files
        self.downloads = 0

    def download(self, version, folder):
        self.downloads += 1
        (folder / "model").mkdir()
        (folder / "model" / "model.json").write_bytes(self.content)
        for name, data in self.files.items():
            (folder / "model" / name).write_bytes(data)


def _version(tmp_path, content=b"{}", number=1):
    path = tmp_path / "x"
    path.write_bytes(content)
    return RegisteredVersion("liver", number, sha256_file(path), "file:///somewhere")


def test_a_version_is_fetched_once_and_named_by_number_and_checksum(tmp_path):
    registry, version = FakeRegistry(), _version(tmp_path)
    folder = fetch(registry, version, tmp_path / "work")
    assert folder == tmp_path / "work" / f"1-{version.sha256[:16]}" / "model"
    assert fetch(registry, version, tmp_path / "work") == folder
    assert registry.downloads == 1
    assert [path.name for path in folder.parents[1].iterdir()] == [folder.parent.name]


def test_a_damaged_copy_is_not_taken(tmp_path):
    registry, version = FakeRegistry(), _version(tmp_path)
    folder = fetch(registry, version, tmp_path / "work")
    (folder / "model.json").write_text("other")
    assert fetch(registry, version, tmp_path / "work") == folder
    assert (folder / "model.json").read_bytes() == b"{}"
    assert len(list((tmp_path / "work").iterdir())) == 1


def test_weights_that_were_damaged_later_are_seen(tmp_path):
    content = json.dumps({"files": {"weights": sha256_bytes(b"w"), "LICENSE": sha256_bytes(b"l")}}).encode()
    folder = fetch(FakeRegistry(content, weights=b"w", LICENSE=b"l"), _version(tmp_path, content), tmp_path)
    assert fetching._kept(tmp_path, 1) == folder
    (folder / "weights").write_bytes(b"x")
    assert fetching._kept(tmp_path, 1) is None


@pytest.mark.parametrize(
    "info",
    [
        {"files": {"weights": sha256_bytes(b"other")}},
        {"files": {"missing": sha256_bytes(b"w")}},
        {"files": {"../../../x": sha256_bytes(b"w")}},
        {"members": [{"folder": ".", "sha256": ""}]},
        {"members": [{"folder": "..", "sha256": "0" * 64}]},
        {"previous": {"folder": "previous", "sha256": "0" * 64}},
        {"files": {"weights": 3}, "members": 7},
    ],
)
def test_a_copy_that_came_damaged_or_with_names_that_lead_out_is_refused(tmp_path, info):
    content = json.dumps(info).encode()
    with pytest.raises(InputError, match="models:/liver/1: a file of it is missing or damaged"):
        fetch(FakeRegistry(content, weights=b"w"), _version(tmp_path, content), tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_what_a_killed_fetch_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = temporary_name(tmp_path / "1")
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    (left / "new" / "model").mkdir(parents=True)
    folder = fetch(FakeRegistry(), _version(tmp_path), tmp_path)
    assert not left.exists()
    assert folder.is_dir()


def test_a_copy_with_a_link_is_refused(tmp_path):
    class Linked(FakeRegistry):
        def download(self, version, folder):
            super().download(version, folder)
            (folder / "model" / "weights").symlink_to(tmp_path / "x")

    with pytest.raises(InputError, match="holds a link"):
        fetch(Linked(), _version(tmp_path), tmp_path / "work")


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [("../../home", 1, "answers with another model"), ("liver", 2, "answers with version 2")],
)
def test_a_tracker_that_answers_about_another_model_is_not_believed(name, version, words):
    registry = object.__new__(Registry)
    answer = SimpleNamespace(name=name, version=str(version), source="file:///x", tags={})
    registry._client = SimpleNamespace(get_model_version=lambda *_: answer, search_model_versions=lambda _: [answer])
    with pytest.raises(InputError, match=words):
        registry.find(ModelName("liver", version=1))
    if name != "liver":
        with pytest.raises(InputError, match=words):
            registry.find_model("liver", "0" * 64)


def test_names_of_sets_that_a_tracker_tells_drive_no_terminal():
    sha256 = "ab" * 32
    run = SimpleNamespace(
        data=SimpleNamespace(tags={scores_tag(sha256): "fold_0\x1b]0;x\x07"}), info=SimpleNamespace(run_id="7")
    )
    registry = object.__new__(Registry)
    registry._client = SimpleNamespace(search_experiments=lambda **_: [], search_runs=lambda *_, **__: [run])
    assert registry.scores(RegisteredVersion("liver", 1, sha256, "")) == {r"fold_0\x1b]0;x\x07": "7"}


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_that_is_no_model_is_not_copied(tmp_path, monkeypatch, form):
    def copied(**_):
        raise AssertionError("copied")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", copied)
    registry = object.__new__(Registry)
    registry._uri = "http://tracker:5000"
    folder = tmp_path / "a b#c"
    folder.mkdir()
    source = form.format(str(folder) if form == "{}" else str(folder).replace(" ", "%20").replace("#", "%23"))
    with pytest.raises(InputError, match=r"models:/liver/1: holds no model\.json"):
        registry.download(RegisteredVersion("liver", 1, None, source), tmp_path)
    (folder / "model.json").write_text("{}")
    with pytest.raises(AssertionError, match="copied"):
        registry.download(RegisteredVersion("liver", 1, None, source), tmp_path)


def test_two_trackers_versions_of_one_name_are_two_models(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = fetching.cache(tmp_path, store_address(tmp_path), "liver")
    folder = fetch(FakeRegistry(), _version(tmp_path), place)
    assert model_folder("models:/liver/1", work=tmp_path) == folder
    _answers(monkeypatch, json.dumps({"folder": "other", "version": 1, "sha256": "ab" * 32}))
    assert model_folder("models:/liver/1", work=tmp_path, tracker="http://other:5000").as_posix() == "other"


def test_a_hung_tracker_is_an_ordinary_error(tmp_path, monkeypatch):
    def run(command, **_):
        raise subprocess.TimeoutExpired(command, 1800)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(EnvironmentFault, match="did not come within 30 minutes"):
        model_folder("models:/liver@champion", work=tmp_path)


def test_another_model_under_the_same_number_is_another_folder(tmp_path):
    work = tmp_path / "work"
    one = fetch(FakeRegistry(), _version(tmp_path), work)
    two = fetch(FakeRegistry(b'{"x": 1}'), _version(tmp_path, b'{"x": 1}'), work)
    assert one != two
    assert two.joinpath("model.json").read_bytes() == b'{"x": 1}'


def test_a_version_by_number_that_is_there_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = fetch(FakeRegistry(), _version(tmp_path), fetching.cache(tmp_path, store_address(tmp_path), "liver"))
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
