import contextlib
import sqlite3
from pathlib import Path

import pytest

from medseg.tracking.database import _move_places


@pytest.mark.parametrize(
    ("table", "before", "after"),
    [
        ("experiments", "/old/w/mlartifacts/demo", "/new/mlartifacts/demo"),
        ("experiments", "file:///old/w/mlartifacts/demo", "/new/mlartifacts/demo"),
        ("experiments", "/somewhere/mlruns/0", "/new/mlartifacts/default"),
        ("experiments", "s3://bucket/mlartifacts/demo", "s3://bucket/mlartifacts/demo"),
        ("experiments", "/new/mlartifacts/demo", "/new/mlartifacts/demo"),
        ("runs", "/old/w/mlartifacts/demo/r1/artifacts", "/new/mlartifacts/demo/r1/artifacts"),
        ("runs", "/elsewhere/r1/artifacts", "/elsewhere/r1/artifacts"),
        ("runs", None, None),
    ],
)
def test_places_follow_a_moved_work_folder(tmp_path, table, before, after):
    path = tmp_path / "mlflow.db"
    column = {"experiments": "artifact_location", "runs": "artifact_uri"}[table]
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE {table} ({column} TEXT)")
        database.execute(f"INSERT INTO {table} VALUES (?)", (before,))
    _move_places(path, Path("/new/mlartifacts"))
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute(f"SELECT {column} FROM {table}").fetchall() == [(after,)]
