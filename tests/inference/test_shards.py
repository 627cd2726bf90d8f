"""Who does which cases, and who may write a folder at the same time."""

import json

import pytest

from medseg.errors import LockedError, UsageError
from medseg.inference.report import CaseReport, ReportFile
from medseg.inference.shards import Shard, folder_lock, shard_of

ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "4"}


@pytest.mark.parametrize(("cases", "count"), [(10, 3), (2, 5), (7, 1)])
def test_the_parts_are_every_case_once(cases, count):
    parts = [Shard(index, count).part(range(cases)) for index in range(count)]
    assert sorted(case for part in parts for case in part) == list(range(cases))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        (None, ARRAY, None),
        ("0/1", {}, Shard(0, 1)),
        ("3/4", ARRAY, Shard(3, 4)),
        ("auto", ARRAY, Shard(3, 4)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_STEP": "8"}, Shard(2, 4)),
        ("auto", {"RANK": "1", "WORLD_SIZE": "2"}, Shard(1, 2)),
        ("auto", ARRAY | {"RANK": "1", "WORLD_SIZE": "2"}, Shard(7, 8)),
    ],
)
def test_shards_are_named_or_taken_from_the_environment(text, environment, shard):
    assert shard_of(text, environment) == shard


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("4/4", {}, "is 4/4, expected i/n with i from 0 to n - 1; the last of these is 3/4"),
        ("0/0", {}, "the last of these is 0/1"),
        ("1", {}, "is '1', expected i/n"),
        ("auto", {}, "is auto, expected SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, or RANK"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_ID": "9"}, "expected an array without gaps"),
    ],
)
def test_senseless_shards_are_refused(text, environment, message):
    with pytest.raises(UsageError, match=message):
        shard_of(text, environment)


def test_shards_of_one_split_share_a_folder_and_nobody_else(tmp_path):
    with folder_lock(tmp_path, Shard(0, 2)), folder_lock(tmp_path, Shard(1, 2)):
        for other in (None, Shard(0, 2), Shard(2, 3)):
            with pytest.raises(LockedError, match="is being written by process"), folder_lock(tmp_path, other):
                pass
    assert not list(tmp_path.iterdir())
    with folder_lock(tmp_path, None), pytest.raises(LockedError, match="written"), folder_lock(tmp_path, Shard(0, 2)):
        pass
    with folder_lock(tmp_path, Shard(2, 3)):
        pass


def test_a_dead_shards_lock_holds_nobody_up(tmp_path):
    with folder_lock(tmp_path, Shard(0, 2)):
        held = json.loads((tmp_path / ".lock-0-of-2").read_text())
    # Process ids end at 2^22, so this one is dead.
    (tmp_path / ".lock-0-of-2").write_text(json.dumps(held | {"pid": 9999999}))
    with folder_lock(tmp_path, None):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def ok(case_id):
    return CaseReport(id=case_id, status="ok", output=f"{case_id}.nii.gz", sha256="a")


def ids(folder, name="report.jsonl"):
    return [json.loads(line)["id"] for line in (folder / name).read_text().splitlines()]


def test_shards_report_for_themselves_and_merge(tmp_path):
    order = ["a", "b", "c", "d"]
    with ReportFile(tmp_path, order, shard=Shard(1, 2)) as second:
        with ReportFile(tmp_path, order, shard=Shard(0, 2)) as first:
            first.add(ok("a"))
            second.add(ok("d"))
            first.add(ok("c"))
            assert ids(tmp_path, "report-0-of-2.jsonl") == ["a", "c"]
        assert ids(tmp_path) == ["a", "c"]
        assert ids(tmp_path, "report-1-of-2.jsonl") == ["d"]
        second.add(ok("b"))
    assert ids(tmp_path) == order
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.jsonl"]
    assert [row.split(",")[0] for row in (tmp_path / "report.csv").read_text().splitlines()] == ["case", *order]


def test_a_killed_shards_journal_is_merged_by_whoever_comes_next(tmp_path):
    line = json.dumps({"id": "b", "status": "refused", "reason": "b: is empty"})
    for shard, after in ((Shard(1, 2), ["a", "b"]), (None, ["a", "b"])):
        (tmp_path / "report-1-of-2.jsonl").write_text(line + '\n{"id": "c", "sta')
        with ReportFile(tmp_path, ["a", "b"], shard=shard) as report:
            assert ids(tmp_path)[-1] == "b"
            report.add(ok("a"))
        assert ids(tmp_path) == after
        assert not list(tmp_path.glob("report-*"))
        (tmp_path / "report.jsonl").unlink()
