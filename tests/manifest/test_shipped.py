"""The manifests we ship: sound, with licences, and true to the data where it is here."""

import json
from collections import Counter

import numpy as np
import pytest

from medseg.manifest import Channel, kfold_splits_nnunet, load_manifest, patient_leaks, resolve

SETS = {
    "hippocampus.json": ("hippocampus", 208, {"background": (0,), "anterior": (1,), "posterior": (2,)}, "MR"),
    "hippocampus.csv": ("hippocampus", 208, {"background": (0,), "anterior": (1,), "posterior": (2,)}, "MR"),
    "nuclei.json": ("nuclei", 200, {"background": (0,), "nucleus": (255,)}, "RGB"),
    "sarcoma_pet.json": ("sarcoma", 41, {"background": (0,), "tumour": (1,)}, "PET"),
    "sarcoma_mr.json": ("sarcoma", 24, {"background": (0,), "tumour": (1,)}, "MR"),
}


@pytest.fixture
def folder(repository):
    return repository / "data_manifests"


def test_the_table_above_is_complete(folder):
    assert {path.name for path in folder.iterdir()} == {*SETS, "README.md"}


@pytest.mark.parametrize("file", SETS)
def test_they_are_sound(folder, file):
    _, count, labels, channel = SETS[file]
    manifest = load_manifest(folder / file)
    assert len(manifest.training) == count
    assert dict(manifest.labels) == labels
    assert [c.name for c in manifest.channels] == [channel]
    assert "CC" in manifest.licence
    assert patient_leaks(manifest) == {}
    sizes = Counter(case.fold for case in manifest.training)
    assert sorted(sizes) == [0, 1, 2, 3, 4]
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_hippocampus_folds_are_nnunets(folder):
    manifest = load_manifest(folder / "hippocampus.json")
    for fold, split in enumerate(kfold_splits_nnunet(case.id for case in manifest.training)):
        trained, held_out = manifest.fold_cases(fold)
        assert [case.id for case in trained] == split["train"]
        assert [case.id for case in held_out] == split["val"]


def test_the_csv_twin_says_the_same(folder):
    one, two = load_manifest(folder / "hippocampus.json"), load_manifest(folder / "hippocampus.csv")
    assert (one.training, one.labels, one.licence, one.channels) == (
        two.training,
        two.labels,
        two.licence,
        two.channels,
    )


def test_pet_asks_for_suv(folder):
    assert load_manifest(folder / "sarcoma_pet.json").channels == (Channel(name="PET", unit="SUV"),)


@pytest.mark.real
def test_hippocampus_folds_are_those_of_the_file(folder, shared_data):
    wanted = json.loads((shared_data / "hippocampus" / "splits_final.json").read_text())
    manifest = load_manifest(folder / "hippocampus.json")
    for fold, split in enumerate(wanted):
        assert [case.id for case in manifest.fold_cases(fold)[1]] == split["val"]


@pytest.mark.real
@pytest.mark.parametrize("file", SETS)
def test_every_file_is_there(folder, shared_data, file):
    manifest = load_manifest(folder / file)
    for case in manifest.training:
        assert resolve(manifest, case, shared_data / SETS[file][0]).labels


@pytest.mark.real
@pytest.mark.parametrize("file", ["hippocampus.json", "nuclei.json", "sarcoma_pet.json", "sarcoma_mr.json"])
def test_label_values_are_as_stated(folder, shared_data, file):
    from medseg.imaging import read_label_map

    manifest = load_manifest(folder / file)
    allowed = {value for values in manifest.labels.values() for value in values}
    seen: set[int] = set()
    for case in manifest.training[:: len(manifest.training) // 8]:
        path = resolve(manifest, case, shared_data / SETS[file][0]).labels[0]
        seen |= set(np.unique(read_label_map(path).array).astype(int).tolist())
    assert seen == allowed


def test_monai_reads_them(folder, tmp_path):
    from monai.data import load_decathlon_datalist

    items = load_decathlon_datalist(folder / "nuclei.json", True, "training", base_dir=tmp_path)
    assert len(items) == 200
    assert items[0]["image"] == str(tmp_path / "images" / "00071198d059.png")
    assert items[0]["label"] == str(tmp_path / "labels" / "00071198d059.png")
