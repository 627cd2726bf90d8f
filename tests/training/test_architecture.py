import pytest

from medseg.config.network_sections import DeepLabSection, FCNSection, MonaiSection, UNetSection
from medseg.errors import ConfigError, InputError
from medseg.training.architecture import architecture_of, pyramid_rates
from tests.training.overfit import toy_plan


def test_the_plan_fills_what_the_config_leaves():
    plan = toy_plan(3, residual=True, convolutions=(1, 3, 4), decoder_convolutions=(1, 1))
    values = architecture_of(UNetSection(norm="batch"), plan)
    assert values["residual"] is True
    assert values["convolutions"] == [1, 3, 4]
    assert values["decoder_convolutions"] == [1, 1]
    assert values["norm"] == "batch"
    own = architecture_of(UNetSection(residual=False, convolutions=1, features=(2, 4, 6)), plan)
    assert (own["residual"], own["convolutions"], own["features"]) == (False, 1, [2, 4, 6])
    assert architecture_of(UNetSection(), toy_plan(3))["convolutions"] == 2  # plans from before the field


def test_lists_that_do_not_fit_the_stages_are_named():
    plan = toy_plan(3, convolutions=(1, 3, 4))
    with pytest.raises(InputError, match="features has 2 stages, the plan 3"):
        architecture_of(UNetSection(features=(2, 4)), plan)
    with pytest.raises(
        InputError, match=r"convolutions has 2 entries, expected 3 for 3 stages; set network\.convolutions"
    ):
        architecture_of(UNetSection(convolutions=(1, 2)), plan)
    strides, kernels = ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))
    own = architecture_of(UNetSection(features=(2, 4), strides=strides, kernel_sizes=kernels), plan)
    assert own["convolutions"] == 2  # the plan's counts are for its own stages
    with pytest.raises(ValueError, match="must have one entry per stage each"):
        UNetSection(features=(2, 4), convolutions=(1, 2, 3))


def test_a_slice_axis_goes_last():
    plan = toy_plan(
        2, through_plane_axis=0, patch_size_xyz=(1, 16, 32), median_shape_xyz=(5, 16, 32),
        strides=((1, 1, 1), (1, 2, 2), (1, 1, 2)), kernel_sizes=((1, 3, 3), (1, 3, 3), (1, 1, 3)),
    )  # fmt: skip
    values = architecture_of(FCNSection(encoder="vgg11", width=2), plan)
    assert values["strides"] == [[1, 1, 1], [2, 2, 1], [1, 2, 1]]
    assert values["kernel_sizes"] == [[3, 3, 1], [3, 3, 1], [1, 3, 1]]
    assert architecture_of(MonaiSection(name="UNet"), plan)["arguments"]["strides"] == [[2, 2], [1, 2]]
    with pytest.raises(InputError, match=r"strides has \[2, 2, 1\], expected 1 along x"):
        architecture_of(UNetSection(strides=((1, 1, 1), (2, 2, 1), (1, 2, 2))), plan)


@pytest.mark.parametrize(
    ("patch", "poolings", "rates"),
    [
        ((528, 528), 4, [6, 12, 18]),
        ((1024, 1024), 5, [6, 12, 18]),
        ((256, 256), 4, [3, 6, 9]),
        ((40, 56), 3, [1, 2, 3]),
    ],
)
def test_rates_shrink_with_the_map(patch, poolings, rates):
    # 528 / 16 = 33, for which the rates were made; 256 / 16 = 16 is about half of it; five stages stop at 1/16
    assert pyramid_rates(patch, [[1, 1, 1], *[[2, 2, 1]] * poolings]) == rates


def test_rates_of_the_config_stand():
    assert architecture_of(DeepLabSection(encoder="resnet18", width=2, rates=(2, 4)), toy_plan(2))["rates"] == [2, 4]


def test_a_patch_the_network_can_not_take_stops_before_training():
    with pytest.raises(ConfigError, match=r"UNet can't take patches of \[18, 16, 16\] .*; \[20, 16, 16\] would do"):
        architecture_of(MonaiSection(name="UNet"), toy_plan(3, patch_size_xyz=(18, 16, 16)))
