"""``medseg.load(model).predict(scan)``, the same masks as the command's, and a package that stays light."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import medseg
from medseg.config.sections import InferSection
from medseg.errors import EnvironmentFault, ModelError, ScanError, UsageError
from medseg.inference.cases import InferCase
from medseg.inference.engine import Engine
from medseg.inference.model import load_model
from medseg.inference.predictor import Predictor
from medseg.inference.stage import run_infer
from medseg.preparation.case import prepare_image
from tests.inference.stand_ins import plan_for, threshold_model, write_model
from tests.synthetic import dice, scan, write_scan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("trained") / "model")


def test_a_file_a_list_and_a_volume_give_the_commands_mask(tmp_path, folder):
    made = scan("oblique_flipped")
    image, _ = write_scan(made, tmp_path)
    predictor = medseg.load(folder)
    label_map = predictor.predict(str(image), output=tmp_path / "mask.nii.gz")
    assert label_map.shape == made.shape
    np.testing.assert_allclose(label_map.affine, made.affine, atol=1e-5)
    assert set(np.unique(label_map.array)) <= {0, 1, 2}
    for other in ([image], medseg.read_volume(image)):
        np.testing.assert_array_equal(predictor.predict(other).array, label_map.array)
    np.testing.assert_array_equal(medseg.read_label_map(tmp_path / "mask.nii.gz").array, label_map.array)

    engine = Engine([load_model(folder)], InferSection(mirror=False, precision="float32"), device=CPU)
    list(run_infer(engine, [InferCase(id="case", images=(image,))], output=tmp_path / "out"))
    assert (tmp_path / "out" / "case.nii.gz").read_bytes() == (tmp_path / "mask.nii.gz").read_bytes()
    assert predictor.class_names == ("background", "organ", "lesion")


def test_a_planar_model_on_a_picture(tmp_path):
    image, _ = write_scan(scan("picture"), tmp_path, suffix=".png")
    predictor = medseg.load(write_model(tmp_path / "model", dimensions=2))
    assert predictor.predict(image, output=tmp_path / "mask.png").shape == (48, 40, 1)
    assert (tmp_path / "mask.png").exists()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["oblique_flipped", "permuted_flipped", "anisotropic"])
def test_a_planar_model_on_volumes_goes_slice_by_slice(name, axis):
    """A network that tells the classes by grey value alone draws the scan's own labels, whichever way it is sliced."""
    made = scan(name)
    patch = tuple(1 if a == axis else 16 for a in range(3))
    own = prepare_image(made.volume, plan_for())[1].spacing_xyz_mm
    # Along the stack the plan's spacing does not count.
    spacing = tuple(99.0 if a == axis else 0.9 * s for a, s in enumerate(own))
    model = threshold_model(spacing, dimensions=2, patch=patch, through_plane_axis=axis)
    drawn = Predictor([model], device=CPU, section=InferSection(precision="float32")).predict(made.volume)
    np.testing.assert_array_equal(drawn.affine, made.affine)
    for value in (1, 2):
        assert dice(drawn.array, made.labels, value) > 0.95


def test_what_does_not_fit_is_refused(tmp_path, folder):
    predictor = medseg.load(folder)
    colour = medseg.Volume(np.zeros((3, 8, 8, 8), np.float32), np.eye(4))
    with pytest.raises(ScanError, match="has 3 channels, expected 1"):
        predictor.predict(colour)
    with pytest.raises(ScanError, match=r"none.nii"):
        predictor.predict(tmp_path / "none.nii")
    with pytest.raises(UsageError, match="empty list"):
        predictor.predict([])
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        medseg.load(tmp_path)
    with pytest.raises(EnvironmentFault, match="--device is 'gpu'"):
        medseg.load(folder, device="gpu")


def test_an_ensemble_of_strangers_is_refused():
    models = [threshold_model((1.0, 1.0, 1.0)), threshold_model((1.0, 1.0, 2.0), name="other")]
    with pytest.raises(ModelError, match=r"other: spacing_xyz_mm of its plan is \(1.0, 1.0, 2.0\), expected"):
        Engine(models, InferSection(), device=CPU)
    with pytest.raises(ModelError, match="no model was given"):
        Engine([], InferSection(), device=CPU)


def test_the_public_names_are_sorted_there_and_documented():
    assert medseg.__all__ == sorted(medseg.__all__)
    assert dir(medseg) == medseg.__all__
    for name in medseg.__all__:
        assert getattr(medseg, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        medseg.predict  # noqa: B018


def test_the_public_metrics_on_paper():
    # Two 2x2x2 cubes in voxels of 1x1x3 mm, one shifted by a voxel along z: half of each is shared.
    prediction, reference = np.zeros((2, 6, 6, 6), bool)
    prediction[2:4, 2:4, 2:4] = reference[2:4, 2:4, 3:5] = True
    assert medseg.dice(medseg.count_overlap(prediction, reference)) == 0.5
    distances = medseg.surface_distances(prediction, reference, spacing_mm=(1.0, 1.0, 3.0))
    assert medseg.hausdorff(distances) == medseg.hausdorff_percentile(distances, percent=100) == 3.0
    assert medseg.average_symmetric(distances) == 1.5
    assert medseg.normalised_surface_dice(distances, tolerance_mm=1.0) == 0.5
    scores = medseg.score_masks(prediction, reference, spacing_mm=(1.0, 1.0, 3.0))
    assert scores["dice"] == 0.5


def test_importing_the_package_brings_in_next_to_nothing():
    code = "import sys, medseg; print([m for m in ('numpy', 'torch', 'monai', 'pydantic') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"
