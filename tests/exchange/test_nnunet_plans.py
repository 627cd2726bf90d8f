"""Plans by hand: what an axis order does to every list, and what is refused."""

import copy

import pytest

from medseg.errors import ModelError
from medseg.exchange.nnunet_labels import read_labels
from medseg.exchange.nnunet_plans import describe
from medseg.imaging import index_labels

NETWORK = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3, "features_per_stage": [8, 16, 32], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 5], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]],
        "n_conv_per_stage": [1, 2, 3], "n_conv_per_stage_decoder": [4, 5], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    },
}  # fmt: skip
FACTS = {"mean": 80.5, "std": 40.25, "percentile_00_5": -100.0, "percentile_99_5": 300.0}
PLANS = {
    "plans_name": "nnUNetPlans", "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0],
    "image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager",
    "original_median_spacing_after_transp": [5.0, 1.0, 2.0], "original_median_shape_after_transp": [20, 60, 50],
    "foreground_intensity_properties_per_channel": {"0": FACTS, "1": FACTS},
    "configurations": {
        "3d_fullres": {
            "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": [16, 48, 32],
            "median_image_size_in_voxels": [20.0, 60.0, 50.0], "spacing": [5.0, 1.0, 2.0],
            "normalization_schemes": ["CTNormalization", "ZScoreNormalization"], "use_mask_for_norm": [True, True],
            "resampling_fn_data": "resample_data_or_seg_to_shape", "architecture": NETWORK, "batch_dice": True,
        },
        "2d": {
            "inherits_from": "3d_fullres", "patch_size": [48, 32], "spacing": [1.0, 2.0],
            "median_image_size_in_voxels": [60.0, 50.0],
            "architecture": NETWORK | {"arch_kwargs": NETWORK["arch_kwargs"] | {
                "conv_op": "torch.nn.modules.conv.Conv2d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                "kernel_sizes": [[3, 5], [3, 3], [3, 3]], "strides": [[1, 1], [2, 2], [2, 1]],
            }},
        },
    },
}  # fmt: skip
DATASET = {"channel_names": {"0": "CT", "1": "T2"}, "labels": {"background": 0, "tumour": 2, "liver": 1, "ignore": 3}}


def described(configuration="3d_fullres", plans=PLANS, dataset=DATASET, **changes):
    plans = copy.deepcopy(plans)
    plans["configurations"][configuration] |= changes
    return describe(plans, dataset, configuration, norm="instance")


def test_every_list_comes_out_in_our_axis_order():
    # transpose_forward [2, 0, 1] of (z, y, x): nnU-Net's axes are x, z, y.
    own = described()
    assert own.order == (0, 2, 1)
    assert own.plan.spacing_xyz_mm == (5.0, 2.0, 1.0)
    assert own.plan.patch_size_xyz == (16, 32, 48)
    assert own.plan.median_shape_xyz == (20, 50, 60)
    assert own.plan.kernel_sizes[0] == (1, 5, 3)
    assert own.plan.strides == ((1, 1, 1), (1, 2, 2), (2, 1, 2))
    assert own.architecture["order"] == [0, 2, 1]
    assert own.architecture["convolutions"] == [1, 2, 3]
    assert own.architecture["decoder_convolutions"] == [5, 4]  # ours from the top down
    assert own.mirror_axes_xyz((0, 1)) == (0, 2)
    assert own.plan.orientation == "native"


def test_slices_of_a_2d_configuration_lie_along_nnunets_first_axis():
    own = described("2d")
    assert own.plan.slice_axis == 0
    assert own.plan.spacing_xyz_mm == (5.0, 2.0, 1.0)
    assert own.plan.patch_size_xyz == (1, 32, 48)
    assert own.plan.strides == ((1, 1, 1), (1, 2, 2), (1, 1, 2))
    assert own.architecture["kernel_sizes"][0] == [5, 3, 1]  # as the network sees it: y, z
    assert own.architecture["order"] == [1, 0]
    assert own.mirror_axes_xyz((0, 1)) == (1, 2)


def test_pictures_are_told_by_their_made_up_thickness():
    plans = PLANS | {
        "transpose_forward": [0, 1, 2], "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, 256, 320], "image_reader_writer": "NaturalImage2DIO",
    }  # fmt: skip
    own = described("2d", plans=plans, dataset=DATASET | {"channel_names": {"0": "R", "1": "T2"}})
    assert own.plan.of_pictures
    assert own.plan.spacing_xyz_mm == (2.0, 1.0, 1.0)
    assert own.architecture["order"] == [1, 0]


def test_channels_and_labels():
    own = described().plan
    assert [channel.name for channel in own.channels] == ["CT", "T2"]
    ct, mr = own.channels
    assert (ct.scheme, ct.low, ct.high, ct.mean, ct.std, ct.use_mask) == ("ct", -100.0, 300.0, 80.5, 40.25, False)
    assert (mr.scheme, mr.use_mask) == ("zscore", True)
    assert own.labels == {"background": (0,), "liver": (1,), "tumour": (2,)}  # in the order of nnU-Net's outputs
    assert list(own.labels) == ["background", "liver", "tumour"]
    assert own.ignore == 3


def test_plans_from_before_the_architecture_section():
    old = {
        "UNet_class_name": "ResidualEncoderUNet", "UNet_base_num_features": 32, "unet_max_num_features": 100,
        "n_conv_per_stage_encoder": [1, 3, 4], "n_conv_per_stage_decoder": [1, 1],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }  # fmt: skip
    plans = copy.deepcopy(PLANS)
    del plans["configurations"]["3d_fullres"]["architecture"]
    own = described(plans=plans, **old)
    assert own.architecture["features"] == [32, 64, 100]
    assert own.architecture["residual"]
    assert own.architecture["convolutions"] == [1, 3, 4]


def changed_network(**changes):
    return {"architecture": NETWORK | {"arch_kwargs": NETWORK["arch_kwargs"] | changes}}


def without(name):
    """nnU-Net's networks leave out a layer that has no entry."""
    return {"architecture": NETWORK | {"arch_kwargs": {k: v for k, v in NETWORK["arch_kwargs"].items() if k != name}}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"normalization_schemes": ["CTNormalization", "MyNorm"]},
            r"normalization_schemes is MyNorm, expected one of CTN",
        ),
        ({"normalization_schemes": ["CTNormalization"]}, r"expected one per channel of dataset\.json \(2\)"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, r"resampling_fn_data is resample_torch_fornnunet"),
        ({"resampling_fn_probabilities_kwargs": {"order": 0}}, r"probabilities_kwargs is \{'order': 0\}"),
        ({"preprocessor_name": "MyPreprocessor"}, r"preprocessor_name is MyPreprocessor, expected DefaultPreprocessor"),
        ({"architecture": {"network_class_name": "a.b.Primus", "arch_kwargs": {}}}, r"network_class_name is Primus"),
        (changed_network(nonlin="torch.nn.ReLU"), r"arch_kwargs is \{'nonlin': 'ReLU'\}, expected LeakyReLU"),
        (without("nonlin"), r"arch_kwargs is \{'nonlin': 'None'\}, expected LeakyReLU"),
        (without("norm_op"), r"arch_kwargs is \{'norm_op': 'None'\}, expected InstanceNorm"),
        (changed_network(strides=[[1, 2, 1], [1, 2, 2], [2, 2, 1]]), r"strides is .*, expected 1 in the first stage"),
        (changed_network(norm_op_kwargs={"eps": 1e-3, "affine": True}), r"'eps': 0\.001"),
        (changed_network(squeeze_excitation=True), r"\{'squeeze_excitation': True\}, expected nnU-Net's own layers"),
        ({"inherits_from": "lost"}, r"has no configuration lost"),
        ({"inherits_from": "3d_fullres"}, r"has no configuration 3d_fullres of its own"),
        ({"spacing": [1.0]}, r"is not as nnU-Net v2 writes it \(ValueError"),
        (
            {"batch_size": 0},
            r"writes it \(batch_size: Input should be greater than or equal to 1\), expected the files",
        ),
        ({"patch_size": [float("inf"), 8, 8]}, r"is not as nnU-Net v2 writes it \(OverflowError"),
        (changed_network(n_stages=10**9), r"n_stages is 1000000000, expected 2 to 24"),
        (changed_network(n_conv_per_stage=[1, 10**9, 1]), r"n_conv_per_stage is \[1, 1000000000, 1"),
    ],
)
def test_what_medseg_would_do_otherwise_is_refused(changes, sentence):
    with pytest.raises(ModelError, match=sentence):
        described(**changes)


@pytest.mark.parametrize(
    ("labels", "order", "sentence"),
    [
        ({"background": 0, "a": 2}, None, r"background 0 and values without gaps"),
        ({"background": 1, "a": 0}, None, r"background 0"),
        ({"background": 0, "a": [1, 2], "b": 2}, [2, 1], r"regions_class_order is \[2, 1\], expected a value of b"),
        ({"background": 0, "a": 1, "b": [1, 2]}, [1, 2], r"an order in which a region comes after those that hold it"),
        ({"background": 0, "a": [1, 2], "b": 3}, [1, 3], r"regions that overlap"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1], r"one value for each of 2 regions"),
        (
            {"background": 0, "a\nb": 1},
            None,
            r"labels is 'a\\nb', expected names of 1 to 200 characters that can be printed",
        ),
        ({"background": 0, "": 1}, None, r"labels is '', expected names"),
    ],
)
def test_labels_that_our_masks_can_not_follow_are_refused(labels, order, sentence):
    with pytest.raises(ModelError, match=sentence):
        read_labels({"labels": labels, "regions_class_order": order})


def test_regions_begin_with_the_value_they_are_painted_with():
    labels, ignore = read_labels(
        {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}, "regions_class_order": [1, 3]}
    )
    assert labels == {"background": (0,), "whole": (1, 3, 2), "core": (3, 2)}
    # nnU-Net paints 1, then 3: the combination of both is written as 3.
    assert index_labels(labels) == {"background": (0,), "whole": (1,), "whole+core": (3, 2)}
    assert ignore == 4


def test_axes_that_the_network_lacks_are_not_mirrored():
    own = described()
    assert own.mirror_axes_xyz((2, 2)) == (1,)
    for axes in ((3,), (-1,)):
        with pytest.raises(
            ModelError, match=rf"inference_allowed_mirroring_axes is \[{axes[0]}\], expected some of 0 to 2"
        ):
            own.mirror_axes_xyz(axes)
    with pytest.raises(ModelError, match=r"expected some of 0 to 1"):
        described("2d").mirror_axes_xyz((0, 1, 2))


def test_python_may_leave_numbers_that_are_none_where_nothing_needs_them():
    plans = copy.deepcopy(PLANS)
    plans["foreground_intensity_properties_per_channel"]["1"] = {"mean": float("nan")}
    assert len(described(plans=plans).plan.fingerprint_sha256) == 64
    plans["foreground_intensity_properties_per_channel"]["0"] = FACTS | {"std": float("nan")}
    with pytest.raises(ModelError, match=r"writes it \(std: Input should be a finite number\)"):
        described(plans=plans)
