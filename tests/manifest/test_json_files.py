"""JSON manifests: what is read, what is refused, and that all faults come at once."""

import json
import subprocess
import sys

import pytest

from medseg.config.series import SeriesSection
from medseg.errors import ConfigError, ManifestError
from medseg.manifest import Case, Channel, Manifest, load_manifest, save_manifest

GOOD = {
    "format": 1,
    "name": "Liver",
    "licence": "CC0",
    "channels": ["CT"],
    "labels": {"liver": 1, "tumour": [2, 3]},
    "training": [
        {"id": "001", "image": "a.nii.gz", "label": "b.nii.gz", "fold": 0},
        {"id": "1", "patient": "p", "image": "c.nii.gz", "label": ["d.nii.gz", "e.nii.gz"], "site": "A", "age": 63},
    ],
    "testing": [{"id": "t", "image": "./f.nii.gz"}],
}


def written(folder, **changes):
    path = folder / "m.json"
    path.write_text(json.dumps(GOOD | changes))
    return path


def faults_of(path):
    with pytest.raises(ManifestError, match=r"^m\.") as caught:
        load_manifest(path)
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


def test_fields_are_read(tmp_path):
    path = written(tmp_path, ignore=255)
    manifest = load_manifest(path)
    assert manifest.labels == {"background": (0,), "liver": (1,), "tumour": (2, 3)}
    assert manifest.class_names == ("background", "liver", "tumour")
    assert (manifest.channels, manifest.ignore, manifest.path) == ((Channel(name="CT"),), 255, path)
    assert len(manifest.sha256) == 64
    first, second = manifest.training
    assert first == Case(id="001", patient="001", images=("a.nii.gz",), labels=("b.nii.gz",), fold=0)
    assert second.labels == ("d.nii.gz", "e.nii.gz")
    assert second.patient == "p"
    assert second.extra == {"site": "A", "age": "63"}
    assert manifest.testing[0].labels == ()


def test_background_may_be_given_with_its_values_and_0_255_masks_stay(tmp_path):
    manifest = load_manifest(written(tmp_path, labels={"nucleus": 255, "background": [0, 7]}))
    assert list(manifest.labels.items()) == [("background", (0, 7)), ("nucleus", (255,))]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_round_trip_keeps_everything(tmp_path, suffix):
    channels = (Channel(name="T1"), Channel(name="PET", unit="SUV"))
    cases = (
        Case(id="a", patient="p", images=("a0.nii", "a1.nii"), labels=("x, y.nii",), fold=3, extra={"site": 'B "2"'}),
        Case(id="010", patient="010", images=("b0.nii", "b1.nii"), labels=("l1", "l2")),
    )
    one = Manifest(
        name="Ünï",
        licence="CC, BY",
        channels=channels,
        labels={"background": (0,), "x": (1, 2)},
        training=cases,
        testing=(Case(id="t", patient="t", images=("c0", "c1")),),
        ignore=-1,
    )
    save_manifest(one, tmp_path / f"m.{suffix}")
    two = load_manifest(tmp_path / f"m.{suffix}")
    assert (two.name, two.licence, two.channels, two.ignore) == (one.name, one.licence, one.channels, one.ignore)
    assert list(two.labels.items()) == list(one.labels.items())
    assert (two.training, two.testing) == (one.training, one.testing)


def test_ten_broken_cases_give_ten_faults(tmp_path):
    broken = [
        {"image": "a.nii", "label": "b.nii"},
        {"id": 7, "image": "a.nii"},
        {"id": "-x", "image": "a.nii"},
        {"id": "c", "lable": "b.nii", "image": "a.nii"},
        {"id": "d", "image": "/etc/passwd"},
        {"id": "e", "image": "s3://bucket/a.nii"},
        {"id": "f", "image": ["a.nii", "b.nii"]},
        {"id": "g", "image": "a.nii", "fold": "0"},
        {"id": "h", "image": "a\u0000.nii"},
        {"id": "001", "image": "z.nii"},
    ]
    faults = faults_of(written(tmp_path, training=GOOD["training"] + broken))
    assert len(faults) == 10
    wanted = [
        "id is missing",
        '"7"',
        "'-x'",
        "did you mean 'label'",
        "is absolute",
        "URL",
        "has 2 paths",
        "fold is '0'",
    ]
    assert all(text in fault for text, fault in zip(wanted, faults, strict=False))
    assert "id is also that of training[0]" in faults[-1]
    assert "/etc" not in "".join(faults[:4])


def test_top_level_faults_all_come_at_once(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(
        json.dumps(
            {
                "nmae": "x",
                "license": "y",
                "chanels": ["CT"],
                "labels": {"a": 1, "b": 1, "c": 2.5, "d": 0},
                "ignore": 1,
                "training": 3,
            }
        )
    )
    text = "\n".join(faults_of(path))
    for wanted in (
        "format is missing",
        "did you mean 'name'",
        "did you mean 'licence'",
        "did you mean 'channels'",
        "b: has the value 1, which a has too",
        "labels.c: is 2.5",
        "labels.d: has the value 0, which is background's",
        "ignore is 1, which the label a has",
        "training is 3, expected a list",
        "training is empty",
    ):
        assert wanted in text


@pytest.mark.parametrize(
    ("key", "meant"),
    [("lable", "label"), ("images", "image"), ("Fold", "fold"), ("subject", "patient"), ("mask", "label")],
)
def test_a_case_key_that_looks_like_ours_is_refused(tmp_path, key, meant):
    case = {"id": "a", "image": "a.nii", key: "x"}
    assert f"did you mean {meant!r}?" in faults_of(written(tmp_path, training=[case]))[0]


def test_other_tools_words_are_further_columns_beside_our_own(tmp_path):
    case = {"id": "a", "image": "a.nii", "patient": "p", "subject": "s7", "side": "left", "age": 4, "sex": None}
    assert load_manifest(written(tmp_path, training=[case])).training[0].extra == {
        "subject": "s7",
        "side": "left",
        "age": "4",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid JSON"),
        ('{"format": 1, "format": 1}', "given twice"),
        ('{"format": NaN}', "NaN"),
        ("[" * 200_000, "nested too deep|no valid JSON"),
        ("[]", "holds a list"),
        ('{"format": ' + "1" * 5001 + "}", "no valid JSON"),
    ],
)
def test_bad_json_is_refused(tmp_path, text, message):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ManifestError, match=message):
        load_manifest(tmp_path / "m.json")


def test_newer_format_msd_labels_and_wrong_suffix_are_refused_by_name(tmp_path):
    assert "this file is for a newer medseg" in faults_of(written(tmp_path, format=2))[0]
    assert "turn each pair round" in faults_of(written(tmp_path, labels={"0": "background", "1": "liver"}))[0]
    with pytest.raises(ManifestError, match=r"expected \.json or \.csv"):
        load_manifest(tmp_path / "m.yaml")
    with pytest.raises(ManifestError, match="no such file"):
        load_manifest(tmp_path / "none.json")


def test_very_many_faults_are_cut_and_counted(tmp_path):
    faults = faults_of(written(tmp_path, training=[{"id": f"c{i}"} for i in range(700)]))
    assert len(faults) == 501
    assert "200 further faults" in faults[-1]


def test_loading_imports_nothing_heavy(tmp_path):
    path = written(tmp_path)
    code = (
        "import sys; from pathlib import Path; from medseg.manifest import load_manifest; "
        f"load_manifest(Path({str(path)!r})); "
        "print([m for m in ('torch', 'monai', 'nibabel', 'numpy', 'mlflow', 'SimpleITK', 'pydicom') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_manifest_is_a_monai_datalist(tmp_path):
    from monai.data import load_decathlon_datalist

    save_manifest(load_manifest(written(tmp_path)), tmp_path / "copy.json")
    items = load_decathlon_datalist(tmp_path / "copy.json", True, "training", base_dir=tmp_path)
    assert items[0]["image"] == str(tmp_path / "a.nii.gz")
    assert items[0]["label"] == str(tmp_path / "b.nii.gz")
    assert items[1]["label"] == [str(tmp_path / "d.nii.gz"), str(tmp_path / "e.nii.gz")]
    assert load_decathlon_datalist(tmp_path / "copy.json", True, "testing")[0]["image"] == str(tmp_path / "f.nii.gz")


def partial(labelled, *, labels=None, **case):
    return {
        "format": 1, "name": "x", "licence": "y", "channels": ["CT"], "labels": labels or {"a": 1, "b": 2, "c": [3, 4]},
        "training": [{"id": "p", "image": "i.nii", "label": "l.nii", "labelled": labelled} | case],
    }  # fmt: skip


def test_a_case_may_be_labelled_for_some_classes_only(tmp_path):
    path = tmp_path / "m.json"
    for given, wanted in ((["c", "a"], ("a", "c")), ("b", ("b",)), (["a", "b", "c"], None), (None, None)):
        path.write_text(json.dumps(partial(given)))
        manifest = load_manifest(path)
        assert manifest.training[0].labelled == wanted
        save_manifest(manifest, tmp_path / "again.json")
        assert load_manifest(tmp_path / "again.json").training == manifest.training
        save_manifest(manifest, tmp_path / "again.csv")
        assert load_manifest(tmp_path / "again.csv").training == manifest.training


@pytest.mark.parametrize(
    ("given", "case", "wanted"),
    [
        (["a", "d"], {}, r"labelled has 'd', expected names of classes without background \(a, b, c\)"),
        (["background"], {}, "labelled has 'background'"),
        ([], {}, "labelled is empty or names a class twice"),
        (["a", "a"], {}, "labelled is empty or names a class twice"),
        (7, {}, "labelled has 7"),
        (["a"], {"label": None}, "labelled is given without a label"),
    ],
)
def test_wrong_labelled(tmp_path, given, case, wanted):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(partial(given, **case)))
    with pytest.raises(ManifestError, match=wanted):
        load_manifest(path)


def test_labels_may_overlap_as_regions(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(partial(["core"], labels={"whole": [1, 2], "core": 2})))
    assert load_manifest(path).labels == {"background": (0,), "whole": (1, 2), "core": (2,)}


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ({"whole": [1, 2], "core": [2, 1]}, "labels.core: has the value 2, which whole has too, and no other"),
        ({"whole": [1, 1]}, "labels.whole: has the value 1 twice"),
        ({"background": [0, 1], "whole": [1, 2]}, "labels.whole: has the value 1, .* background overlaps nothing"),
        (
            {"all": list(range(1, 18))} | {f"r{i}": i for i in range(1, 18)},
            "labels are 18 and overlap, expected at most 16",
        ),
    ],
)
def test_labels_that_overlap_by_a_slip(tmp_path, labels, wanted):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(partial(None, labels=labels)))
    with pytest.raises(ManifestError, match=wanted):
        load_manifest(path)


T1, FLAIR = SeriesSection(modality="MR", description="t1"), SeriesSection(modality="MR", description="flair")


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_channels_may_share_a_dicom_folder_where_each_has_a_rule(tmp_path, suffix):
    case = {"id": "p1", "image": ["p1", "p1", "p1_ct"]}
    path = written(tmp_path, channels=["T1", "FLAIR", "CT"], training=[case], testing=[])
    if suffix == "csv":
        save_manifest(load_manifest(path), path := path.with_suffix(".csv"))
    manifest = load_manifest(path)
    assert manifest.training[0].images == ("p1", "p1", "p1_ct")
    ruled = manifest.with_series({"T1": T1, "FLAIR": FLAIR})
    assert [channel.series for channel in ruled.channels] == [T1, FLAIR, None]
    for series in (None, T1, {"T1": T1}, {"T1": T1, "FLAIR": T1}):
        with pytest.raises(
            ManifestError, match=r"^m\.\w+: case 'p1': image 'p1' is that of the channels T1, FLAIR, exp"
        ):
            manifest.with_series(series)
    with pytest.raises(ConfigError, match=r"data\.series: names the channels T2, expected of T1, FLAIR, CT"):
        manifest.with_series({"T2": T1})


def test_a_file_is_of_one_channel(tmp_path):
    case = {"id": "p1", "image": ["p1.nii.gz", "p1.nii.gz"], "label": ["masks", "masks"]}
    first, second = faults_of(written(tmp_path, channels=["T1", "FLAIR"], training=[case]))
    assert first.endswith("image names one path twice, expected each once")
    assert second.endswith("label names one path twice, expected each once")
