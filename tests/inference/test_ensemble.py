"""Ensembles: their folder, weights that go through one network, several configurations, and post-processing on top."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import medseg
from medseg.config.sections import InferSection
from medseg.durable import read_json
from medseg.errors import ModelError, UsageError
from medseg.evaluation.postprocessing import Step, apply_steps
from medseg.imaging import AxisChange, undo_axes
from medseg.inference.cases import InferCase
from medseg.inference.engine import Engine
from medseg.inference.ensemble import MixedEngine, build_engine
from medseg.inference.experiment import refuse_trained_on
from medseg.inference.model import load_model, load_models, save_ensemble
from medseg.inference.stage import run_infer
from tests.inference.stand_ins import threshold_model, write_model
from tests.synthetic import dice, scan, write_scan

CPU = torch.device("cpu")
QUICK = InferSection(mirror=False, precision="float32")
CLEAN = (
    Step(kind="largest_component", class_name="organ"),
    Step(kind="minimum_size", class_name="lesion", minimum_mm3=40),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("members")
    return {f"fold_{seed}": write_model(top / str(seed), seed=seed) for seed in range(3)}


@pytest.fixture(scope="module")
def ensemble(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble") / "model"
    save_ensemble(folder, folders, postprocessing=CLEAN, evidence={"decision": {"by": "hand"}})
    return folder


@pytest.fixture(scope="module")
def made():
    return scan("oblique_flipped")


def masks(engine, volume):
    array, grid = engine.prepare(volume)
    return engine.classes(engine.scores(array), grid)


def test_members_share_a_network_and_give_the_mean_of_their_scores(folders, ensemble, made):
    together = load_models(ensemble)
    assert len({id(model.network) for model in together}) == 1
    alone = Engine([load_model(folder) for folder in folders.values()], QUICK, device=CPU)
    streamed = Engine(together, QUICK, device=CPU)
    array, _ = alone.prepare(made.volume)
    expected = alone.scores(array)
    for _ in range(2):  # the last member's weights are in the network now
        np.testing.assert_array_equal(streamed.scores(array), expected)


def test_its_masks_are_post_processed_by_infer_and_by_load(folders, ensemble, made, tmp_path):
    raw = masks(Engine([load_model(folder) for folder in folders.values()], QUICK, device=CPU), made.volume)
    names, spacing = ("background", "organ", "lesion"), np.linalg.norm(made.affine[:3, :3], axis=0)
    expected = apply_steps(raw, CLEAN, class_names=names, spacing_xyz_mm=spacing)
    assert (expected != raw).any(), "the test needs masks with something to clean"
    image, _ = write_scan(made, tmp_path)
    np.testing.assert_array_equal(medseg.load(ensemble).predict(image).array, expected)
    case = [InferCase(id="case", images=(image,))]
    (report,) = run_infer(Engine(load_models(ensemble), QUICK, device=CPU), case, output=tmp_path / "out")
    np.testing.assert_array_equal(medseg.read_label_map(tmp_path / "out" / "case.nii.gz").array, expected)
    assert report.voxels["organ"] == int((expected == 1).sum())
    without = QUICK.model_copy(update={"postprocess": False})
    engine = Engine(load_models(ensemble), without, device=CPU)
    (again,) = run_infer(engine, case, output=tmp_path / "out")
    assert again.status == "ok", "a mask made with other post-processing is made again"
    np.testing.assert_array_equal(medseg.read_label_map(tmp_path / "out" / "case.nii.gz").array, raw)


def test_its_folder_needs_nothing_outside_and_is_written_once(folders, ensemble, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(ensemble, moved)
    assert [model.folder.name for model in load_models(moved)] == list(folders)
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*") if path.is_file()}
    sha256 = save_ensemble(moved, folders, postprocessing=CLEAN, evidence={"decision": {"by": "hand"}})
    assert sha256 == save_ensemble(
        tmp_path / "new", folders, postprocessing=CLEAN, evidence={"decision": {"by": "hand"}}
    )
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*") if path.is_file()} == before
    fewer = dict(list(folders.items())[:2])
    save_ensemble(moved, fewer)
    assert sorted(path.name for path in moved.iterdir()) == ["fold_0", "fold_1", "model.json"]
    assert load_models(moved)[0].postprocessing == ()
    assert "evidence" in read_json(ensemble / "model.json")


@pytest.mark.parametrize("file", ["fold_1/weights.safetensors", "fold_1/model.json", "fold_2/plan.yaml"])
def test_a_damaged_member_is_noticed(ensemble, tmp_path, file):
    moved = tmp_path / "model"
    shutil.copytree(ensemble, moved)
    data = bytearray((moved / file).read_bytes())
    data[len(data) // 2] ^= 1
    (moved / file).write_bytes(bytes(data))
    with pytest.raises(ModelError, match="fold_"):
        load_models(moved)
    (moved / file).unlink()
    with pytest.raises(ModelError, match="fold_"):
        load_models(moved)


def test_what_is_no_ensemble_is_refused(folders, ensemble, tmp_path):
    with pytest.raises(ModelError, match="model: is an ensemble of 3 models, expected a single one"):
        load_model(ensemble)
    with pytest.raises(ModelError, match="has no member"):
        save_ensemble(tmp_path / "none", {})
    with pytest.raises(ModelError, match="x: is an ensemble itself"):
        save_ensemble(tmp_path / "nested", {"x": ensemble})
    moved = tmp_path / "model"
    shutil.copytree(ensemble, moved)
    info = read_json(moved / "model.json")
    for change, message in (
        ({"format": 9}, "has model format 9, this medseg reads 2"),
        ({"members": [{"folder": "../../x", "sha256": ""}]}, "expected the name of a folder inside"),
        ({"members": [{"folder": "..", "sha256": ""}]}, "expected the name of a folder inside"),
        ({"members": []}, "do not fit together"),
        ({"postprocessing": [{"kind": "melt"}]}, "post-processing step is 'melt'"),
    ):
        (moved / "model.json").write_text(json.dumps(info | change))
        with pytest.raises(ModelError, match=message):
            load_models(moved)


def test_an_ensemble_does_not_predict_what_its_members_trained_on(ensemble):
    models = load_models(ensemble)
    refuse_trained_on(models, InferSection(cases="testing"), fold=1)
    with pytest.raises(
        UsageError, match=r"--model: member fold_0 of the ensemble was trained on the held-out cases of fold 1"
    ):
        refuse_trained_on(models, InferSection(), fold=1)


def test_other_post_processing_is_not_averaged(folders, ensemble, made):
    models = (*load_models(ensemble), load_model(folders["fold_0"]))
    with pytest.raises(ModelError, match="0: has other post-processing than fold_0"):
        Engine(models, QUICK, device=CPU)
    Engine(models, QUICK.model_copy(update={"postprocess": False}), device=CPU)


# --- several configurations -------------------------------------------------------------------------------------------


def test_configurations_meet_on_the_scans_own_grid(made):
    models = [threshold_model((1.0, 1.0, 1.4)), threshold_model((1.3, 0.9, 1.1), name="other", sha256="b" * 64)]
    engine = build_engine(models, QUICK, device=CPU)
    assert isinstance(engine, MixedEngine)
    found = masks(engine, made.volume)
    assert found.shape == made.shape
    assert min(dice(found, made.labels, value) for value in (1, 2)) > 0.9


def test_probabilities_are_averaged_with_equal_weight(made):
    # Scores on the scan's own grid, so that the answer follows from them alone: a sure voice against an unsure one.
    models = [threshold_model(), threshold_model((1.0, 1.0, 2.0), sha256="b" * 64)]
    mixed = build_engine(models, QUICK, device=CPU)
    _, (grid, _) = mixed.prepare(made.volume)
    own = replace(grid, prepared_shape=grid.cropped_shape)
    random = np.random.default_rng(0)
    scores = [random.normal(scale=scale, size=(3, *own.cropped_shape)).astype(np.float32) for scale in (0.5, 4.0)]
    total = sum(np.exp(one) / np.exp(one).sum(axis=0) for one in scores)
    oriented = np.zeros(own.oriented_shape, np.uint8)
    oriented[tuple(map(slice, own.crop_start, own.crop_stop))] = total.argmax(axis=0)
    expected = undo_axes(oriented, AxisChange(own.permutation, own.flips))
    found = mixed.classes(scores, (own, own))
    assert (found != expected).mean() < 1e-4, "but for rounding where two classes are equal"
    assert (
        expected != undo_axes(scores[0].argmax(axis=0).astype(np.uint8), AxisChange(own.permutation, own.flips))
    ).any()


def test_a_mixed_ensemble_is_told_apart_and_strangers_are_refused():
    models = [threshold_model(), threshold_model((1.0, 1.0, 2.0), name="other", sha256="b" * 64)]
    mixed = build_engine(models, QUICK, device=CPU)
    assert mixed.settings()["models"] == f"{'a' * 64} | {'b' * 64}"
    assert mixed.model_sha256s() == {"model_0": "a" * 64, "model_1": "b" * 64}
    assert isinstance(build_engine(models[:1] * 2, QUICK, device=CPU), Engine)
    stranger = threshold_model((1.0, 1.0, 2.0), name="stranger", labels={"background": (0,), "spleen": (1,)})
    with pytest.raises(ModelError, match=r"stranger: labels of its plan is .+ configurations of one data set"):
        build_engine([models[0], stranger], QUICK, device=CPU)
