"""The ladder, scores that do not fit in memory, and features in place of classes: the mask stays the same."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection
from medseg.errors import EnvironmentFault, ScanError
from medseg.inference import engine as engine_module
from medseg.inference.engine import Engine
from medseg.inference.memory import Need, Way, free_main_bytes, is_out_of_memory, ladder
from medseg.inference.scores import Features, ScoreFile
from medseg.networks.unet import UNet
from tests.inference.stand_ins import threshold_model
from tests.synthetic import scan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
QUICK = InferSection(mirror=False, precision="float32", batch_size=2)
NAMES = {"background": (0,)} | {f"organ_{n}": (n,) for n in range(1, 7)}


def need(**changes):
    values = {"scan": 10, "image": 10, "scores": 1000, "rolling": 100, "one_pass": 50, "mask": 20}
    return Need(**(values | changes))


def steps(**memory):
    return [
        (way.device.type, way.gather, way.batch_size)
        for way in ladder(need(), patch_xyz=(8, 8, 8), batch_size=2, **memory)
    ]


def test_the_ladder_on_paper():
    plenty = 1 << 40
    assert steps(device=CPU, host_free=plenty) == [
        ("cpu", "host", 2),
        ("cpu", "host", 1),
        ("cpu", "file", 2),
        ("cpu", "file", 1),
    ]
    # Scores and the passes of one window take 2 x 10 + 100 + 50 in a file; the mask's slab of 256 MiB comes on top.
    slab = 256 << 20
    assert steps(device=CPU, host_free=slab + 20) == [("cpu", "file", 2), ("cpu", "file", 1)]
    assert steps(device=CPU, host_free=slab) == []
    on_device = steps(device=CUDA, host_free=plenty, device_free=2000)
    assert on_device[:4] == [("cuda", "device", 2), ("cuda", "device", 1), ("cuda", "host", 2), ("cuda", "host", 1)]
    assert on_device[-1] == ("cpu", "file", 1)
    assert steps(device=CUDA, host_free=plenty, device_free=60)[0] == ("cuda", "host", 1)
    assert steps(device=CUDA, host_free=plenty, device_free=10)[0] == ("cpu", "host", 2)


def test_bytes_on_paper():
    found = Need.of(
        scan_voxels=1000,
        prepared_xyz=(40, 10, 4),
        patch_xyz=(8, 8, 8),
        channels=2,
        carried=5,
        features=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
    )
    padded = 40 * 10 * 8
    assert found.image == 4 * 2 * padded
    assert found.scores == 4 * 5 * padded
    assert found.rolling == found.scores // 5, "8 of 40 planes along x, the longest axis"
    assert found.one_pass == 4 * (4 * 512 + 8 * 64 + 8 * 4 * 512) + 3 * 4 * 5 * 512
    assert found.host_bytes(Way(device=CPU, gather="file", batch_size=1)) < found.host_bytes(
        Way(device=CPU, gather="host", batch_size=1)
    )


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert 1 << 20 < free_main_bytes() < 1 << 50


# --- the same scores, whichever way ---------------------------------------------------------------------------------


def unet_model(seed, *, classes=7, features=(4, 8), patch=(16, 16, 8)):
    torch.manual_seed(seed)
    strides = ((1, 1, 1), (2, 2, 2))
    network = UNet(
        dimensions=3, channels=1, classes=classes, features=features, strides=strides, kernel_sizes=((3, 3, 3),) * 2
    )
    labels = dict(list(NAMES.items())[:classes])
    model = threshold_model((1.3, 1.1, 1.6), patch=patch, scheme="zscore", labels=labels, features=features)
    return replace(model, network=network.eval())


def made_by(models, section=QUICK, **places):
    engine = Engine(models, section, device=CPU, **places)
    volume = scan("oblique_flipped").volume
    array, grid = engine.prepare(volume)
    scores = engine.scores(array)
    return engine, scores, grid, engine.classes(scores, grid)


@pytest.fixture(scope="module")
def plain():
    """Two networks of 7 classes and 8 features: no way round holding 7 classes."""
    models = [unet_model(seed, features=(8, 8)) for seed in (0, 1)]
    return models, *made_by(models)[1:]


def test_scores_in_a_file_are_the_scores_in_memory(plain, tmp_path):
    models, scores, grid, expected = plain
    assert isinstance(scores, np.ndarray)
    ways = [Way(device=CPU, gather="file", batch_size=1)]
    engine = Engine(models, QUICK, device=CPU, scratch=tmp_path)
    engine._ways = lambda _need: ways
    array, _ = engine.prepare(scan("oblique_flipped").volume)
    filed = engine.scores(array)
    assert isinstance(filed, ScoreFile)
    assert filed.shape == scores.shape
    np.testing.assert_allclose(np.stack([channel[0 : filed.shape[1]] for channel in filed]), scores, atol=1e-5)
    assert (engine.classes(filed, grid) != expected).mean() < 1e-4
    assert engine.effort()["way"] == "file"
    assert not list(tmp_path.iterdir()), "the file has no name"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_file_gives_rows_along_x_whichever_axis_it_was_written_along(axis):
    values = np.random.default_rng(0).normal(size=(3, 5, 6, 7)).astype(np.float32)
    file = ScoreFile(values.shape, axis=axis)
    for times in (1, 2):
        for start in range(0, values.shape[1 + axis], 2):
            file.take(torch.from_numpy(values).narrow(1 + axis, start, min(2, values.shape[1 + axis] - start)), start)
        file.models = times
    file.finish()
    for channel, expected in zip(file, values, strict=True):
        np.testing.assert_array_equal(channel[1:4], expected[1:4])


def test_a_file_without_room_is_refused(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"temporary scores: need .* GB, expected that much room"):
        ScoreFile((1, 1 << 20, 1 << 20, 1 << 10), axis=0, folder=tmp_path)


@pytest.mark.parametrize("gather", ["host", "file"])
def test_features_in_place_of_classes_give_the_same_mask(gather):
    models = [unet_model(seed, features=(3, 4)) for seed in (0, 1)]
    engine = Engine(models, QUICK, device=CPU)
    array, grid = engine.prepare(scan("oblique_flipped").volume)
    engine._ways = lambda _need: [Way(device=CPU, gather=gather, batch_size=2)]
    features = engine.scores(array)
    assert isinstance(features, Features)
    assert features.array.shape[0] == 6
    vars(engine)["_features"] = 0
    engine._ways = lambda _need: [Way(device=CPU, gather="host", batch_size=2)]
    scores = engine.scores(array)
    for (where, one), (again, other) in zip(engine.slabs(features, grid), engine.slabs(scores, grid), strict=True):
        assert where == again
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one.sum(axis=0), 1, atol=1e-5)
    mask, expected = engine.classes(features, grid), engine.classes(scores, grid)
    assert (mask != expected).mean() < 1e-4, "but for rounding where two classes are equal"
    assert len(np.unique(mask)) > 2


def test_a_step_that_runs_out_of_memory_is_followed_by_the_next(plain, monkeypatch, caplog):
    models, _, grid, expected = plain
    engine, real, ways = Engine(models, QUICK, device=CPU), engine_module.predict_scores, []

    def tight(*args, **kwargs):
        ways.append((kwargs["batch_size"], kwargs["sink"] is not None))
        if kwargs["sink"] is None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(engine_module, "predict_scores", tight)
    array, _ = engine.prepare(scan("oblique_flipped").volume)
    assert (engine.classes(engine.scores(array), grid) != expected).mean() < 1e-4
    assert ways == [(2, False), (1, False), (2, True), (2, True)]
    assert "memory ran out; next: network on cpu, 1 window(s) a pass, scores in host memory" in caplog.text
    ways.clear()
    engine.scores(array)
    assert ways == [(2, True), (2, True)], "what failed is not tried again with as large a scan"

    def broken(*_, **__):
        raise RuntimeError("some other fault")

    monkeypatch.setattr(engine_module, "predict_scores", broken)
    with pytest.raises(RuntimeError, match="some other fault"):
        engine.scores(array)


def test_a_scan_that_fits_nowhere_is_refused_and_foretold(plain):
    engine = Engine(plain[0], QUICK, device=CPU, memory_bytes=1 << 20)
    made = scan("oblique_flipped")
    foretold = engine.peak_bytes(made.shape, made.affine)
    assert "expected at most 0.0 GB; free some, or crop the scan" in foretold.refused
    array, _ = engine.prepare(made.volume)
    with pytest.raises(ScanError, match="voxels at the model's resolution and takes"):
        engine.scores(array)


def test_windows_are_foretold(plain):
    models = plain[0]
    engine = Engine(models, InferSection(precision="float32"), device=CPU)
    foretold = engine.peak_bytes((40, 40, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
    # 40 mm are 31, 36 and 25 voxels of 1.3, 1.1 and 1.6 mm: 3, 4 and 6 windows of 16, 16 and 8; 8 copies, 2 models.
    assert foretold.windows == 3 * 4 * 6 * 8 * 2
    assert foretold.refused is None
    assert foretold.host_bytes > 4 * 7 * math.prod((31, 36, 25))


def test_labels_first_is_a_mode_of_its_own(plain):
    models, _, _, expected = plain
    mask = made_by(models, QUICK.model_copy(update={"resampling": "labels"}))[3]
    assert mask.shape == expected.shape
    assert 0 < (mask != expected).mean() < 0.5
