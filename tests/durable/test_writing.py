import errno
import os

import pytest

from medseg.durable import (
    atomic_path,
    read_json,
    remove_stale_temporaries,
    sha256_json,
    write_bytes,
    write_json,
    writing,
)
from medseg.errors import EnvironmentFault, InputError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "scores.json"
    write_json(target, {"dice": 0.5})

    def die_in_the_middle():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        die_in_the_middle()
    assert read_json(target) == {"dice": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_every_failing_call_leaves_the_old_file(tmp_path, monkeypatch, call):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if call == "fsync" else writing.Path, call, fail)
    with pytest.raises(EnvironmentFault, match=r"a\.bin: no space left to write it"):
        write_bytes(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "nested too deep"),
        ("{", "no valid JSON"),
    ],
)
def test_json_that_is_not_strict_is_refused(tmp_path, text, fault):
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(InputError, match=fault):
        read_json(path)


def test_hash_does_not_depend_on_the_order_of_keys():
    assert sha256_json({"a": 1, "b": [1.5, None]}) == sha256_json({"b": [1.5, None], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_only_temporaries_of_dead_processes_are_removed(tmp_path):
    target = tmp_path / "x.json"
    mine = writing.temporary_name(target)
    mine.write_text("alive")
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-4194304999-"))
    dead.write_text("dead")
    other = tmp_path / ".tmp-otherhost-1-abcd-x.json"
    other.write_text("fresh, of another host")
    assert remove_stale_temporaries(tmp_path) == 1
    assert mine.exists()
    assert other.exists()
    assert not dead.exists()
