from medseg.manifest.cases import Case, Channel, Manifest
from medseg.preparation.checks import check_set
from medseg.preparation.facts import CaseFacts
from medseg.preparation.fingerprint import CaseGeometry

GEOMETRY = CaseGeometry((4, 4, 4), (1.0, 1.0, 1.0), 1.0)


def case(case_id, fold=None, patient=None, labels=("label.nii",)):
    return Case(id=case_id, patient=patient or case_id, images=("x.nii",), labels=labels, fold=fold)


def manifest(training, testing=()):
    return Manifest(
        name="m",
        licence="",
        channels=(Channel(name="MR"),),
        labels={"background": (0,)},
        training=tuple(training),
        testing=tuple(testing),
    )


def facts(voxels="", planar=False, **more):
    return CaseFacts(key="k", geometry=GEOMETRY, voxels_sha256=voxels, planar=planar, **more)


def errors(checks):
    return {f.case_id: f.what for f in checks.findings if f.severity == "error"}


def test_all_faults_of_all_cases_are_found_at_once():
    checks = check_set(
        manifest([case("a"), case("b"), case("c", labels=())]),
        {"a": facts(faults=("one", "two"), warnings=("three",)), "c": facts()},
        {"b": ("is gone",)},
    )
    assert checks.bad_cases == ("a", "b", "c")
    assert [(f.case_id, f.severity, f.what) for f in checks.findings][:4] == [
        ("a", "error", "one"),
        ("a", "error", "two"),
        ("a", "warning", "three"),
        ("b", "error", "is gone"),
    ]
    assert errors(checks)["c"].startswith("has no label map")
    assert checks.plain()["cases"] == 3


def test_duplicates_over_splits_are_errors_and_within_one_warnings():
    training = [case("a", 0), case("b", 0), case("c", 1), case("d", 1)]
    checks = check_set(
        manifest(training, [case("t")]),
        {"a": facts("x"), "b": facts("x"), "c": facts("x"), "d": facts("y"), "t": facts("y")},
        {},
    )
    assert set(errors(checks)) == {"c", "d"}
    assert errors(checks)["c"].startswith("is in fold 1 and has the same voxels as a in fold 0")
    assert errors(checks)["d"].startswith("is in fold 1 and has the same voxels as t in testing")
    assert [f.case_id for f in checks.findings if f.severity == "warning"] == ["b"]


def test_one_patient_in_two_splits_is_an_error():
    training = [case("a", 0, "p"), case("b", 0, "p"), case("c", 2, "p"), case("d", 1, "q"), case("e", 0, "r")]
    checks = check_set(manifest(training, [case("t", None, "q")]), {}, {})
    assert set(errors(checks)) == {"c", "d"}
    assert "its patient also has a in fold 0" in errors(checks)["c"]


def test_pictures_among_volumes_are_named():
    checks = check_set(
        manifest([case("a"), case("b"), case("c")]), {"a": facts(), "b": facts(planar=True), "c": facts()}, {}
    )
    assert set(errors(checks)) == {"b"}
    assert errors(checks)["b"].startswith("is a picture, expected the same rank as the others, which are volumes")
