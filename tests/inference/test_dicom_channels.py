"""A model of two channels on a DICOM export, from the command's inputs to masks: each channel is a series of its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from torch import device

from medseg.config.sections import InferSection
from medseg.config.series import SeriesSection
from medseg.errors import ConfigError
from medseg.imaging import read_label_map
from medseg.imaging.dicom_series import series_code
from medseg.inference.cases import InferCase, find_cases
from medseg.inference.decoding import estimated_bytes
from medseg.inference.engine import Engine
from medseg.inference.ensemble import build_engine
from medseg.inference.outputs import OutputSpec
from medseg.inference.stage import RunOptions, run_infer
from medseg.preparation.plan import ChannelPlan
from medseg.preparation.plan_file import read_plan, write_plan
from tests.imaging.test_dicom_choice import add_series, uid
from tests.inference.stand_ins import LABELS, threshold_model

CPU = device("cpu")
T1, FLAIR = SeriesSection(modality="MR", description="t1"), SeriesSection(modality="MR", description="flair")
HERE = RunOptions(isolation="never")


@pytest.fixture
def model():
    whole = threshold_model(patch=(8, 8, 8))
    channels = tuple(
        ChannelPlan(name=name, scheme="none", series=rule) for name, rule in (("T1", T1), ("FLAIR", FLAIR))
    )
    return replace(whole, plan=whole.plan.model_copy(update={"channels": channels}))


@pytest.fixture
def export(tmp_path):
    """A patient whose T1 comes last, and one without a FLAIR."""
    folder = tmp_path / "export"
    for number, name in enumerate(("flair", "scout", "t1"), start=1):
        add_series(folder / "p1", number, count=4, modality="MR", description=name, patient="P1", study="1")
    add_series(folder / "p2", 4, count=4, modality="MR", description="t1", patient="P2", study="2")
    return folder


def mask_of(report, folder):
    return read_label_map(folder / report.output, naming=LABELS).array


def test_an_export_and_a_manifest_give_the_same_masks(model, export, tmp_path):
    engine = Engine([model], InferSection(mirror=False), device=CPU)
    cases = find_cases([export], channels=engine.plan.channels, series=engine.section.series)
    good, bad = run_infer(engine, cases, output=tmp_path / "a", options=HERE)
    assert (good.id, good.status) == ("p1", "ok")
    codes = [series_code(uid(number)) for number in (3, 1)]
    assert good.warnings[:2] == tuple(
        f"{name}: series {code} (MR, 4 slices) was chosen of 3"
        for name, code in zip(("T1", "FLAIR"), codes, strict=True)
    )
    assert (bad.id, bad.status) == ("p2", "refused")
    assert bad.reason.startswith("p2: none of the study's 1 series is as channel FLAIR's rule asks")
    (again, _) = run_infer(engine, cases, output=tmp_path / "a", options=HERE)
    assert again.status == "kept"
    content = {"format": 1, "name": "export", "licence": "none", "channels": ["T1", "FLAIR"], "labels": {"organ": 1}}
    listed = [{"id": "both", "image": ["p1", "p1"]}, {"id": "one", "image": "p1"}, {"id": "lacks", "image": "p2"}]
    (export / "set.json").write_text(json.dumps(content | {"training": listed}))
    found = find_cases([export / "set.json"], channels=engine.plan.channels)
    both, one, lacks = run_infer(engine, found, output=tmp_path / "b", options=HERE)
    for report in (both, one):
        assert (report.status, report.warnings) == ("ok", good.warnings)
        np.testing.assert_array_equal(mask_of(report, tmp_path / "b"), mask_of(good, tmp_path / "a"))
    assert mask_of(good, tmp_path / "a").any()
    assert lacks.reason.startswith("channel FLAIR: p2: none of its 1 series is as series asks")


def test_the_sections_rules_take_the_place_of_the_models(model, export):
    section = InferSection(series={"FLAIR": SeriesSection(description="scout")})
    engine = build_engine([model], section, device=CPU)
    good, _ = find_cases([export], channels=engine.plan.channels, series=section.series)
    assert good.series == (series_code(uid(3)), series_code(uid(2)))
    listed = InferCase(id="p1", images=good.images)
    assert [c.series for c in listed.channels(engine.plan.channels, section.series)] == [T1, section.series["FLAIR"]]
    with pytest.raises(ConfigError, match=r"infer\.series: names the channels T2, expected of T1, FLAIR"):
        build_engine([model], InferSection(series={"T2": T1}), device=CPU)


def test_the_rules_are_in_the_plan_file(model, tmp_path):
    write_plan(tmp_path / "plan.yaml", model.plan)
    assert [channel.series for channel in read_plan(tmp_path / "plan.yaml").channels] == [T1, FLAIR]


def test_only_the_chosen_files_count_for_memory(model, export):
    good, _ = find_cases([export], channels=model.plan.channels)
    chosen = [export / "p1" / name for names in good.files for name in names]
    assert len(chosen) == 8
    size = 4 * sum(path.stat().st_size for path in chosen)
    assert estimated_bytes(good.images, None, model.plan, only=good.files) == size
    # 12 files lie in the folder, which a manifest names twice.
    assert estimated_bytes(good.images, None, model.plan) == 4 * sum(
        p.stat().st_size for p in (export / "p1").iterdir()
    )


def test_a_dicom_mask_refers_to_the_first_channels_series(model, export, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    engine = Engine([model], InferSection(mirror=False), device=CPU)
    good, _ = find_cases([export], channels=engine.plan.channels)
    options = RunOptions(spec=OutputSpec(format="rtstruct"), isolation="never")
    (report,) = run_infer(engine, [good], output=tmp_path / "masks", options=options)
    assert (report.status, report.reason) == ("ok", None)
    dataset = pydicom.dcmread(tmp_path / "masks" / report.output)
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == uid(3)
