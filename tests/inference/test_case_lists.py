"""Lists of scans: text, tables and JSON, with what is wrong in a line told of that line."""

import json

import pytest

from medseg.errors import UsageError
from medseg.inference.case_lists import is_list, listed_cases
from medseg.inference.cases import find_cases
from medseg.preparation.plan import ChannelPlan
from tests.inference.test_cases import ONE, TWO, touch


@pytest.fixture
def folder(tmp_path):
    return touch(tmp_path, "x/a.nii", "x/b_t1.nii", "x/b_t2.nii")


def write(folder, name, text, encoding="utf-8"):
    (folder / name).write_text(text, encoding=encoding)
    return folder / name


def found(path, channels=TWO):
    return [(case.id, [image.name for image in case.images], case.fault) for case in listed_cases(path, channels)]


@pytest.mark.parametrize(
    "text",
    [
        "id,image\nP 1,x/a.nii\n,x/b_t1.nii\n",
        "\ufeffID;Site;Image\r\nP 1;A;x/a.nii\r\n;B;x/b_t1.nii\r\n;;\r\n",
        "image\tid\nx/a.nii\tP 1\nx/b_t1.nii\n",
        '"id","image"\n"P 1","x/a.nii"\n"","x/b_t1.nii"\n',
    ],
)
def test_a_table_of_scans(folder, text):
    path = write(folder, "l.csv", text)
    assert is_list(path)
    assert found(path) == [("P_1", ["a.nii"], None), ("b_t1", ["b_t1.nii"], None)]


@pytest.mark.parametrize("columns", ["image_T1,image_T2", "image_1,image_2", "image,image_2"])
def test_a_column_a_channel(folder, columns):
    path = write(folder, "l.csv", f"id,{columns}\nb,x/b_t1.nii,x/b_t2.nii\n")
    assert found(path) == [("b", ["b_t1.nii", "b_t2.nii"], None)]


def test_columns_called_after_the_models_channels_are_put_in_their_order(folder):
    path = write(folder, "l.csv", "id,image_t2,image_t1\nb,x/b_t2.nii,x/b_t1.nii\n")
    assert found(path) == [("b", ["b_t1.nii", "b_t2.nii"], None)]
    assert found(path, [ChannelPlan(name="CT", scheme="ct")]) == [("b", ["b_t2.nii", "b_t1.nii"], None)]


def test_a_json_list(folder):
    items = [
        "x/a.nii",
        ["x/b_t1.nii", "x/b_t2.nii"],
        {"id": 7, "image": "x/a.nii"},
        {"id": "c", "images": ["x/gone.nii"]},
    ]
    path = write(folder, "l.json", json.dumps(items))
    assert is_list(path)
    assert found(path) == [
        ("a", ["a.nii"], None),
        ("b_t1", ["b_t1.nii", "b_t2.nii"], None),
        ("7", ["a.nii"], None),
        ("c", ["gone.nii"], "l.json: entry 4: gone.nii: no such file; check the list"),
    ]


def test_what_a_line_names_wrongly_is_its_cases_fault(folder):
    path = write(folder, "l.csv", "id,image\na,x/a.nii\nb,x/gone.nii\n")
    first, second = find_cases([path], channels=ONE)
    assert (first.fault, second.fault) == (None, "l.csv:3: gone.nii: no such file; check the list")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("l.csv", "x/a.nii\n", "line 1 names no column image, expected id,image"),
        ("l.csv", "id,image\na,\n", "l.csv:2: image is empty, expected a path"),
        ("l.csv", "id,image\na," + "x" * 200_000, "is no table"),
        ("l.json", "[3]", r"l.json: entry 1: is no scan, expected a path, a list of paths, or \{\"id\""),
        ("l.json", '[{"id": "a"}]', "l.json: entry 1: is no scan"),
        ("l.json", "[[]]", "l.json: entry 1: is no scan"),
        ("l.json", "[1", "is no valid JSON, expected a list of scans"),
        ("l.json", "[" * 100_000, "is no valid JSON, expected a list of scans"),
    ],
)
def test_what_is_no_list_is_refused(folder, name, text, words):
    path = write(folder, name, text)
    assert is_list(path)
    with pytest.raises(UsageError, match=words):
        found(path)


@pytest.mark.parametrize("text", ['{"format": 1}', " \n{}", "#format,1\n", '\ufeff"#format",1\n', ""])
def test_manifests_are_no_lists(folder, text):
    assert not is_list(write(folder, "m.json" if "{" in text else "m.csv", text))


def test_text_files_are_lists_and_what_is_not_there_is_none(folder):
    assert is_list(write(folder, "l.txt", "x/a.nii"))
    assert not is_list(folder / "gone.csv")
