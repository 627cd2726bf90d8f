import json
import pickle
import shutil

import numpy as np
import pytest

from medseg.errors import DamagedFileError, InputError
from medseg.preparation.locations import sample_locations
from medseg.preparation.store import PreparedData, StoredCase, case_path
from medseg.preparation.writing import chunk_for, write_case
from tests.preparation.builders import plain_grid

SHAPES = [(35, 50, 36), (70, 1, 33), (150, 130, 1), (1, 1, 1)]


def make(tmp_path, shape=(35, 50, 36), *, dtype="float32", labels=True, seed=0, channels=2, share=0.2, slice_axis=None):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(channels, *shape)).astype(np.float32)
    image[:, : shape[0] // 2] = 0.25  # chunks of one value are stored as that value
    classes = (rng.random(shape) < share).astype(np.uint8) if labels else None
    if classes is not None and classes.size > 2:
        classes.flat[:3] = (2, 255, 1)
    path = case_path(tmp_path, "a", "key")
    write_case(
        path,
        image=image,
        labels=classes,
        grid=plain_grid(shape),
        locations={} if classes is None else sample_locations(classes, case_id="a"),
        dtype=dtype,
        slice_axis=slice_axis,
    )
    return StoredCase("a", path), image, classes


@pytest.mark.parametrize(("shape", "slice_axis"), [*((s, None) for s in SHAPES), ((35, 50, 36), 1), ((150, 9, 140), 1)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_patch_anywhere_is_the_array_padded_with_zeros(tmp_path, shape, slice_axis, dtype):
    case, image, labels = make(tmp_path, shape, dtype=dtype, slice_axis=slice_axis)
    expected = image.astype(dtype).astype(np.float32)
    whole = case.read_all()
    assert np.array_equal(whole.image, expected)
    assert np.array_equal(whole.labels, labels)
    pad = 40
    padded = np.pad(expected, ((0, 0), (pad, pad), (pad, pad), (pad, pad)))
    padded_labels = np.pad(labels, pad)
    rng = np.random.default_rng(1)
    for _ in range(60):
        start = tuple(int(rng.integers(-20, n + 10)) for n in shape)
        size = tuple(int(v) for v in rng.integers(1, 20, 3))
        box = tuple(slice(s + pad, s + pad + n) for s, n in zip(start, size, strict=True))
        patch = case.read_patch(start, size)
        assert np.array_equal(patch.image, padded[(slice(None), *box)])
        assert np.array_equal(patch.labels, padded_labels[box])
        assert patch.image.flags.c_contiguous
        assert patch.image.dtype == np.float32
        assert patch.labels.dtype == np.uint8


def test_a_case_says_what_it_is_and_survives_pickling(tmp_path):
    made, _, labels = make(tmp_path)
    case = pickle.loads(pickle.dumps(made))
    assert (case.shape_xyz, case.channels, case.has_labels) == ((35, 50, 36), 2, True)
    assert case.classes_present == (1, 2)
    assert case.class_voxels == {int(v): int((labels == v).sum()) for v in np.unique(labels)}
    assert case.grid == plain_grid((35, 50, 36))


def test_locations_are_voxels_of_their_class(tmp_path):
    case, _, labels = make(tmp_path, share=0.1)
    assert np.array_equal(case.locations(1), np.argwhere(labels == 1))
    assert np.array_equal(case.locations(2), [[0, 0, 0]])
    assert case.locations(7).shape == (0, 3)
    # 255 marks unlabelled voxels, so background has locations too
    assert {int(labels[tuple(v)]) for v in case.locations(0)} == {0}


def test_without_a_label_map_labels_are_zero(tmp_path):
    case, _, _ = make(tmp_path, labels=False)
    assert not case.has_labels
    assert case.classes_present == ()
    assert not case.read_patch((-3, 0, 0), (9, 9, 9)).labels.any()
    assert case.locations(1).shape == (0, 3)


def test_float16_keeps_values_finite(tmp_path):
    image = np.array([1e7, -1e7, 1.0, 0.5], np.float32).reshape(1, 4, 1, 1)
    write_case(tmp_path / "a.bin", image=image, labels=None, grid=plain_grid((4, 1, 1)), locations={}, dtype="float16")
    stored = StoredCase("a", tmp_path / "a.bin").read_all().image
    assert stored.ravel().tolist() == [65504.0, -65504.0, 1.0, 0.5]


def test_every_flipped_bit_in_what_is_read_is_noticed(tmp_path):
    case, _, _ = make(tmp_path, (20, 20, 20), dtype="float16")
    file = case.path
    sound = file.read_bytes()
    rng = np.random.default_rng(5)
    for place in rng.integers(0, len(sound), 200):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        fresh = StoredCase("a", case.path)
        with pytest.raises(DamagedFileError, match=r"^a: prepared data is damaged, .* prepare again with --repair$"):
            fresh.read_all(), [fresh.locations(c) for c in (0, 1, 2)]
        with pytest.raises(DamagedFileError, match="does not have its checksum"):
            StoredCase("a", case.path).verify()
    file.write_bytes(sound)
    StoredCase("a", case.path).verify()


def test_a_flipped_bit_elsewhere_does_not_disturb_a_patch(tmp_path):
    case, image, _ = make(tmp_path, (128, 128, 128), channels=1)
    file = case.path
    data = bytearray(file.read_bytes())
    last_chunk = int(case._table[len(case._table) // 2 - 3]["offset"])  # of the image, far from the first voxel
    data[last_chunk] ^= 1
    file.write_bytes(data)
    assert np.array_equal(
        StoredCase("a", case.path).read_patch((60, 0, 0), (20, 20, 20)).image, image[:, 60:80, :20, :20]
    )


@pytest.mark.parametrize(
    ("axis", "chunk"), [(0, (1, 75, 70)), (1, (70, 1, 70)), (2, (70, 75, 1)), (None, (28, 30, 28))]
)
def test_chunks_of_a_stack_of_slices_lie_in_one_slice(axis, chunk):
    shape = (140, 150, 140)
    assert chunk_for(shape, axis) == chunk
    flat = tuple(1 if a == axis else n for a, n in enumerate(shape))
    assert chunk_for(flat, axis) == chunk


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_read_without_its_neighbours(tmp_path, axis):
    case, image, _ = make(tmp_path, (24, 20, 22), channels=1, labels=False, slice_axis=axis)
    data = bytearray(case.path.read_bytes())
    wanted = 5
    for number, row in enumerate(case._table):
        if case._image_layout.box(number)[axis].start != wanted:
            data[int(row["offset"])] ^= 1
    case.path.write_bytes(data)
    start = tuple(wanted if a == axis else -2 for a in range(3))
    size = tuple(1 if a == axis else 30 for a in range(3))
    patch = StoredCase("a", case.path).read_patch(start, size)
    read = np.take(patch.image[0], 0, axis)[2:][:, 2:]
    expected = np.take(image[0], wanted, axis)
    assert np.array_equal(read[: expected.shape[0], : expected.shape[1]], expected)
    with pytest.raises(DamagedFileError, match="does not have its checksum"):
        StoredCase("a", case.path).read_all()


@pytest.mark.parametrize("change", ["cut", "tail", "gone", "empty", "longer"])
def test_a_damaged_file_is_named(tmp_path, change):
    case, _, _ = make(tmp_path)
    data = case.path.read_bytes()
    if change == "gone":
        case.path.unlink()
    else:
        case.path.write_bytes(
            {"cut": data[: len(data) // 2], "tail": data[:-1], "empty": b"", "longer": data + b"x"}[change]
        )
    with pytest.raises(
        DamagedFileError, match=r"^a: prepared data is damaged, its file .*; run prepare again"
    ) as caught:
        case.read_all()
    assert str(tmp_path) not in str(caught.value)


def test_equal_cases_give_equal_bytes_and_no_trace_of_place_or_time(tmp_path):
    first, _, _ = make(tmp_path / "one")
    second, _, _ = make(tmp_path / "other")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert str(tmp_path).encode() not in first.path.read_bytes()
    assert sorted(p.name for p in (tmp_path / "one" / "cases").iterdir()) == ["a.key.bin"]


def test_writing_again_replaces_the_case(tmp_path):
    make(tmp_path, seed=1)
    case, image, _ = make(tmp_path, seed=2)
    assert np.array_equal(case.read_all().image, image)


def test_a_folder_without_prepared_data_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no prepared data; run medseg prepare first"):
        PreparedData.open(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 99, "cases": {}}))
    with pytest.raises(InputError, match="has store format 99, expected 1"):
        PreparedData.open(tmp_path)


def test_a_case_can_be_moved(tmp_path):
    case, image, _ = make(tmp_path)
    shutil.move(case.path, tmp_path / "elsewhere")
    assert np.array_equal(StoredCase("a", tmp_path / "elsewhere").read_all().image, image)


def test_the_first_stages_mask_lies_beside_the_labels(tmp_path):
    shape = (70, 50, 36)
    rng = np.random.default_rng(0)
    labels, previous = (rng.random((2, *shape)) < 0.3).astype(np.uint8)
    image, path = rng.normal(size=(1, *shape)).astype(np.float32), tmp_path / "a.bin"
    given = {
        "image": image,
        "grid": plain_grid(shape),
        "dtype": "float32",
        "locations": {1: np.flatnonzero(labels)[:9]},
    }
    write_case(path, labels=labels, previous=previous, **given)
    case, box = StoredCase("a", path), (slice(10, 50), slice(20, 50), slice(0, 5))
    assert case.has_previous
    assert np.array_equal(case.read_previous((10, 20, 0), (40, 30, 5)), previous[box])
    assert not case.read_previous((-5, 0, 0), (5, 3, 3)).any()
    assert np.array_equal(case.read_all().labels, labels)
    assert np.array_equal(np.ravel_multi_index(case.locations(1).T, shape), given["locations"][1])
    case.verify()
    write_case(path, labels=labels, **given)
    with pytest.raises(DamagedFileError, match="it holds no mask of the first stage"):
        StoredCase("a", path).read_previous((0, 0, 0), (1, 1, 1))
