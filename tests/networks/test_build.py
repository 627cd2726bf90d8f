import pytest
import torch

from medseg.networks.build import build_network, parameter_count

STRIDES = [[1, 1, 1], [2, 2, 1], [2, 2, 2]]
THREE = {
    "dimensions": 3,
    "channels": 1,
    "classes": 3,
    "strides": STRIDES,
    "kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
}


def test_unknown_kinds_are_named():
    with pytest.raises(
        ValueError, match="is 'vnet', expected one of deeplabv3plus, dynunet, fcn, monai, unet, vgg_unet"
    ):
        build_network({"kind": "vnet"})


def test_dynunet_takes_the_same_plan_and_can_be_saved():
    network = build_network({"kind": "dynunet", **THREE, "features": [4, 8, 16]}).eval()
    assert network(torch.zeros(1, 1, 8, 8, 4)).shape == (1, 3, 8, 8, 4)
    state = network.state_dict()
    tensors = [tensor.data_ptr() for tensor in state.values()]
    assert len(set(tensors)) == len(tensors)  # safetensors refuses one tensor under two names
    other = build_network({"kind": "dynunet", **THREE, "features": [4, 8, 16]}).eval()
    other.load_state_dict(state)
    x = torch.randn(1, 1, 8, 8, 4)
    assert torch.equal(network(x), other(x))


def test_trainable_parameters_are_counted():
    layer = torch.nn.Linear(3, 4)
    layer.bias.requires_grad_(requires_grad=False)
    assert parameter_count(layer) == 12
