"""From finished folds to a report and one model, on seeded networks whose masks have plenty to clean."""

import json

import pytest
import torch

import medseg
from medseg.config.sections import EvaluateSection, InferSection
from medseg.crossvalidation import decisions, stage
from medseg.crossvalidation.candidates import find_candidates, folds_of
from medseg.crossvalidation.outoffold import DataPlace
from medseg.crossvalidation.report import report_json, report_text, write_report
from medseg.crossvalidation.stage import Settings, run_crossvalidation
from medseg.durable import sha256_file, write_json
from medseg.errors import InputError
from medseg.inference.model import load_models
from medseg.manifest import load_manifest
from tests.inference.stand_ins import write_model
from tests.synthetic import write_dataset

FOLDS = 3
SETTINGS = Settings(
    infer=InferSection(mirror=False, precision="float32"), seed=1, device=torch.device("cpu"), processes=1
)


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def write_runs(work, manifest, *, seed, **plan):
    """A finished run per fold, of networks with weights from a seed."""
    for fold in range(FOLDS):
        run = work / "runs" / f"fold_{fold}"
        write_model(run / "model", seed=seed, **plan)
        trained = {case.id: "key" for case in manifest.fold_cases(fold)[0]}
        write_json(run / "run.json", {"identity": {"training cases": trained}})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    manifest = load_manifest(write_dataset(tmp_path_factory.mktemp("data"), cases=6, folds=FOLDS))
    return DataPlace(
        manifest=manifest,
        folds=folds_of(manifest),
        data_root=manifest.path.parent,
        allow_outside=False,
        evaluate=EvaluateSection(),
    )


@pytest.fixture(scope="module")
def work(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("works") / "full"
    write_runs(folder, place.manifest, seed=3)
    return folder


@pytest.fixture(scope="module")
def result(place, work):
    return run_crossvalidation(find_candidates([work]), place, work / "crossvalidation", settings=SETTINGS)


def scores_of(folder):
    return json.loads((folder / "metrics.json").read_text())["classes"]


def test_every_case_is_scored_once(result, place, work):
    assert result.exit_code == 0
    assert sorted(result.reported.rows) == [case.id for case in place.manifest.training]
    assert set(result.per_fold) == set(place.folds)
    assert scores_of(work / "crossvalidation" / "scores" / "reported")["organ"]["metrics"]["dice"]["n"] == 6


def plant_masks(work, place, *, speck_in):
    """Out-of-fold masks that are the references and, in some folds, a speck of organ in a corner."""
    for case_id, fold in place.fold_of.items():
        reference = medseg.read_label_map(place.data_root / "labels" / f"{case_id}.nii.gz")
        array = reference.array.copy()
        if fold in speck_in:
            array[:2, :2, :2] = 1
        path = work / "predictions" / f"fold_{fold}" / f"{case_id}.nii.gz"
        medseg.write_label_map(medseg.LabelMap(array, reference.affine, reference.header), path, like=reference.header)


@pytest.mark.parametrize(("speck_in", "cleaned_in"), [({0, 1, 2}, {0, 1, 2}), ({2}, {0, 1})])
def test_every_case_has_the_mask_that_the_other_folds_decided(place, tmp_path, monkeypatch, speck_in, cleaned_in):
    work = tmp_path / "full"
    write_runs(work, place.manifest, seed=3)
    plant_masks(work, place, speck_in=speck_in)
    monkeypatch.setattr(stage, "predict_folds", lambda *_arguments, **_keywords: [])
    # At 95 % a change in two of four cases may be chance; for this test it may not.
    monkeypatch.setattr(decisions, "LEVEL", 0.5)
    found = run_crossvalidation(find_candidates([work]), place, work / "crossvalidation", settings=SETTINGS)
    assert {fold for fold, decision in found.per_fold.items() if decision.adopted} == cleaned_in
    for case_id, fold in place.fold_of.items():
        organ = found.reported.rows[case_id][0]
        assert organ.false_positive == (8 if fold in speck_in and fold not in cleaned_in else 0)
        assert found.plain.rows[case_id][0].false_positive == (8 if fold in speck_in else 0)
        assert organ.false_negative == 0
    assert found.final.adopted
    written = {path.name.removesuffix(".nii.gz") for path in (work / "crossvalidation" / "masks").glob("*.nii.gz")}
    assert written == {case_id for case_id, fold in place.fold_of.items() if fold in cleaned_in}


def test_the_model_is_all_folds_with_what_all_cases_decided(result, work):
    models = load_models(work / "crossvalidation" / "model")
    assert [model.folder.name for model in models] == ["fold_0", "fold_1", "fold_2"]
    assert models[0].postprocessing == result.final.adopted
    assert result.model_sha256 == sha256_file(work / "crossvalidation" / "model" / "model.json")


def test_a_second_start_makes_nothing_anew_and_the_same_report(result, place, work):
    output = work / "crossvalidation"
    write_report(result, output)
    files = [path for path in work.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files if path.suffix in (".gz", ".safetensors")}
    texts = {path: path.read_bytes() for path in files if path.suffix in (".json", ".md", ".csv")}
    again = run_crossvalidation(find_candidates([work]), place, output, settings=SETTINGS)
    write_report(again, output)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path: path.read_bytes() for path in texts} == texts
    assert {report.status for report in again.predictions} == {"kept"}


def test_the_report_says_what_decided_what(result):
    content = report_json(result)
    assert content == json.loads(json.dumps(content))
    assert set(content["decided_by"]) == {
        "weights of each fold", "threshold", "mirroring and overlap", "configuration", "post-processing",
    }  # fmt: skip
    assert content["decided_by"]["configuration"] == "the config: only one was compared"
    text = report_text(result)
    organ = result.reported.classes[0].metrics["dice"]
    assert f"| organ | {organ.mean:.4f} ± {organ.sd:.4f} |" in text
    assert "6 of 6 cases scored" in text
    for fold, decision in result.per_fold.items():
        words = "; ".join(map(str, decision.adopted)) or "none"
        assert f"| {fold} | full | {words} |" in text


@pytest.mark.slow
def test_configurations_are_chosen_by_the_other_folds(place, work, tmp_path):
    other = tmp_path / "slices"
    write_runs(other, place.manifest, seed=5, spacing=(1.2, 1.2, 1.5))
    candidates = find_candidates([work, other])
    found = run_crossvalidation(candidates, place, tmp_path / "chosen", settings=SETTINGS)
    assert [one.what for one in found.final.choice.findings] == ["full", "slices", "full+slices"]
    assert {one.name for one in candidates} >= {found.final.choice.name}
    assert (tmp_path / "chosen" / "predictions" / "full+slices" / "fold_0" / "case_00.nii.gz").exists()
    names = sorted(model.folder.name for model in load_models(found.model))
    single = found.final.choice.name
    expected = [f"fold_{fold}" for fold in range(FOLDS)]
    assert names == (
        expected if "+" not in single else sorted(f"{w}-{f}" for w in ("full", "slices") for f in expected)
    )
    assert "| configuration | Dice | difference |" in report_text(found)
    assert report_json(found)["decided_by"]["configuration"].startswith("for each fold's reported scores by the other")


def test_a_case_without_a_mask_is_missed_not_dropped(place, tmp_path):
    work = tmp_path / "full"
    write_runs(work, place.manifest, seed=3)
    image = place.data_root / "images" / "case_01.nii.gz"
    kept = image.read_bytes()
    try:
        image.write_bytes(kept[:200])
        found = run_crossvalidation(find_candidates([work]), place, tmp_path / "out", settings=SETTINGS)
    finally:
        image.write_bytes(kept)
    assert found.exit_code == 4
    assert found.reported.missing == ("case_01",)
    assert "5 of 6 cases scored" in report_text(found)


def test_unfinished_folds_stop_it(place, tmp_path):
    with pytest.raises(InputError, match="none/fold_0, none/fold_1, none/fold_2 has no finished model"):
        run_crossvalidation(find_candidates([tmp_path / "none"]), place, tmp_path / "out", settings=SETTINGS)


def test_the_final_decision_is_made_on_all_cases(result):
    assert {one.effect.cases for one in result.final.steps} == {6}
    assert {one.effect.cases for decision in result.per_fold.values() for one in decision.steps} == {4}
