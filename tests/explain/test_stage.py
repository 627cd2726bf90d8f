"""``medseg explain`` as people call it: files on the scans' own grids, resumed, of one model, several, and other kinds."""

import csv
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from medseg.cli.explain import main
from medseg.config.sections import InferSection
from medseg.durable import sha256_file
from medseg.errors import UsageError
from medseg.explain.case import ExplainOptions
from medseg.explain.members import channel_of, members_of, region_of_class
from medseg.explain.stage import COLUMNS, exit_code, explain_folder
from medseg.imaging import Regions, write_label_map
from medseg.imaging.volume import LabelMap
from medseg.inference.cases import InferCase
from medseg.inference.ensemble import build_engine
from medseg.inference.model import load_models, save_ensemble
from medseg.runner.sidecar import read_sidecar
from tests.inference.stand_ins import plan_for, threshold_model, write_model
from tests.inference.test_cascade import stages
from tests.synthetic import affine_of, rotation, scan, scan_on, write_scan

CPU = torch.device("cpu")
QUICK = InferSection(mirror=False, precision="float32", contract="off", quality=False)


def maker_of(*models, section=QUICK):
    return build_engine(models, section, device=CPU)


def rows_of(folder):
    with (folder / "explain.csv").open() as stream:
        return list(csv.DictReader(stream))


SMALL = scan_on((14, 15, 16), affine_of((1.1, 0.9, 1.0), rotation(12, -17, 25)))
"""Two windows at most per axis: what maps cost goes by the windows that see a region."""


def case_of(tmp_path, made=None):
    image, labels = write_scan(made or scan("oblique_flipped"), tmp_path)
    return InferCase(id="case", images=(image,)), labels


def test_an_occlusion_map_lies_where_the_structure_is(tmp_path):
    # A network that looks at each voxel by itself: only what covers the organ can cost it anything.
    made = scan("oblique_flipped")
    case, _ = case_of(tmp_path)
    spacing = tuple(float(v) for v in np.linalg.norm(made.affine[:3, :3], axis=0))
    options = ExplainOptions(classes=("lesion",), methods=("occlusion",), box_mm=5.0, stride_mm=5.0, fill="lowest")
    maker = maker_of(threshold_model(spacing, sha256="1" * 64))
    (report,) = explain_folder(maker, [case], output=tmp_path / "maps", options=options)
    assert report.good
    image = nib.load(tmp_path / "maps" / "case_lesion_occlusion.nii.gz")
    np.testing.assert_allclose(image.affine, made.affine, atol=1e-4)
    values = image.get_fdata()
    assert values.shape == made.shape
    assert values[made.labels == 2].mean() > 5 * np.abs(values[made.labels == 0]).mean()
    (row,) = rows_of(tmp_path / "maps")
    assert tuple(row) == COLUMNS
    assert (row["status"], row["box_mm"], row["layer"]) == ("ok", "5.0", "")
    assert float(row["score"]) > 0.99
    assert float(row["inside"]) > 0.5
    assert int(row["region_voxels"]) == pytest.approx(np.count_nonzero(made.labels == 2), rel=0.05)


def test_done_maps_are_kept_and_other_settings_make_them_anew(tmp_path, capsys):
    image, labels = write_scan(SMALL, tmp_path)
    model, out = write_model(tmp_path / "model"), tmp_path / "maps"
    command = [str(image), "--model", str(model), "--output", str(out), "--device", "cpu", "--region", str(labels)]
    assert main([*command, "--class", "organ", "--png", "--sanity"]) == 0
    assert "1 maps made, 0 kept of 1 cases" in capsys.readouterr().out
    path = out / "case_organ_gradcam.nii.gz"
    values = nib.load(path).get_fdata()
    assert values.shape == SMALL.shape
    assert values.min() >= 0
    assert values.max() > 0.5
    sidecar = read_sidecar(path)
    assert set(sidecar.origin.inputs) == {"image_0000", "region"}
    assert {"models", "explain"} <= set(sidecar.origin.settings)
    assert sidecar.extra["layer"] == "encoder.1"
    assert -1 <= sidecar.extra["shuffled_correlation"] <= 1
    assert (out / "case_organ_gradcam.png").read_bytes()[:4] == b"\x89PNG"
    first = sha256_file(path)
    assert main([*command, "--class", "organ", "--png", "--sanity"]) == 0
    assert "0 maps made, 1 kept of 1 cases" in capsys.readouterr().out
    assert main([*command, "--class", "organ", "--layer", "encoder.0"]) == 0
    assert "1 maps made, 0 kept" in capsys.readouterr().out
    assert sha256_file(path) != first
    path.write_bytes(path.read_bytes()[:-10])
    assert main([*command, "--class", "organ", "--layer", "encoder.0", "--region-values", "2"]) == 0
    assert rows_of(out)[0]["region_voxels"] == str(np.count_nonzero(SMALL.labels == 2))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class", "liver"], "--class: is 'liver', expected one of organ, lesion"),
        (["--layer", "bottom"], "--layer: is 'bottom', expected a layer with maps: stem, encoder.0.0.0"),
        (["--region", "none.nii.gz"], "none.nii.gz: no such file or folder"),
        (["--region-values", "1"], "--region-values: needs --region MASK"),
    ],
)
def test_what_makes_no_sense_gives_2(tmp_path, capsys, flags, message):
    image, labels = write_scan(scan("ras"), tmp_path)
    model, out = write_model(tmp_path / "model"), tmp_path / "maps"
    region = [] if "region" in flags[0] else ["--region", str(labels)]
    command = [str(image), "--model", str(model), "--output", str(out), "--device", "cpu"]
    assert main([*command, *region, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_case_that_cannot_be_explained_is_named(tmp_path):
    case, labels = case_of(tmp_path, scan("ras"))
    other = tmp_path / "other.nii.gz"
    write_label_map(LabelMap(np.ones((5, 5, 5), np.uint8), np.eye(4)), other, like=None)
    out = tmp_path / "maps"
    maker = maker_of(threshold_model(high=1e6))
    empty = explain_folder(
        maker, [case], output=out, options=ExplainOptions(methods=("occlusion",), box_mm=20, stride_mm=20)
    )
    assert [row["status"] for row in empty[0].rows] == ["ok", "empty"]
    assert exit_code(empty) == 4
    wrong = explain_folder(maker, [case], output=out, options=ExplainOptions(region=other))
    assert "other.nii.gz: lies on another grid than the scan" in wrong[0].reason
    assert (exit_code(wrong), rows_of(out)[0]["status"]) == (3, "failed")
    flat = explain_folder(maker, [case], output=out, options=ExplainOptions(region=labels, classes=("organ",)))
    assert "its network has no gradients" in flat[0].reason
    folder = explain_folder(maker, [case], output=out, options=ExplainOptions(region=tmp_path / "images"))
    assert folder[0].reason is not None or folder[0].rows
    with pytest.raises(UsageError, match="expected one of organ, lesion"):
        explain_folder(maker, [case], output=out, options=ExplainOptions(classes=("liver",)))


def test_an_ensembles_map_is_the_mean_of_its_members(tmp_path):
    case, labels = case_of(tmp_path, SMALL)
    folders = {f"fold_{seed}": write_model(tmp_path / f"fold_{seed}", seed=seed) for seed in (0, 1)}
    save_ensemble(tmp_path / "both", folders)
    options = ExplainOptions(
        classes=("lesion",), region=labels, methods=("gradcam", "occlusion"), box_mm=20, stride_mm=20
    )

    def maps(folder):
        out = tmp_path / f"maps_{folder.name}"
        explain_folder(maker_of(*load_models(folder)), [case], output=out, options=options)
        return [nib.load(out / f"case_lesion_{method}.nii.gz").get_fdata() for method in options.methods]

    alone = [maps(folder) for folder in folders.values()]
    for number, own in enumerate(maps(tmp_path / "both")):
        np.testing.assert_allclose(own, (alone[0][number] + alone[1][number]) / 2, atol=0.005)


def test_a_picture_and_slices_of_a_volume(tmp_path):
    # A 2D network over a volume: its windows are slices.
    case, labels = case_of(tmp_path, scan("anisotropic"))
    model = write_model(tmp_path / "flat", dimensions=2, through_plane_axis=2)
    options = ExplainOptions(
        classes=("organ",), region=labels, methods=("gradcam", "occlusion"), box_mm=20, stride_mm=20
    )
    (report,) = explain_folder(maker_of(*load_models(model)), [case], output=tmp_path / "maps", options=options)
    assert [row["status"] for row in report.rows] == ["ok", "ok"]
    assert nib.load(tmp_path / "maps" / "case_organ_occlusion.nii.gz").shape == scan("anisotropic").shape


def test_the_second_stage_of_a_cascade_is_explained_with_the_firsts_mask():
    made = scan("oblique_flipped")
    _, second = stages(made)
    maker = maker_of(second)
    array, grid = maker.prepare(made.volume)
    (member,) = members_of(maker, array, grid)
    assert member.array.shape[0] == 3
    assert set(np.unique(member.array[1:])) == {0, 1}
    assert member.filling("lowest")[1:] == (0.0, 0.0)
    # Two configurations side by side have their own grids.
    first, _ = stages(made)
    mixed = maker_of(first, second)
    array, grid = mixed.prepare(made.volume)
    assert [one.model.folder.name for one in members_of(mixed, array, grid)] == ["low", "full"]


class Nested(nn.Module):
    """Two regions, the second inside the first."""

    def forward(self, x):
        return torch.cat([x - 200.0, x - 400.0], dim=1)


def test_of_overlapping_labels_a_region_is_all_combinations_it_is_in(tmp_path):
    labels = {"background": (0,), "organ": (1, 2), "lesion": (2,)}
    regions = Regions(labels)
    assert (channel_of("lesion", tuple(labels), regions), channel_of("lesion", tuple(labels), None)) == (1, 2)
    classes = np.array([[[0, 1, 2]]], np.uint8)
    assert region_of_class(classes, "organ", tuple(labels), regions).tolist() == [[[False, True, True]]]
    assert region_of_class(classes, "organ", tuple(labels), None).tolist() == [[[False, True, False]]]
    case, _ = case_of(tmp_path, scan("ras"))
    model = replace(threshold_model(), network=Nested().eval(), plan=plan_for(labels=labels))
    options = ExplainOptions(
        classes=("organ", "lesion"), methods=("occlusion",), box_mm=20, stride_mm=20, fill="lowest"
    )
    (report,) = explain_folder(maker_of(model), [case], output=tmp_path / "maps", options=options)
    organ, lesion = report.rows
    assert organ["region_voxels"] > lesion["region_voxels"] > 0
    assert (organ["score"], lesion["score"]) == (pytest.approx(1, abs=0.01), pytest.approx(1, abs=0.01))
