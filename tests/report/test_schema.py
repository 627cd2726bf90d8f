import json
from pathlib import Path

import pytest

from tests.report.json_schema import faults

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "metrics.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def metrics(reported):
    return json.loads((reported / "scores" / "metrics.json").read_text())


def test_what_evaluate_writes_is_as_the_schema_says(metrics):
    assert faults(metrics, SCHEMA) == []


def test_what_the_schema_names_is_written(metrics):
    summary = SCHEMA["$defs"]["summary"]
    written = metrics["classes"]["organ"]["metrics"]["dice"]
    assert set(summary["required"]) <= set(written)
    assert set(written) <= set(summary["properties"])


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("format",), 3, "metrics.format: maximum"),
        (("cases", "missing"), None, "metrics.cases.missing: type"),
        (("labels", "organ"), [], "metrics.labels.organ: minItems"),
        (("classes", "organ", "metrics", "dice", "n"), 1.5, "metrics.classes.organ.metrics.dice.n: type"),
        (("identity", "code_sha256"), "x", "metrics.identity.code_sha256: pattern"),
        (("definitions", "metrics", "dice", "better"), "up", "metrics.definitions.metrics.dice.better: enum"),
    ],
)
def test_the_schema_finds_what_is_wrong(metrics, path, value, fault):
    inner = metrics
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert faults(metrics, SCHEMA) == [fault]
