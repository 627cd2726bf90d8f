"""One round with PostgreSQL and a killed server; `tracking_server.py` beside it does both and prints the table."""

import importlib.util
import os
from pathlib import Path

import pytest

from tests.reliability import tracking_server

DRIVER = os.environ.get("MEDSEG_PSYCOPG2")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_killed_server_on_postgresql_loses_nothing(tmp_path):
    if tracking_server.postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    if importlib.util.find_spec("psycopg2") is None and not (DRIVER and Path(DRIVER, "psycopg2").is_dir()):
        pytest.skip("psycopg2 is missing: pip install --target FOLDER psycopg2-binary, and MEDSEG_PSYCOPG2=FOLDER")
    output = tmp_path / "table.md"
    driver = ["--driver", DRIVER] if DRIVER else []
    assert tracking_server.main(["--rounds", "apart", *driver, "--output", str(output)]) == 0
    assert output.read_text().endswith("\nfaults: none\n")
