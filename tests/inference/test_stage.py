"""Many scans through a model: masks on their own grids, what is kept, what is passed over, what survives a kill."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection
from medseg.durable import sha256_file
from medseg.errors import EnvironmentFault, UsageError
from medseg.imaging import read_label_map
from medseg.inference import decoding, onecase
from medseg.inference.cases import InferCase
from medseg.inference.decoding import CaseReader
from medseg.inference.engine import Engine
from medseg.inference.memory import MemoryPrediction
from medseg.inference.onecase import infer_case
from medseg.inference.outputs import OutputSpec
from medseg.inference.shards import Shard
from medseg.inference.stage import RunOptions, infer_folder, run_infer, terms_of
from medseg.preparation.case import load_case
from tests.inference.stand_ins import threshold_model
from tests.synthetic import GRIDS, dice, scan, write_scan

SOLID = [grid for grid in GRIDS if grid != "picture"]


QUICK = InferSection(mirror=False, precision="float32")


def engine_of(*models, section=QUICK, **plan):
    return Engine(models or [threshold_model(**plan)], section, device=torch.device("cpu"))


def some_cases(folder, count=3, grid="ras"):
    cases = []
    for number in range(count):
        image, _ = write_scan(scan(grid, seed=number), folder, case_id=f"case_{number}")
        cases.append(InferCase(id=f"case_{number}", images=(image,)))
    return cases


def hashes(folder):
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def count_reads(monkeypatch):
    """Names of the scans that were opened."""
    opened = []
    load_case = decoding.load_case

    def counted(images, channels):
        opened.append(images[0].name)
        return load_case(images, channels)

    monkeypatch.setattr(decoding, "load_case", counted)
    return opened


@pytest.mark.parametrize("grid", SOLID)
def test_masks_lie_on_the_scans_own_grid(tmp_path, grid):
    made = scan(grid)
    image, _ = write_scan(made, tmp_path)
    spacing = tuple(float(v) for v in np.linalg.norm(made.affine[:3, :3], axis=0))
    # The plan's spacing is in oriented axes; the scan's own keeps every voxel where it is.
    codes = nib.aff2axcodes(made.affine)
    order = [next(k for k, code in enumerate(codes) if code in pair) for pair in ("LR", "PA", "IS")]
    engine = engine_of(spacing=tuple(spacing[k] for k in order))
    (report,) = run_infer(engine, [InferCase(id="case", images=(image,))], output=tmp_path / "out")

    assert report.status == "ok"
    wanted, found = nib.load(image), nib.load(tmp_path / "out" / "case.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), made.labels)
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found.affine, wanted.affine)
    for code in ("qform_code", "sform_code", "xyzt_units"):
        assert found.header[code] == wanted.header[code]
    assert found.get_data_dtype() == np.uint8


@pytest.mark.parametrize("grid", ["ras", "oblique_flipped", "permuted_flipped", "anisotropic"])
def test_masks_are_resampled_back(tmp_path, grid):
    made = scan(grid)
    image, _ = write_scan(made, tmp_path)
    engine = engine_of(spacing=(0.8, 0.9, 1.7))
    list(run_infer(engine, [InferCase(id="case", images=(image,))], output=tmp_path / "out"))
    found = read_label_map(tmp_path / "out" / "case.nii.gz")
    assert found.shape == made.shape
    assert min(dice(found.array, made.labels, value) for value in (1, 2)) > 0.9


def test_pictures_give_pictures(tmp_path):
    made = scan("picture")
    image, labels = write_scan(made, tmp_path, suffix=".png")
    engine = engine_of(low=50.0, high=100.0, dimensions=2, patch=(16, 16, 1))
    here = RunOptions(isolation="never")
    (report,) = run_infer(engine, [InferCase(id="case", images=(image,))], output=tmp_path / "out", options=here)
    assert report.output == "case.png"
    assert report.volume_ml == {}
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "case.png").array, read_label_map(labels).array)


def test_masks_hold_the_manifests_values(tmp_path):
    cases = some_cases(tmp_path, 1)
    engine = engine_of(labels={"background": (0,), "organ": (7, 8), "lesion": (300,)})
    (report,) = run_infer(engine, cases, output=tmp_path / "out")
    made, found = scan("ras"), read_label_map(tmp_path / "out" / report.output)
    np.testing.assert_array_equal(found.array, np.array([0, 7, 300])[made.labels])


def test_reports_measure_the_mask(tmp_path):
    made = scan("lps")
    image, _ = write_scan(made, tmp_path)
    engine = engine_of(spacing=(0.9, 0.9, 1.4))
    (report,) = run_infer(engine, [InferCase(id="case", images=(image,))], output=tmp_path / "out")
    organ = int((made.labels == 1).sum())
    assert report.voxels["organ"] == organ
    assert report.volume_ml["organ"] == pytest.approx(organ * 0.9 * 0.9 * 1.4 / 1000)
    assert report.touches_border == {"organ": False, "lesion": False}
    assert set(report.seconds) == {"read", "compute", "write"}
    assert report.sha256 == sha256_file(tmp_path / "out" / "case.nii.gz")


def test_a_second_run_keeps_everything_and_opens_nothing(tmp_path, count_reads):
    cases, output = some_cases(tmp_path), tmp_path / "out"
    first = list(run_infer(engine_of(), cases, output=output))
    before = hashes(output)
    count_reads.clear()
    second = list(run_infer(engine_of(), cases, output=output))
    assert [report.status for report in second] == ["kept"] * 3
    assert [report.voxels for report in second] == [report.voxels for report in first]
    assert count_reads == []
    assert hashes(output) == before


@pytest.mark.parametrize(
    "harm", ["mask gone", "mask cut", "mask edited", "sidecar gone", "sidecar cut", "scan changed"]
)
def test_what_does_not_match_is_made_again(tmp_path, count_reads, harm):
    cases, output = some_cases(tmp_path), tmp_path / "out"
    list(run_infer(engine_of(), cases, output=output))
    before = hashes(output)
    count_reads.clear()
    mask, sidecar = output / "case_1.nii.gz", output / "case_1.nii.gz.sidecar.json"
    if harm == "mask gone":
        mask.unlink()
    elif harm == "mask cut":
        mask.write_bytes(mask.read_bytes()[:-20])
    elif harm == "mask edited":
        shutil.copy(output / "case_0.nii.gz", mask)
    elif harm == "sidecar gone":
        sidecar.unlink()
    elif harm == "sidecar cut":
        sidecar.write_text(sidecar.read_text()[:40])
    else:
        write_scan(scan("ras", seed=9), tmp_path, case_id="case_1")
    again = list(run_infer(engine_of(), cases, output=output))
    assert [report.status for report in again] == ["kept", "ok", "kept"]
    assert count_reads == ["case_1.nii.gz"]
    assert (hashes(output) == before) is (harm != "scan changed")


@pytest.mark.parametrize(
    "other",
    [
        lambda: engine_of(threshold_model(sha256="b" * 64)),
        lambda: engine_of(section=InferSection(overlap=0.25)),
        lambda: engine_of(section=InferSection(mirror=True)),
        lambda: engine_of(threshold_model(), threshold_model(sha256="b" * 64)),
    ],
)
def test_another_model_or_setting_makes_masks_again(tmp_path, other):
    cases, output = some_cases(tmp_path, 2), tmp_path / "out"
    list(run_infer(engine_of(), cases, output=output))
    assert [report.status for report in run_infer(other(), cases, output=output)] == ["ok", "ok"]


def test_which_cases_are_asked_for_does_not_make_masks_again(tmp_path):
    cases, output = some_cases(tmp_path, 2), tmp_path / "out"
    list(run_infer(engine_of(section=InferSection(cases="validation")), cases, output=output))
    again = list(run_infer(engine_of(section=InferSection(cases="all")), cases, output=output))
    assert [report.status for report in again] == ["kept", "kept"]


def test_bad_cases_are_passed_over(tmp_path):
    cases = some_cases(tmp_path, 4)
    cases[1].images[0].write_bytes(cases[1].images[0].read_bytes()[:-300])
    missing = InferCase(id="missing", images=(tmp_path / "none.nii.gz",))
    known = InferCase(id="known", images=(), fault="known: is outside the data root; move it")
    mixed = [cases[0], cases[1], missing, cases[2], known, cases[3]]
    reports = list(run_infer(engine_of(), mixed, output=tmp_path / "out"))

    assert [report.id for report in reports] == [case.id for case in mixed]
    assert [report.status for report in reports] == ["ok", "refused", "refused", "ok", "refused", "ok"]
    assert "case_1.nii.gz" in reports[1].reason
    assert "none.nii.gz: can't be read (No such file or directory)" in reports[2].reason
    assert reports[4].reason == "known: is outside the data root; move it"
    assert all(str(tmp_path) not in report.reason for report in reports if report.reason)

    clean = tmp_path / "clean"
    list(run_infer(engine_of(), [cases[0], cases[2], cases[3]], output=clean))
    assert hashes(clean) == hashes(tmp_path / "out")


def test_a_fault_of_the_network_is_one_cases_fault(tmp_path, monkeypatch):
    engine, calls = engine_of(), []
    scores = engine.scores

    def sometimes(array):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return scores(array)

    monkeypatch.setattr(engine, "scores", sometimes)
    reports = list(run_infer(engine, some_cases(tmp_path), output=tmp_path / "out"))
    assert [report.status for report in reports] == ["ok", "failed", "ok"]
    assert reports[1].reason.startswith("case_1: ended in RuntimeError")


def test_a_lost_device_stops_the_run(tmp_path, monkeypatch):
    engine = engine_of()

    def lost(_array):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    monkeypatch.setattr(engine, "scores", lost)
    with pytest.raises(EnvironmentFault, match=r"device: stopped working \(an illegal memory access was encountered\)"):
        list(run_infer(engine, some_cases(tmp_path), output=tmp_path / "out"))


def test_another_number_of_channels_is_refused(tmp_path):
    reports = list(run_infer(engine_of(channels=2), some_cases(tmp_path, 1), output=tmp_path / "out"))
    assert reports[0].status == "refused"


def test_a_scan_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    cases = some_cases(tmp_path, 2)
    load_case = decoding.load_case

    def meddle(images, channels):
        volume = load_case(images, channels)
        if images[0].name.startswith("case_0"):
            write_scan(scan("ras", seed=5), tmp_path, case_id="case_0")
        return volume

    monkeypatch.setattr(decoding, "load_case", meddle)
    reports = list(run_infer(engine_of(), cases, output=tmp_path / "out"))
    assert [report.status for report in reports] == ["refused", "ok"]
    assert "was changed while it was read" in reports[0].reason


def test_a_fault_of_the_output_stops_the_run(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise EnvironmentFault("case_0.nii.gz: no space left to write it, 0 bytes free; make room and run again")

    monkeypatch.setattr(onecase, "write_outputs", full)
    with pytest.raises(EnvironmentFault, match="no space left"):
        list(run_infer(engine_of(), some_cases(tmp_path), output=tmp_path / "out"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "write"))]


def test_two_masks_of_one_name_are_refused_before_anything_is_written(tmp_path):
    (case,) = some_cases(tmp_path, 1)
    with pytest.raises(UsageError, match=r"case_0.nii.gz: would be the mask of"):
        list(run_infer(engine_of(), [case, case], output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_left_early_leaves_whole_masks_and_no_threads(tmp_path):
    cases, output = some_cases(tmp_path, 5), tmp_path / "out"
    run = run_infer(engine_of(), cases, output=output)
    assert next(run).id == "case_0"
    run.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "write"))]
    for mask in output.glob("*.nii.gz"):
        read_label_map(mask)
    reports = list(run_infer(engine_of(), cases, output=output))
    assert all(report.good for report in reports)
    straight = tmp_path / "straight"
    list(run_infer(engine_of(), cases, output=straight))
    assert hashes(output) == hashes(straight)


def test_a_sidecar_whose_numbers_are_none_counts_for_nothing(tmp_path):
    cases, output = some_cases(tmp_path, 1), tmp_path / "out"
    list(run_infer(engine_of(), cases, output=output))
    path = output / "case_0.nii.gz.sidecar.json"
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | {"extra": {"voxels": "many", "warnings": 3}}))
    assert [report.status for report in run_infer(engine_of(), cases, output=output)] == ["ok"]
    assert path.read_bytes() == before


def test_masks_never_take_their_scans_places(tmp_path):
    (case,) = some_cases(tmp_path, 1)
    folder = case.images[0].parent
    with pytest.raises(UsageError, match="is a scan of this run and would be a mask's file"):
        infer_folder(engine_of(), [case], output=folder)
    assert [path.name for path in folder.iterdir()] == ["case_0.nii.gz"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_names_that_are_no_utf8_stop_nothing(tmp_path, caplog, suffix):
    odd = os.fsdecode(b"m\xfcde\n")
    good, _ = write_scan(scan("ras"), tmp_path, case_id=f"{odd}good", suffix=suffix)
    bad = good.with_name(f"{odd}bad{suffix}")
    bad.write_bytes(good.read_bytes()[:3000])
    cases = [InferCase(id="good", images=(good,)), InferCase(id="bad", images=(bad,))]
    statuses = [report.status for report in infer_folder(engine_of(), cases, output=tmp_path / "out")]
    assert statuses == ["ok", "refused"]
    line = json.loads((tmp_path / "out" / "report.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert line["reason"].startswith(f"m\\udcfcde\\nbad{suffix}: ")
    assert "m\\udcfcde\\nbad" in (tmp_path / "out" / "report.csv").read_text(encoding="utf-8")


def test_files_that_no_run_wrote_are_not_replaced(tmp_path):
    cases, output = some_cases(tmp_path, 2), tmp_path / "drawn"
    output.mkdir()
    drawn = output / "case_1.nii.gz"
    drawn.write_bytes(b"drawn by hand")
    with pytest.raises(UsageError, match=r"case_1.nii.gz: is there and was not written by medseg infer"):
        infer_folder(engine_of(), cases, output=output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {"case_1.nii.gz": b"drawn by hand"}
    infer_folder(engine_of(), cases, output=output, options=RunOptions(overwrite=True))
    # Now the folder is a run's, and a mask that lost its sidecar is made again.
    (output / "case_1.nii.gz.sidecar.json").unlink()
    assert [report.status for report in infer_folder(engine_of(), cases, output=output)] == ["kept", "ok"]


def test_the_log_says_whose_scan_was_refused(tmp_path, caplog):
    (case,) = some_cases(tmp_path, 1)
    # "s" occurs in the reason, but not as a name.
    infer_folder(engine_of(spacing=(0.01, 0.01, 0.01)), [replace(case, id="s")], output=tmp_path / "out")
    assert "refused: s: scan: would have" in caplog.text


def test_a_mask_without_sidecar_and_left_temporaries_are_cleared_up(tmp_path):
    cases, output = some_cases(tmp_path, 2), tmp_path / "out"
    list(run_infer(engine_of(), cases, output=output))
    before = hashes(output)
    (output / "case_0.nii.gz.sidecar.json").unlink()
    # Process ids end at 2^22, so this one is dead.
    (output / f".tmp-{stage_host()}-9999999-0a0b0c0d-case_1.nii.gz").write_bytes(b"half a mask")
    list(run_infer(engine_of(), cases, output=output))
    assert hashes(output) == before


def stage_host():
    import socket

    return "".join(c for c in socket.gethostname() if c.isalnum())[:20] or "host"


def test_an_ensemble_averages_scores(tmp_path):
    # Alone the models would say "organ" from 100 and from 300 on; their mean says it from 200 on.
    cases = some_cases(tmp_path, 1)
    models = [threshold_model(low=low, high=high) for low, high in ((100.0, 300.0), (300.0, 500.0))]
    (report,) = run_infer(engine_of(*models), cases, output=tmp_path / "out")
    found = read_label_map(tmp_path / "out" / report.output)
    np.testing.assert_array_equal(found.array, scan("ras").labels)


def test_one_broken_case_among_many_changes_no_other(tmp_path):
    cases = some_cases(tmp_path, 12)
    cases[7].images[0].write_bytes(b"no scan")
    reports = list(run_infer(engine_of(), cases, output=tmp_path / "out"))
    assert [report.id for report in reports if not report.good] == ["case_7"]
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 11


def test_overwrite_makes_whole_masks_again(tmp_path, count_reads):
    cases, output = some_cases(tmp_path, 2), tmp_path / "out"
    list(run_infer(engine_of(), cases, output=output))
    before = hashes(output)
    again = list(run_infer(engine_of(), cases, output=output, options=RunOptions(overwrite=True)))
    assert [report.status for report in again] == ["ok", "ok"]
    assert len(count_reads) == 4
    assert hashes(output) == before


def test_another_format_is_another_mask(tmp_path):
    cases, output = some_cases(tmp_path, 1), tmp_path / "out"
    options = RunOptions(spec=OutputSpec(layout="per_structure"))
    for status in ("ok", "kept"):
        (report,) = run_infer(engine_of(), cases, output=output, options=options)
        assert (report.status, report.output) == (status, "case_0/organ.nii.gz")
    lesion = output / "case_0" / "lesion.nii.gz"
    np.testing.assert_array_equal(read_label_map(lesion).array, scan("ras").labels == 2)
    lesion.write_bytes(lesion.read_bytes()[:-9])
    assert [report.status for report in run_infer(engine_of(), cases, output=output, options=options)] == ["ok"]


def test_queues_hold_no_more_than_there_is_memory_for(tmp_path, monkeypatch):
    engine, at_work, most = engine_of(), [], []
    monkeypatch.setattr(engine, "peak_bytes", lambda *_: MemoryPrediction(host_bytes=600))
    scores, classes = engine.scores, engine.classes

    def counted(array):
        at_work.append(1)
        most.append(len(at_work))
        return scores(array)

    def slow(found, grid):
        time.sleep(0.05)
        result = classes(found, grid)
        at_work.pop()
        return result

    monkeypatch.setattr(engine, "scores", counted)
    monkeypatch.setattr(engine, "classes", slow)
    options = RunOptions(memory_bytes=1000, writers=3)
    reports = list(run_infer(engine, some_cases(tmp_path, 4), output=tmp_path / "out", options=options))
    assert [report.status for report in reports] == ["ok"] * 4
    assert max(most) == 1
    assert all(report.peak_memory_bytes["host"] > 10_000_000 for report in reports)


def test_what_no_state_of_the_machine_could_hold_is_not_opened(tmp_path, monkeypatch, count_reads):
    engine = engine_of()
    monkeypatch.setattr(engine, "peak_bytes", lambda *_: MemoryPrediction(host_bytes=10**15))
    (report,) = run_infer(engine, some_cases(tmp_path, 1), output=tmp_path / "out")
    assert report.status == "refused"
    assert report.reason.startswith("case_0: a scan of 30x34x26 voxels takes 1000000.0 GB, expected at most")
    assert count_reads == []


def test_two_shards_make_one_folder(tmp_path):
    cases, output = some_cases(tmp_path, 3), tmp_path / "out"
    parts = [infer_folder(engine_of(), cases, output=output, options=RunOptions(shard=Shard(n, 2))) for n in (1, 0)]
    assert [[report.id for report in part] for part in parts] == [["case_1"], ["case_0", "case_2"]]
    lines = (output / "report.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["case_0", "case_1", "case_2"]
    assert [report.status for report in infer_folder(engine_of(), cases, output=output)] == ["kept"] * 3


def test_one_case_alone_is_what_a_run_makes_of_it(tmp_path):
    cases = some_cases(tmp_path, 2)
    cases[1].images[0].write_bytes(b"no scan")
    list(run_infer(engine_of(), cases, output=tmp_path / "out"))
    terms = terms_of(engine_of(), output=tmp_path / "alone", reader=CaseReader())
    good, bad = (infer_case(terms, case) for case in cases)
    assert (good.status, bad.status) == ("ok", "refused")
    assert hashes(tmp_path / "alone") == hashes(tmp_path / "out")


def crashing(item):
    """A decoder that some files bring down; in a process of its own, or this test run would end here."""
    images, channels = item
    if images[0].name.startswith("case_1"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return load_case(images, channels)


@pytest.mark.slow
def test_a_decoder_that_crashes_costs_its_case(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_load", crashing)
    cases = some_cases(tmp_path, 3)
    reports = list(run_infer(engine_of(), cases, output=tmp_path / "out", options=RunOptions(isolation="always")))
    assert [report.status for report in reports] == ["ok", "failed", "ok"]
    assert reports[1].reason == "case_1: brought its reader down (SIGSEGV); check the file"
    here = tmp_path / "here"
    list(run_infer(engine_of(), [cases[0], cases[2]], output=here))
    assert hashes(here) == hashes(tmp_path / "out")
