import json
import shutil
import subprocess
import sys

import pytest

from medseg.durable import sha256_json
from medseg.errors import InputError
from medseg.tracking import record as record_module
from medseg.tracking.record import code_commit, code_sha256, read_stage_record, versions, write_stage_record

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _fresh_caches():
    yield
    code_commit.cache_clear()
    code_sha256.cache_clear()


def _write(folder, **changes):
    arguments = {"stage": "train", "config": {"a": 1}, "inputs": {"x": "00"}, "seconds": 1.23456, "extra": {"steps": 5}}
    return write_stage_record(folder, **(arguments | changes))


def test_record_says_what_from_what_and_how_long(tmp_path):
    _write(tmp_path)
    record = read_stage_record(tmp_path)
    assert (record["format"], record["stage"], record["seconds"], record["steps"]) == (1, "train", 1.235, 5)
    assert (record["config"], record["inputs"]) == ({"a": 1}, {"x": "00"})
    assert record["config_sha256"] == sha256_json({"a": 1})
    assert record["versions"]["python"].startswith("3.")
    assert set(record["code"]) == {"commit", "sha256"}


def test_record_holds_no_path(tmp_path):
    path = _write(tmp_path, config={"manifest": str(tmp_path / "m.json")}, inputs={str(tmp_path): "00"})
    assert str(tmp_path) not in path.read_text()


def test_record_refuses_its_own_names(tmp_path):
    with pytest.raises(ValueError, match="'seconds'"):
        _write(tmp_path, extra={"seconds": 3})


def test_a_newer_record_is_refused_by_name(tmp_path):
    (tmp_path / "stage.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(InputError, match=r"stage\.json: has format 2, expected at most 1"):
        read_stage_record(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "1"}'])
def test_no_record_is_refused(tmp_path, content):
    (tmp_path / "stage.json").write_text(content)
    with pytest.raises(InputError, match="is no stage record"):
        read_stage_record(tmp_path)


def test_versions_are_a_copy_and_import_nothing():
    versions()["python"] = "changed"
    assert versions()["python"] != "changed"
    code = "import sys; from medseg.tracking.record import versions; versions(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"False"


def _checkout(tmp_path, monkeypatch):
    package = tmp_path / "medseg"
    package.mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(record_module, "_PACKAGE", package)
    code_commit.cache_clear()
    code_sha256.cache_clear()
    return tmp_path / ".git", package


@pytest.mark.parametrize("kind", ["detached", "loose", "packed", "worktree"])
def test_commit_is_read_without_git(tmp_path, monkeypatch, kind):
    git, _ = _checkout(tmp_path, monkeypatch)
    if kind == "detached":
        (git / "HEAD").write_text(COMMIT + "\n")
    else:
        (git / "HEAD").write_text("ref: refs/heads/main\n")
    if kind == "packed":
        (git / "packed-refs").write_text(f"# pack-refs\n{'f' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n")
    if kind == "loose":
        (git / "refs" / "heads").mkdir(parents=True)
        (git / "refs" / "heads" / "main").write_text(COMMIT)
    if kind == "worktree":
        shutil.move(git, tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "HEAD").write_text(COMMIT)
        git.write_text("gitdir: elsewhere\n")
    assert code_commit() == COMMIT


def test_commit_is_unknown_in_a_foreign_repository(tmp_path, monkeypatch):
    git, _ = _checkout(tmp_path, monkeypatch)
    (git / "HEAD").write_text(COMMIT)
    (tmp_path / "pyproject.toml").unlink()
    assert code_commit() is None


def test_code_hash_is_equal_in_checkout_and_installed_copy(tmp_path, monkeypatch):
    _, package = _checkout(tmp_path, monkeypatch)
    (package / "a.py").write_text("1")
    pipelines = tmp_path / "pipelines"
    pipelines.mkdir()
    (pipelines / "__init__.py").touch()
    (pipelines / "train.py").write_text("2")
    in_checkout = code_sha256()
    shutil.move(pipelines, package / "pipelines")
    (tmp_path / "pyproject.toml").unlink()
    code_sha256.cache_clear()
    assert code_sha256() == in_checkout
    (package / "a.py").write_text("3")
    code_sha256.cache_clear()
    assert code_sha256() != in_checkout
