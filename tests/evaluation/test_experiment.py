from dataclasses import replace

import numpy as np
import pytest

from medseg.config.sections import EvaluateSection
from medseg.errors import InputError, UsageError
from medseg.evaluation import folder_set, manifest_set, run_evaluate
from medseg.manifest import Case, Channel, Manifest


@pytest.fixture
def manifest(tmp_path, save_mask):
    for name in ("a", "b", "b2"):
        save_mask(tmp_path / "data" / f"{name}.nii.gz", np.ones((3, 3, 3)))
    for name in ("a", "b", "u"):
        save_mask(tmp_path / "predictions" / f"{name}.nii.gz", np.ones((3, 3, 3)))
    cases = (
        Case(id="a", patient="a", images=("gone.nii.gz",), labels=("a.nii.gz",)),
        Case(id="b", patient="b", images=("gone.nii.gz",), labels=("b.nii.gz", "b2.nii.gz")),
        Case(id="c", patient="c", images=("gone.nii.gz",), labels=("missing.nii.gz",)),
        Case(id="d", patient="d", images=("gone.nii.gz",), labels=("../outside.nii.gz",)),
        Case(id="u", patient="u", images=("gone.nii.gz",)),
    )
    return Manifest(
        name="set",
        licence="none",
        channels=(Channel(name="CT"),),
        labels={"background": (0,), "liver": (1,)},
        training=cases,
        path=tmp_path / "data" / "set.json",
        sha256="ab",
    )


def scored(manifest, ids, tmp_path, section=EvaluateSection()):  # noqa: B008 - frozen
    folder = tmp_path / "predictions"
    return manifest_set("fold_0", manifest, ids, section, predictions=folder, data_root=tmp_path / "data")


def test_cases_of_a_manifest(manifest, tmp_path):
    report = run_evaluate(scored(manifest, "abcdu", tmp_path), output=tmp_path / "s", processes=1)
    assert sorted(report.scores.rows) == ["a", "b"]
    assert report.exit_code == 4
    assert (report.scores.missing, report.scores.extra) == ((), ())
    assert report.scores.failed["c"].startswith("c: label 'missing.nii.gz' is missing")
    assert report.scores.failed["d"].startswith("d: label '../outside.nii.gz' leads out of the data root")
    assert report.scores.notes == ("1 cases have several references; each was scored against its first",)


def test_prediction_of_another_case_is_extra(manifest, tmp_path):
    report = run_evaluate(scored(manifest, "ab", tmp_path), output=tmp_path / "s", processes=1)
    assert report.faults == ("u: has a prediction but no reference, expected both",)


def test_patients_and_groups_come_from_the_manifest(manifest, tmp_path):
    sites = {"a": "A", "b": "B", "c": "A"}
    cases = tuple(
        replace(
            case,
            patient="p" if case.id in "ab" else case.id,
            extra={"site": sites[case.id]} if case.id in sites else {},
        )
        for case in manifest.training
    )
    found = scored(replace(manifest, training=cases), "ab", tmp_path)
    assert (found.patients["a"], found.patients["b"], found.patients["c"]) == ("p", "p", "c")
    assert found.groups == {"site": sites}
    report = run_evaluate(found, output=tmp_path / "s", processes=1)
    assert report.scores.clusters == {"a": "a", "b": "a"}
    assert [",".join(line.split(",")[:3]) for line in (tmp_path / "s" / "cases.csv").read_text().splitlines()[1:]] == [
        "a,a,liver",
        "b,a,liver",
    ]
    with pytest.raises(UsageError, match=r"evaluate.subgroups: has 'sex', expected .* \(site\)"):
        scored(replace(manifest, training=cases), "ab", tmp_path, EvaluateSection(subgroups=["sex"]))


def test_no_references(manifest, tmp_path):
    assert scored(manifest, "u", tmp_path) is None
    with pytest.raises(InputError, match=r"set.json: no reference can be read"):
        scored(manifest, "c", tmp_path)


def test_tolerances_must_fit_the_labels(manifest, tmp_path):
    with pytest.raises(UsageError, match="tolerance_mm: is given for lung, expected exactly liver"):
        scored(manifest, "a", tmp_path, EvaluateSection(tolerance_mm={"lung": 1.0}))


def test_metrics_of_the_section(manifest, tmp_path):
    cases = scored(manifest, "a", tmp_path, EvaluateSection(metrics=("cldice",)))
    assert cases.protocol.metrics[-1] == "cldice"


def test_two_folders(tmp_path, manifest):
    cases = folder_set(
        "x", predictions=tmp_path / "predictions", references=tmp_path / "data", labels="liver=1", tolerance="liver=3"
    )
    assert [pair.case_id for pair in cases.pairs] == ["a", "b", "b2", "u"]
    assert cases.protocol.tolerance_mm == {"liver": 3.0}
    assert cases.protocol.labels == {"background": (0,), "liver": (1,)}
