"""Two stages: the first's mask as channels of the second, and a model folder that carries both."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import medseg
from medseg.config.sections import InferSection
from medseg.durable import read_json
from medseg.errors import ModelError
from medseg.evaluation.postprocessing import Step
from medseg.inference.cascade import CascadeEngine
from medseg.inference.engine import Engine
from medseg.inference.ensemble import MixedEngine, build_engine
from medseg.inference.model import load_model, load_models, save_ensemble
from medseg.preparation.previous import one_hot, prepare_previous
from tests.inference.stand_ins import threshold_model, write_model
from tests.synthetic import scan

CPU = torch.device("cpu")
QUICK = InferSection(mirror=False, precision="float32")


class Repeats(torch.nn.Module):
    """Class k where the first stage's mask has class k, whatever the image shows."""

    def forward(self, x):
        return torch.cat([torch.full_like(x[:, :1], 0.5), x[:, 1:]], dim=1)


@pytest.fixture(scope="module")
def made():
    return scan("oblique_flipped")


def stages(made, **changes):
    """A first stage that finds the labels by their brightness at 2 mm, and a second on the scan's own voxels."""
    spacing = tuple(float(v) for v in np.linalg.norm(made.affine[:3, :3], axis=0))
    first = threshold_model((2.0, 2.0, 2.0), sha256="1" * 64, name="low")
    second = threshold_model(spacing, sha256="2" * 64, name="full", previous_channels=2)
    return first, replace(second, network=Repeats().eval(), previous=(first,), **changes)


def mask_of(engine, volume):
    array, grid = engine.prepare(volume)
    return engine.classes(engine.scores(array), grid)


def test_the_second_stage_is_given_the_firsts_mask(made):
    first, second = stages(made)
    engine = build_engine([second], QUICK, device=CPU)
    assert isinstance(engine, CascadeEngine)
    expected = mask_of(build_engine([first], QUICK, device=CPU), made.volume)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(mask_of(engine, made.volume), expected)
    array, grid = engine.prepare(made.volume)
    shares = np.concatenate([part for _, part in engine.slabs(engine.scores(array), grid)], axis=1)
    assert shares.shape == (3, *grid.cropped_shape)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)


def test_its_settings_name_both_stages(made):
    first, second = stages(made)
    engine = build_engine([second], QUICK, device=CPU)
    assert engine.settings()["models"] == f"{'1' * 64} > {'2' * 64}"
    assert engine.model_sha256s() == {"model_0": "2" * 64, "previous_model_0": "1" * 64}
    plain = build_engine([first], QUICK, device=CPU)
    assert isinstance(plain, Engine)
    mixed = build_engine([first, second], QUICK, device=CPU)
    assert isinstance(mixed, MixedEngine)
    assert set(mixed.model_sha256s().values()) == {"1" * 64, "2" * 64}
    # Both say the same, so their mean does.
    same = mask_of(mixed, made.volume) == mask_of(plain, made.volume)
    assert same.mean() > 0.99


def test_the_first_stage_is_not_post_processed(made):
    first, second = stages(made)
    nothing_left = (Step(kind="minimum_size", class_name="organ", minimum_mm3=1e9),)
    engine = build_engine([replace(second, previous=(replace(first, postprocessing=nothing_left),))], QUICK, device=CPU)
    assert mask_of(engine, made.volume).any()


def test_stages_that_do_not_fit_are_refused(made):
    first, second = stages(made)
    other = replace(first, plan=first.plan.model_copy(update={"labels": {"background": (0,), "organ": (1,)}}))
    with pytest.raises(ModelError, match=r"full: labels of its plan is .*; train both stages on one data set"):
        build_engine([replace(second, previous=(other,))], QUICK, device=CPU)
    with pytest.raises(ModelError, match="full: is a cascade's second stage and was loaded without its first"):
        build_engine([replace(second, previous=())], QUICK, device=CPU)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folds of a cascade: each second stage carries the first stage of its own fold."""
    top = tmp_path_factory.mktemp("cascade")
    found = {}
    for fold in range(2):
        low = write_model(top / f"low_{fold}", seed=fold, spacing=(2.0, 2.0, 2.0))
        name = f"fold_{fold}"
        found[name] = write_model(top / name, seed=10 + fold, previous_channels=2, previous={name: low})
    return found


def test_a_folder_carries_its_first_stage(folders, made, tmp_path):
    moved = tmp_path / "model"
    shutil.copytree(folders["fold_0"], moved)
    model = load_model(moved)
    (first,) = model.previous
    assert read_json(moved / "model.json")["previous"]["folder"] == "previous"
    engine = build_engine([model], QUICK, device=CPU)
    mask = mask_of(engine, made.volume)
    # By hand: the first stage's mask, on the second's grid, beside the image.
    drawn = mask_of(Engine([first], QUICK, device=CPU), made.volume)
    image, grid = Engine([model], QUICK, device=CPU).prepare(made.volume)
    joined = np.concatenate((image, one_hot(prepare_previous(drawn, grid), 2)))
    alone = Engine([model], QUICK, device=CPU)
    np.testing.assert_array_equal(mask, alone.classes(alone.scores(joined), grid))
    np.testing.assert_array_equal(medseg.load(moved).predict(made.volume).array, mask)


def test_a_member_may_be_loaded_alone(folders, tmp_path):
    save_ensemble(tmp_path / "model", folders)
    with pytest.raises(ModelError, match=r"fold_1: is a cascade's second stage and lacks the folder previous"):
        load_model(tmp_path / "model" / "fold_1")
    assert load_model(tmp_path / "model" / "fold_1", alone=True).previous == ()


def test_an_ensemble_carries_the_first_stages_of_all_members(folders, made, tmp_path):
    sha256 = save_ensemble(tmp_path / "model", folders)
    assert sorted(path.name for path in (tmp_path / "model" / "previous").iterdir()) == [
        "fold_0",
        "fold_1",
        "model.json",
    ]
    assert not (tmp_path / "model" / "fold_0" / "previous").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert save_ensemble(tmp_path / "model", folders) == sha256
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    members = load_models(tmp_path / "model")
    assert [len(member.previous) for member in members] == [2, 2]
    together = build_engine(members, QUICK, device=CPU)
    apart = build_engine([load_model(folder) for folder in folders.values()], QUICK, device=CPU)
    np.testing.assert_array_equal(mask_of(together, made.volume), mask_of(apart, made.volume))
    assert together.settings() == apart.settings()


def test_a_lost_or_foreign_first_stage_is_refused(folders, tmp_path):
    moved = tmp_path / "model"
    shutil.copytree(folders["fold_0"], moved)
    path = moved / "previous" / "model.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ModelError, match="previous is not the first stage it was saved with"):
        load_model(moved)
    shutil.rmtree(moved / "previous")
    with pytest.raises(ModelError, match="model: is a cascade's second stage and lacks the folder previous"):
        load_model(moved)
