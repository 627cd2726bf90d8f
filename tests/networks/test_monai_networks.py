import copy

import pytest
import torch

from medseg.errors import ConfigError
from medseg.networks.build import build_network
from medseg.networks.monai_networks import MONAI_NAMES, MonaiNetwork, finest_first, monai_arguments

PLAN = {
    "dimensions": 3, "patch_size": [32, 32, 16], "features": [4, 8, 16],
    "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
}  # fmt: skip


def arguments(name, **given):
    return monai_arguments(name, given, **PLAN)


def build(name, dimensions=3, **given):
    return build_network(
        {"kind": "monai", "name": name, "dimensions": dimensions, "channels": 2, "classes": 3, "arguments": given}
    )


def test_what_the_plan_knows_is_filled_in():
    assert arguments("UNETR")["img_size"] == [32, 32, 16]
    assert arguments("VNet") == {"dropout_dim": 3}
    assert arguments("UNet") == {"channels": [4, 8, 16], "strides": [[2, 2, 1], [2, 2, 2]]}
    assert arguments("UNet", channels=[2, 4], strides=[2])["strides"] == [2]
    dynunet = arguments("DynUNet")
    assert dynunet["strides"] == PLAN["strides"]
    assert dynunet["upsample_kernel_size"] == [[2, 2, 1], [2, 2, 2]]
    assert dynunet["filters"] == [4, 8, 16]
    assert arguments("SegResNet", init_filters=16) == {"init_filters": 16}
    flat = monai_arguments("AttentionUnet", {}, **PLAN | {"dimensions": 2})
    assert flat["strides"] == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "SwinUNETR",
            {"feature_sise": 24},
            r"feature_sise: unknown argument of SwinUNETR, did you mean 'feature_size'\?",
        ),
        (
            "MedNeXtS",
            {"variant": "L"},
            "variant: unknown argument of MedNeXtS; known are deep_supervision, kernel_size",
        ),
        ("SegResNet", {"in_channels": 3}, "in_channels: is set by the plan and the manifest; leave it out"),
        ("FlexibleUNet", {"backbone": "resnet18", "pretrained": True}, "pretrained: is not taken; use train.init_from"),
        ("FlexibleUNet", {}, "FlexibleUNet needs backbone; add them"),
        ("SegResnet", {}, r"is 'SegResnet', expected one of .* did you mean 'SegResNet'\?"),
    ],
)
def test_wrong_arguments_are_named_before_training(name, given, message):
    with pytest.raises(ConfigError, match=message):
        arguments(name, **given)


def test_only_names_on_the_list_are_built():
    assert {"SegResNetDS", "AttentionUnet", "SwinUNETR", "UNETR", "FlexibleUNet", "MedNeXtL"} <= set(MONAI_NAMES)
    with pytest.raises(ConfigError, match="is 'HyenaNDUNETR', expected one of"):
        build("HyenaNDUNETR")
    with pytest.raises(ConfigError, match="FlexibleUNet refuses them: invalid model_name resnet7"):
        build("FlexibleUNet", backbone="resnet7")


def test_heads_come_finest_first():
    small, large = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8)
    assert [h.shape[2] for h in finest_first([small, large], 2)] == [8, 4]
    first, last = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    assert finest_first((first, last), 2)[0] is last
    assert len(finest_first(torch.zeros(2, 5, 3, 4, 4), 2)) == 5
    assert finest_first(small, 2)[0] is small


@pytest.mark.parametrize(
    ("name", "given", "heads"),
    [
        ("SegResNetDS", {"init_filters": 8, "dsdepth": 3, "blocks_down": [1, 1, 1]}, [(16, 16), (8, 8)]),
        ("BasicUNetPlusPlus", {"features": [2, 2, 2, 2, 4, 2], "deep_supervision": True}, [(32, 32)] * 4),
        (
            "MedNeXt",
            {"init_filters": 4, "kernel_size": 3, "deep_supervision": True},
            [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)],
        ),
        ("SegResNet", {"init_filters": 8}, None),
    ],
)
def test_deep_supervision_is_a_list_in_training_and_logits_after(name, given, heads):
    network = build(name, 2, **given)
    x = torch.randn(2, 2, *(heads or [(16, 16)])[0])
    outputs = network.train()(x)
    assert (outputs.shape[2:] == (16, 16)) if heads is None else ([tuple(o.shape[2:]) for o in outputs] == heads)
    assert network.eval()(x).shape == (2, 3, *x.shape[2:])


def test_tensors_with_two_names_are_kept_once():
    values = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [2, 4, 8]}
    network = build("DynUNet", 2, **values, deep_supervision=True)
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    twin = copy.deepcopy(network)
    assert twin.state_dict().keys() == state.keys()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(state)
    x = torch.randn(1, 2, 16, 16)
    assert torch.equal(twin.eval()(x), network.eval()(x))
    holder = torch.nn.ModuleDict({"inside": MonaiNetwork(network.network, 2)})
    assert set(holder.state_dict()) == {f"inside.{name}" for name in state}
    holder.load_state_dict(holder.state_dict())
