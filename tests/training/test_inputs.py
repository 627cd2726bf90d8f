"""What the config's own values do to a plan that was made before."""

from pathlib import Path

import pytest

from medseg.config.network_sections import UNetSection
from medseg.config.sections import Config, DataSection, PrepareSection
from medseg.config.train_sections import TrainSection
from medseg.errors import InputError, UsageError
from medseg.manifest import Case, Channel, Manifest
from medseg.preparation.store import PreparedData
from medseg.training.architecture import architecture_of
from medseg.training.inputs import training_inputs, with_overrides
from tests.preparation.builders import plan_for
from tests.training.small_run import CASES, write_prepared


def coronal_plan():
    return plan_for(
        (1.0, 4.0, 1.0),
        dimensions=2,
        through_plane_axis=1,
        patch_size_xyz=(32, 1, 24),
        strides=((1, 1, 1), (2, 1, 2)),
        kernel_sizes=((3, 1, 1), (3, 1, 3)),
    )


def overridden(plan, **section):
    prepared = PreparedData(Path("prepared"), plan, {}, "0" * 64)
    return with_overrides(prepared, PrepareSection(**section)).plan


def test_patch_and_batch_of_the_config_come_before_the_plans():
    plan = overridden(plan_for(), patch_size_xyz=(16, 24, 8), batch_size=5)
    assert (plan.patch_size_xyz, plan.batch_size) == ((16, 24, 8), 5)
    assert overridden(plan_for()) == plan_for()


def test_a_patch_of_slices_stays_a_slice():
    assert overridden(coronal_plan(), patch_size_xyz=(16, 1, 16)).patch_size_xyz == (16, 1, 16)
    with pytest.raises(InputError, match=r"patch_size_xyz: is \[16, 16, 1\], expected 1 along y; the plan is 2D"):
        overridden(coronal_plan(), patch_size_xyz=(16, 16, 1))


def test_the_licence_is_read_from_beside_the_config(tmp_path):
    prepared = write_prepared(tmp_path / "prepared")
    cases = tuple(Case(id=name, patient=name, images=("x.nii.gz",), fold=n) for n, name in enumerate(CASES))
    manifest = Manifest(name="x", licence="CC0", channels=(Channel(name="MR"),), labels={}, training=cases)
    config = Config(name="x", data=DataSection(manifest="m.json"), train=TrainSection(licence="terms/L.txt"))
    with pytest.raises(UsageError, match=r"^train\.licence: L\.txt is no file, expected a text file"):
        training_inputs(config, manifest, prepared, config_folder=tmp_path)
    (tmp_path / "terms").mkdir()
    (tmp_path / "terms" / "L.txt").write_text("Mine.\n")
    given = training_inputs(config, manifest, prepared, config_folder=tmp_path)
    assert (given.licence, given.data_licence) == (b"Mine.\n", "CC0")


def test_a_2d_network_has_the_axes_of_its_slices():
    values = architecture_of(UNetSection(), coronal_plan())
    assert (values["dimensions"], values["strides"]) == (2, [[1, 1, 1], [2, 2, 1]])
    assert values["kernel_sizes"] == [[3, 1, 1], [3, 3, 1]]
    thick = UNetSection(strides=((1, 1, 1), (2, 2, 1)), kernel_sizes=((3, 1, 3), (3, 1, 3)), features=(4, 8))
    with pytest.raises(InputError, match=r"strides has \[2, 2, 1\], expected 1 along y"):
        architecture_of(thick, coronal_plan())
