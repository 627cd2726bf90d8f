import pytest
import torch

from medseg.networks.build import build_network, parameter_count

THREE = {
    "dimensions": 3, "channels": 2, "classes": 3, "features": [4, 8, 16],
    "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
}  # fmt: skip


def count_on_paper():
    # weights and biases of convolutions, two numbers per channel and norm
    def conv(inputs, outputs, taps):
        return inputs * outputs * taps + outputs + 2 * outputs

    encoder = conv(2, 4, 9) + conv(4, 4, 9) + conv(4, 8, 27) + conv(8, 8, 27) + conv(8, 16, 27) + conv(16, 16, 27)
    up = (16 * 8 * 8 + 8) + (8 * 4 * 4 + 4)
    decoder = conv(16, 8, 27) + conv(8, 8, 27) + conv(8, 4, 9) + conv(4, 4, 9)
    heads = (8 * 3 + 3) + (4 * 3 + 3)
    return encoder + up + decoder + heads


def test_parameters_are_as_counted_on_paper():
    assert parameter_count(build_network({"kind": "unet", **THREE})) == count_on_paper()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_shapes_in_training_and_evaluation(residual, norm):
    network = build_network({"kind": "unet", **THREE, "residual": residual, "norm": norm, "dropout": 0.1})
    x = torch.zeros(2, 2, 8, 12, 6)
    outputs = network.train()(x)
    assert [tuple(o.shape) for o in outputs] == [(2, 3, 8, 12, 6), (2, 3, 4, 6, 6)]
    assert network.eval()(x).shape == (2, 3, 8, 12, 6)


def test_two_dimensions_leave_out_z():
    flat = THREE | {"dimensions": 2, "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 1]]}
    assert build_network({"kind": "unet", **flat}).eval()(torch.zeros(1, 2, 8, 8)).shape == (1, 3, 8, 8)


def test_counts_may_differ_by_stage():
    values = THREE | {"convolutions": [1, 3, 2], "decoder_convolutions": [1, 2]}
    network = build_network({"kind": "unet", **values})
    assert [len(stage) for stage in network.encoder] == [1, 3, 2]
    assert [len(stage) for stage in network.decoder] == [2, 1]  # coarsest first, the argument finest first
    with pytest.raises(ValueError, match="convolutions has 2 entries, expected one per stage: 3"):
        build_network({"kind": "unet", **THREE, "convolutions": [1, 2]})
    with pytest.raises(ValueError, match="features has 1 entries, expected at least two"):
        build_network({"kind": "unet", **THREE, "features": [4]})


def test_a_residual_block_begins_as_its_skip():
    block = build_network({"kind": "unet", **THREE, "residual": True}).encoder[0][0]
    x = torch.randn(1, 4, 6, 6, 4)
    assert torch.equal(block(x), torch.nn.functional.leaky_relu(x, 0.01))
