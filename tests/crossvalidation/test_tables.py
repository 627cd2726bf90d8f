"""Tables of components say what post-processing then does, voxel for voxel."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medseg.crossvalidation.tables import ClassTable, TableTask, Treatment, class_tables, read_tables, treated_dice
from medseg.durable import read_json, write_json
from medseg.errors import InputError
from medseg.evaluation.postprocessing import Step, apply_steps
from medseg.evaluation.protocol import make_protocol
from tests.synthetic import LABELS, Scan, write_scan

NAMES = ("background", "organ", "lesion")
MEMBERS = {"organ": (1,), "lesion": (2,)}
VOXEL_MM3 = 2.0


def blobs(seed, shape=(14, 13, 12)):
    """Two classes of many blobs with holes; islands within holes are left out, which tables pass over."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.1)
    return ((noise > 0.1).astype(np.uint8) + (noise > 0.3)).astype(np.uint8)


def dice(predicted, wanted, index):
    counted = wanted != 255
    a, b = (predicted == index) & counted, (wanted == index) & counted
    total = a.sum() + b.sum()
    return 2 * (a & b).sum() / total if total else 1.0


def steps_of(name, treatment):
    steps = [Step(kind="largest_component", class_name=None)] if treatment.main_only else []
    if treatment.keep == "largest":
        steps.append(Step(kind="largest_component", class_name=name))
    if treatment.keep == "minimum":
        steps.append(Step(kind="minimum_size", class_name=name, minimum_mm3=treatment.minimum_mm3))
    return [*steps, Step(kind="fill_holes", class_name=name)] if treatment.fill else steps


@pytest.mark.parametrize("seed", range(4))
def test_a_tables_dice_is_that_of_the_treated_mask(seed):
    predicted, wanted = blobs(seed), blobs(seed + 100)
    wanted[:2] = 255
    tables = class_tables(predicted, wanted, members=MEMBERS, voxel_mm3=VOXEL_MM3)
    kinds = [("all", 0.0), ("largest", 0.0), ("minimum", 9.0), ("minimum", 1e9)]
    for main_only, (keep, minimum), name in itertools.product((False, True), kinds, MEMBERS):
        treatment = Treatment(main_only=main_only, keep=keep, minimum_mm3=minimum)
        steps = steps_of(name, treatment)
        treated = apply_steps(predicted, steps, class_names=NAMES, spacing_xyz_mm=(1.0, 1.0, VOXEL_MM3))
        assert treated_dice(tables[name], treatment) == pytest.approx(dice(treated, wanted, NAMES.index(name)))


def test_filling_counts_what_the_hole_holds():
    predicted = np.zeros((7, 7, 7), np.uint8)
    predicted[1:6, 1:6, 1:6] = 1
    predicted[2:5, 2:5, 2:5] = 0
    predicted[3, 3, 3] = 2  # no background, so it is not filled
    wanted = np.zeros_like(predicted)
    wanted[1:6, 1:6, 1:6] = 1
    wanted[2, 2, 2] = 255
    table = class_tables(predicted, wanted, members=MEMBERS, voxel_mm3=1.0)["organ"]
    (part,) = table.components
    assert (part.size, part.counted, part.right) == (98, 98, 98)
    assert (part.hole_counted, part.hole_right) == (25, 25)
    assert table.reference == 124
    filled = apply_steps(
        predicted, [Step(kind="fill_holes", class_name="organ")], class_names=NAMES, spacing_xyz_mm=(1,) * 3
    )
    assert treated_dice(table, Treatment(fill=True)) == dice(filled, wanted, 1) == 2 * 123 / (123 + 124)


def test_regions_are_counted_whole():
    predicted, wanted = np.zeros((5, 5, 1), np.uint8), np.zeros((5, 5, 1), np.uint8)
    predicted[1:4, 1:4], predicted[2, 2] = 1, 2
    wanted[1:4, 1:3] = 2
    tables = class_tables(predicted, wanted, members={"whole": (1, 2), "core": (2,)}, voxel_mm3=1.0)
    assert [part.size for part in tables["whole"].components] == [9]
    assert treated_dice(tables["whole"], Treatment()) == 2 * 6 / (9 + 6)
    assert treated_dice(tables["core"], Treatment()) == 2 * 1 / (1 + 6)


def test_an_absent_structure_left_absent_counts_one_and_a_false_alarm_nothing():
    nothing = np.zeros((4, 4, 4), np.uint8)
    alarm = nothing.copy()
    alarm[0, 0, 0] = 1
    empty, spurious = (class_tables(one, nothing, members=MEMBERS, voxel_mm3=1.0)["organ"] for one in (nothing, alarm))
    assert empty == ClassTable(reference=0, voxel_mm3=1.0, components=())
    assert [treated_dice(one, Treatment()) for one in (empty, spurious)] == [1.0, 0.0]
    assert treated_dice(spurious, Treatment(keep="minimum", minimum_mm3=2)) == 1.0


@pytest.fixture
def tasks(tmp_path):
    made = []
    for number in range(2):
        paths = []
        for side in range(2):
            labels = blobs(number + 10 * side)
            scan = Scan("s", labels.astype(np.float32), labels, np.eye(4))
            _, path = write_scan(scan, tmp_path / str(side), case_id=f"case_{number}")
            paths.append(path)
        protocol = make_protocol(labels=LABELS)
        made.append(TableTask(case_id=f"case_{number}", prediction=paths[0], reference=paths[1], protocol=protocol))
    return made


def test_tables_are_kept_until_a_mask_changes(tasks, tmp_path, no_fsync):
    folder = tmp_path / "tables"
    first = read_tables(tasks, folder, processes=1)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert read_tables(tasks, folder, processes=1) == first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    tasks[0].prediction.write_bytes(tasks[1].prediction.read_bytes())
    (folder / "case_1.json").write_text("{}")
    again = read_tables(tasks, folder, processes=1)
    assert again["case_0"] != first["case_0"]
    assert again["case_1"] == first["case_1"]


def test_a_tables_file_of_another_key_is_read_by_nobody(tasks, tmp_path, no_fsync):
    folder = tmp_path / "tables"
    first = read_tables(tasks, folder, processes=1)
    path = folder / "case_0.json"
    write_json(path, {**read_json(path), "key": "other", "classes": {}})
    assert read_tables(tasks, folder, processes=1) == first


def test_a_mask_that_cannot_be_read_is_named(tasks, tmp_path, no_fsync):
    tasks[1].reference.write_bytes(b"nothing")
    with pytest.raises(InputError, match="case_1"):
        read_tables(tasks, tmp_path / "tables", processes=1)
