"""The licence text that a model folder carries, from the file a config names to every folder made of the model."""

import json

import pytest

from medseg.errors import ModelError, UsageError
from medseg.inference.licence import joined_licences, licence_of, read_licence
from medseg.inference.model import load_model, load_models, model_json, save_ensemble
from tests.inference.stand_ins import write_model

TEXT = "Licence of the weights\n\nThey may be used for research. \u00a9 the hospital\n".encode()


def test_it_lies_beside_the_weights_with_its_checksum(tmp_path):
    folder = write_model(tmp_path / "model", licence=TEXT)
    assert (folder / "LICENSE").read_bytes() == TEXT
    assert list(model_json(folder)["files"]) == ["config.yaml", "plan.yaml", "weights.safetensors", "LICENSE"]
    assert licence_of(folder, model_json(folder)) == TEXT
    load_model(folder)
    (folder / "LICENSE").write_bytes(TEXT + b"or sold")
    with pytest.raises(ModelError, match="model: LICENSE does not have its checksum; copy the model folder again"):
        load_model(folder)
    (folder / "LICENSE").unlink()
    with pytest.raises(ModelError, match="model: LICENSE is missing or unreadable"):
        load_models(folder)


def test_without_one_a_folder_is_what_it_was(tmp_path):
    folder = write_model(tmp_path / "model", licence=TEXT)
    write_model(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "model.json",
        "plan.yaml",
        "weights.safetensors",
    ]
    assert licence_of(folder, model_json(folder)) is None
    assert "files" not in model_json(ensemble(tmp_path, None, None))


def ensemble(tmp_path, *texts):
    members = {f"fold_{k}": write_model(tmp_path / f"one_{k}", seed=k, licence=text) for k, text in enumerate(texts)}
    save_ensemble(tmp_path / "ensemble", members)
    return tmp_path / "ensemble"


def test_an_ensemble_carries_its_members_text_once_more(tmp_path):
    folder = ensemble(tmp_path, TEXT, TEXT)
    assert (folder / "LICENSE").read_bytes() == (folder / "fold_1" / "LICENSE").read_bytes() == TEXT
    assert licence_of(folder, model_json(folder)) == TEXT
    assert len(load_models(folder)) == 2
    stamp = (folder / "model.json").stat().st_mtime_ns
    ensemble(tmp_path, TEXT, TEXT)
    assert (folder / "model.json").stat().st_mtime_ns == stamp
    for path in (folder / "LICENSE", folder / "fold_0" / "LICENSE"):
        path.write_bytes(b"other")
        with pytest.raises(ModelError, match="LICENSE does not have its checksum"):
            load_models(folder)
        ensemble(tmp_path, TEXT, TEXT)  # damaged, so it is made again
        assert path.read_bytes() == TEXT
    ensemble(tmp_path, None, None)
    assert not list(folder.rglob("LICENSE"))


def test_members_texts_that_differ_stand_under_their_names():
    assert joined_licences({"a": None, "b": None}) is None
    assert joined_licences({"a": b"x\n", "b": b"x\n"}) == b"x\n"
    line = "=" * 20
    assert joined_licences({"a": b"x\n", "b": None, "c": b"x\n"}).decode() == (
        f"{line} a, c {line}\n\nx\n\n{line} b {line}\n\nNo licence text came with these: ask whoever trained them.\n"
    )


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", b"a\0b", b"x" * ((1 << 20) + 1)])
def test_what_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "L.txt"
    path.write_bytes(content)
    with pytest.raises(
        UsageError, match=r"^train\.licence: L\.txt is empty, no UTF-8 text or over 1,048,576 bytes, exp"
    ):
        read_licence(path, key="train.licence")


def test_a_name_is_no_text(tmp_path):
    with pytest.raises(
        UsageError, match=r"^train\.licence: CC-BY-4\.0 is no file, expected a text file with the whole"
    ):
        read_licence(tmp_path / "CC-BY-4.0", key="train.licence")
    (tmp_path / "L.txt").write_bytes(TEXT)
    assert read_licence(tmp_path / "L.txt", key="train.licence") == TEXT


def test_a_cascades_first_stage_keeps_its_own(tmp_path):
    first = write_model(tmp_path / "first", licence=b"of the first\n")
    second = write_model(tmp_path / "second", licence=TEXT, previous={"fold_0": first}, previous_channels=2)
    assert (second / "previous" / "fold_0" / "LICENSE").read_bytes() == b"of the first\n"
    (model,) = load_models(second)
    assert json.loads((model.previous[0].folder / "model.json").read_text())["files"]["LICENSE"]
