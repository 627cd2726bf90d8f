"""A first stage is used only where every mask is its own fold's, of the same data, and whole."""

import json

import pytest

from medseg.config.sections import PrepareSection
from medseg.crossvalidation.previous import previous_stage
from medseg.durable import sha256_file
from medseg.errors import InputError
from medseg.preparation.plan import ChannelPlan
from medseg.preparation.plan_file import write_plan
from medseg.runner.sidecar import Origin, write_sidecar
from tests.crossvalidation.test_candidates import finished, manifest_of
from tests.inference.stand_ins import LABELS, plan_for

MANIFEST = manifest_of([("p0", 0), ("p1", 1), ("p2", 0), ("p3", 1)])
SECTION = PrepareSection(configuration="3d_cascade_fullres", previous_work="low")
CHANNELS = {"channels": (ChannelPlan(name="MR", scheme="zscore"),)}


def write_plan_of(work, **changes):
    (work / "prepared").mkdir(parents=True, exist_ok=True)
    write_plan(work / "prepared" / "plan.yaml", plan_for(**changes).model_copy(update=CHANNELS))


def write_mask(work, case, fold, *, model=None, name="{}.nii.gz"):
    path = work / "predictions" / f"fold_{fold}" / name.format(case)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"mask of {case}".encode())
    drawn_by = model or sha256_file(work / "runs" / f"fold_{fold}" / "model" / "model.json")
    write_sidecar(path, Origin(inputs={"image_0000": f"sha of {case}"}, settings={"models": drawn_by}))
    return path


@pytest.fixture
def low(tmp_path):
    work = tmp_path / "low"
    write_plan_of(work)
    for fold, trained in ((0, ["c1", "c3"]), (1, ["c0", "c2"])):
        finished(work, fold, trained)
        (work / "runs" / f"fold_{fold}" / "model" / "model.json").write_text(json.dumps({"fold": fold}))
    for number in range(4):
        write_mask(work, f"c{number}", number % 2, name="{}.seg.nrrd" if number == 3 else "{}.nii.gz")
    return work


def stage(low, manifest=MANIFEST):
    return previous_stage(SECTION, manifest, config_folder=low.parent)


def test_every_case_has_the_mask_of_its_fold(low):
    found = stage(low)
    assert {case: mask.path.name for case, mask in found.masks.items()} == {
        "c0": "c0.nii.gz", "c1": "c1.nii.gz", "c2": "c2.nii.gz", "c3": "c3.seg.nrrd",
    }  # fmt: skip
    assert found.masks["c2"].scan_sha256s == ("sha of c2",)
    assert found.models == {f"fold_{k}": sha256_file(low / f"runs/fold_{k}/model/model.json") for k in range(2)}
    assert previous_stage(PrepareSection(), MANIFEST, config_folder=low.parent) is None


def test_masks_that_are_missing_changed_or_anothers_are_refused(low):
    path = write_mask(low, "c0", 0, model="another")
    with pytest.raises(InputError, match="c0: its mask was drawn by another model than fold_0 has now"):
        stage(low)
    write_mask(low, "c0", 0)
    path.write_bytes(b"drawn by hand")
    with pytest.raises(InputError, match="c0: its mask was changed or lost after it was written"):
        stage(low)
    path.with_name("c0.nii.gz.sidecar.json").unlink()
    (low / "predictions" / "fold_1" / "c1.nii.gz.sidecar.json").unlink()
    with pytest.raises(
        InputError, match=r"c0: has no mask in predictions/fold_0.* \(and 1 more cases\); run medseg crossval"
    ):
        stage(low)


def test_a_first_stage_of_other_data_is_refused(low, tmp_path):
    with pytest.raises(InputError, match=r"c4, \.\.\.\) have no fold, expected one each"):
        stage(low, manifest_of([("p0", 0), ("p1", 1), ("p2", 0), ("p3", 1), ("p4", None)]))
    with pytest.raises(InputError, match=r"low/fold_0: was trained on c1, which fold 0 of set\.json holds out"):
        stage(low, manifest_of([("p0", 0), ("p1", 0), ("p2", 0), ("p3", 1)]))
    write_plan_of(low, labels={"background": (0,), "organ": (1,)})
    with pytest.raises(InputError, match=r"labels of low are .*, expected the manifest's"):
        stage(low)
    write_plan_of(low, labels=LABELS, previous_channels=2)
    with pytest.raises(InputError, match="low is a cascade's second stage itself"):
        stage(low)
    with pytest.raises(InputError, match=r"nothing holds no prepared/plan\.yaml"):
        previous_stage(SECTION.model_copy(update={"previous_work": "nothing"}), MANIFEST, config_folder=tmp_path)
