"""What is told of a mask without its truth, by a model whose masks are known."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection
from medseg.imaging import read_volume
from medseg.inference.calibration import Calibration, ClassCalibration
from medseg.inference.cases import InferCase
from medseg.inference.contract import ChannelContract, InputContract
from medseg.inference.engine import Engine
from medseg.inference.measures import measure_classes
from medseg.inference.probability_maps import map_names, write_maps
from medseg.inference.quality import Judge
from medseg.inference.review import review_rows
from medseg.inference.stage import infer_folder
from medseg.runner.sidecar import read_sidecar
from tests.inference.stand_ins import threshold_model
from tests.synthetic import scan

CONTRACT = InputContract(
    cases=3, planar=False, orientation="RAS", channels=(ChannelContract(name="MR0", absolute=False),),
    volume_ml={"organ": (1000.0, 2000.0)}, present={"organ": 1.0, "lesion": 1.0}, modalities=("CT",),
)  # fmt: skip
ONE = ClassCalibration(
    names=("doubt",), centres=(0.0,), scales=(1.0,), weights=(0.0,), intercept=np.log(0.105), smear=1.0, margin=np.log(2),
    cases=20,
)  # fmt: skip


def engine(**section):
    model = replace(threshold_model(), info={"contract": CONTRACT.plain()})
    return Engine([model], InferSection(mirror=False, precision="float32", **section), device=torch.device("cpu"))


def judged(own, volume, judge=None):
    array, grid = own.prepare(volume)
    scores = own.scores(array)
    classes = own.classes(scores, grid)
    measures = measure_classes(classes, class_names=own.class_names, affine=volume.affine)
    return (judge or Judge(own)).assess(scores, grid, measures), measures, scores, grid


def test_a_mask_is_judged_by_contract_and_calibration():
    own = engine()
    judge = Judge(own)
    assert judge.check(scan().volume).status == "ok"
    judge.calibration = Calibration(model_sha256="", coverage=0.9, classes={"organ": ONE}, typical_ml={"organ": 1.0})
    quality, measures, _, _ = judged(own, scan().volume, judge)
    # log error = log 0.105: Dice 0.9; its bound twice the error, 1 + 0.005 - 0.21.
    assert (quality.expected_dice, quality.dice_bound) == (
        {"organ": 0.9, "lesion": None},
        {"organ": 0.795, "lesion": None},
    )
    assert quality.risk == 0.1
    assert 0 <= quality.uncertainty["organ"] < 1
    assert quality.evidence.structures["organ"]["volume_ml"] == pytest.approx(measures.volume_ml["organ"])
    assert len(quality.flags) == 1
    assert quality.flags[0].startswith("organ: is tiny")
    # What the sidecar keeps gives the same again, and what is empty though it is always there is expected to be wrong.
    assert judge.again(judge.plain(quality), measures) == quality
    empty = replace(measures, voxels={"organ": 0, "lesion": 5}, volume_ml={"organ": 0.0, "lesion": 0.1})
    found = judge.again(judge.plain(quality), empty)
    assert (found.expected_dice["organ"], found.flags[0]) == (0.0, "organ: is empty, all training cases have it")


def test_levels_of_the_section():
    strange = scan().volume
    strange = replace(strange, header=replace(strange.header, modality="MR"))
    statuses = [Judge(engine(contract=level)).check(strange).status for level in ("refuse", "warn", "off")]
    assert statuses == ["refuse", "warn", "ok"]
    quality, *_ = judged(engine(quality=False, contract="off"), scan().volume)
    assert (quality.evidence, quality.flags, quality.uncertainty) == (None, (), {})


@pytest.mark.parametrize("grid", ["ras", "anisotropic_oblique"])
def test_maps_lie_on_the_scans_own_grid(tmp_path, grid):
    own, made = engine(probabilities="uint8", uncertainty="entropy"), scan(grid)
    quality, _, scores, prepared = judged(own, made.volume)
    names = map_names("a", probabilities="uint8", uncertainty="entropy") + map_names(
        "a", probabilities="fp16", uncertainty=None
    )
    files = write_maps(own, scores, prepared, names, folder=tmp_path)
    assert tuple(files) == names == ("maps/a_probabilities.nii.gz", "maps/a_entropy.nii.gz", "maps/a_probabilities.npz")
    stored, halves = nib.load(tmp_path / names[0]), np.load(tmp_path / names[2])
    assert (stored.shape, halves["probabilities"].shape) == ((*made.shape, 2),) * 2
    assert np.abs(stored.get_fdata() - halves["probabilities"]).max() < 0.6 / 255
    np.testing.assert_allclose(stored.affine, made.affine, atol=1e-4)
    assert halves["class_names"].tolist() == ["organ", "lesion"]
    classes = own.classes(scores, prepared)
    sure = halves["probabilities"].max(axis=-1) > 0.51
    np.testing.assert_array_equal(halves["probabilities"].argmax(axis=-1)[sure] + 1, classes[sure])
    entropy = read_volume(tmp_path / names[1]).array[0]
    assert entropy[classes == 1].mean() == pytest.approx(quality.evidence.structures["organ"]["entropy"], abs=0.01)
    assert write_maps(own, scores, prepared, names, folder=tmp_path) == files
    hot = Calibration(model_sha256="", coverage=0.9, classes={}, typical_ml={}, temperature=4.0)
    write_maps(own, scores, prepared, names, folder=tmp_path, calibration=hot)
    assert not np.array_equal(np.load(tmp_path / names[2])["probabilities"], halves["probabilities"])


def test_a_folder_gets_its_review_and_keeps_its_evidence(tmp_path):
    from medseg.imaging import write_volume

    cases = []
    for name, grid in (("b", "ras"), ("a", "ras")):
        made = scan(grid, seed=len(cases))
        write_volume(made.volume, tmp_path / f"{name}.nii.gz", like=made.header)
        cases.append(InferCase(id=name, images=(tmp_path / f"{name}.nii.gz",)))
    output = tmp_path / "masks"
    first = infer_folder(engine(), cases, output=output)
    assert [report.status for report in first] == ["ok", "ok"]
    assert read_sidecar(output / "a.nii.gz").extra["quality"]["structures"].keys() == {"organ", "lesion"}
    assert (output / "review.csv").read_text().splitlines()[0].startswith("rank,case,output,risk,by,")
    # Maps that are asked for later make the masks anew, whose bytes are the same; without them these are kept.
    more = infer_folder(engine(uncertainty="entropy"), cases, output=output)
    assert ([report.status for report in more], more[0].sha256) == (["ok", "ok"], first[0].sha256)
    assert [report.status for report in infer_folder(engine(), cases, output=output)] == ["kept", "kept"]


def test_what_is_odd_is_reviewed_before_what_is_risky():
    lines = [
        {"id": "sure", "status": "ok", "quality": {"risk": 0.1, "expected_dice": {"a": 0.9}}},
        {
            "id": "risky",
            "status": "ok",
            "quality": {"risk": 0.4, "expected_dice": {"a": 0.6}, "dice_bound": {"a": 0.3}},
        },
        {"id": "odd", "status": "ok", "quality": {"risk": 0.2}, "flags": ["a: is empty"]},
        {"id": "gone", "status": "failed"},
    ]
    rows = review_rows(lines)
    assert [row["case"] for row in rows] == ["odd", "risky", "sure"]
    assert (rows[0]["reasons"], rows[0]["by"], rows[1]["lowest_dice_bound"]) == ("a: is empty", "entropy", 0.3)
