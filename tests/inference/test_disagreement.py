"""What the members of an ensemble disagree about, by members whose masks are known."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection
from medseg.errors import ScanError, UsageError
from medseg.imaging import Regions, write_volume
from medseg.inference.cases import InferCase
from medseg.inference.disagreement import VotingEngine, disagreement_of_structures, winners
from medseg.inference.engine import Engine
from medseg.inference.ensemble import build_engine
from medseg.inference.model import load_models, save_ensemble
from medseg.inference.quality import Judge
from medseg.inference.stage import infer_folder
from medseg.runner.sidecar import read_sidecar
from tests.inference.stand_ins import threshold_model, write_model
from tests.synthetic import scan

CPU = torch.device("cpu")
ASKED = InferSection(mirror=False, precision="float32", contract="off", uncertainty="disagreement")
PLAIN = ASKED.model_copy(update={"uncertainty": None})


def members(*highs):
    return [threshold_model(high=high, sha256=str(n) * 64, name=f"fold_{n}") for n, high in enumerate(highs)]


def test_the_map_is_the_share_of_members_that_differ(tmp_path):
    made = scan("ras")
    maker = build_engine(members(400.0, 400.0, 1e6), ASKED, device=CPU)
    assert isinstance(maker, VotingEngine)
    array, grid = maker.prepare(made.volume)
    scores = maker.scores(array)
    drawn = maker.classes(scores, grid)
    share = np.concatenate([slab for _, slab in maker.disagreement_slabs(scores, grid)], axis=1)[0]
    # The ensemble's lesion begins higher than the first two members'; the third has none.
    raw = made.volume.array[0]
    alone = [np.where(raw > high, 2, np.where(raw > 200, 1, 0)) for high in (400, 400, 1e6)]
    np.testing.assert_allclose(share, np.mean([own != drawn for own in alone], axis=0), atol=1e-6)
    assert 0 < share.max() <= 1
    numbers = maker.disagreements(scores)
    # Of three pairs one agrees on the lesion wholly and two not at all.
    assert numbers["lesion"] == pytest.approx(2 / 3, abs=1e-5)
    assert 0 < numbers["organ"] < 0.5
    assert maker.effort()["windows"] > 0


def test_masks_are_those_of_the_plain_engine_and_numbers_are_reported(tmp_path):
    folders = {f"fold_{seed}": write_model(tmp_path / f"fold_{seed}", seed=seed) for seed in (0, 1)}
    save_ensemble(tmp_path / "both", folders)
    models, made = load_models(tmp_path / "both"), scan("oblique")
    write_volume(made.volume, tmp_path / "a.nii.gz", like=made.header)
    case = InferCase(id="a", images=(tmp_path / "a.nii.gz",))
    plain = infer_folder(build_engine(models, PLAIN, device=CPU), [case], output=tmp_path / "plain")
    voted = infer_folder(build_engine(models, ASKED, device=CPU), [case], output=tmp_path / "voted")
    assert (voted[0].reason, voted[0].sha256) == (None, plain[0].sha256)
    image = nib.load(tmp_path / "voted" / "maps" / "a_disagreement.nii.gz")
    assert image.shape == made.shape
    assert 0 < image.get_fdata().max() <= 1
    assert set(voted[0].quality.disagreement) == {"organ", "lesion"}
    assert plain[0].quality.disagreement == {}
    kept = read_sidecar(tmp_path / "voted" / "a.nii.gz").extra["quality"]["structures"]
    without = read_sidecar(tmp_path / "plain" / "a.nii.gz").extra["quality"]["structures"]
    for name, own in kept.items():
        assert {key: value for key, value in own.items() if key != "disagreement"} == without[name]
    assert "disagreement" in (tmp_path / "voted" / "report.csv").read_text().splitlines()[0]
    again = infer_folder(build_engine(models, ASKED, device=CPU), [case], output=tmp_path / "voted")
    assert (again[0].status, again[0].quality.disagreement) == ("kept", voted[0].quality.disagreement)


def test_numbers_on_paper():
    a, b = np.array([1, 1, 0, 2], np.uint8), np.array([1, 0, 0, 2], np.uint8)
    names = ("background", "organ", "lesion", "other")
    found = disagreement_of_structures([a, b], names)
    assert found == {"organ": pytest.approx(1 - 2 / 3, abs=1e-5), "lesion": 0.0, "other": None}
    # Of overlapping labels index 2 belongs to both: organ 3 and 2 voxels, 2 of them shared.
    regions = Regions({"background": (0,), "organ": (1, 2), "lesion": (2,)})
    assert disagreement_of_structures([a, b], names[:3], regions)["organ"] == pytest.approx(1 - 4 / 5, abs=1e-5)


def test_what_has_no_disagreement_is_refused():
    with pytest.raises(UsageError, match="with one model, expected an ensemble"):
        build_engine(members(400.0), ASKED, device=CPU)
    other = threshold_model((2.0, 2.0, 2.0), sha256="9" * 64, name="low")
    with pytest.raises(UsageError, match="several configurations"):
        build_engine([*members(400.0, 500.0), other, other], ASKED, device=CPU)
    with pytest.raises(UsageError, match="accumulate fp16"):
        build_engine(members(400.0, 500.0), ASKED.model_copy(update={"accumulate": "fp16"}), device=CPU)


def test_scores_in_a_file_are_refused(monkeypatch, tmp_path):
    from medseg.inference.scores import ScoreFile

    maker = build_engine(members(400.0, 500.0), ASKED, device=CPU)
    monkeypatch.setattr(Engine, "scores", lambda *_: ScoreFile((3, 4, 4, 4), axis=0, folder=tmp_path))
    with pytest.raises(ScanError, match="do not fit in memory"):
        maker.scores(np.zeros((1, 4, 4, 4), np.float32))


def test_winners_of_features_and_regions():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(3, 4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(winners(array, None), array.argmax(axis=0))
    regions = Regions({"background": (0,), "organ": (1, 2), "lesion": (2,)})
    np.testing.assert_array_equal(winners(array[:2], regions), regions.decide(array[:2]))


def test_a_judge_without_votes_is_as_before():
    own = Engine(members(400.0), PLAIN, device=CPU)
    volume = replace(scan("ras").volume)
    array, grid = own.prepare(volume)
    assert "disagreement" not in Judge(own)._evidence(own.scores(array), grid).structures["organ"]
