import pytest
import torch

from medseg.networks.build import build_network

SHAPES = {
    2: {"strides": [[1, 1, 1], [2, 1, 1]], "kernel_sizes": [[3, 1, 1], [3, 3, 1]]},
    3: {"strides": [[1, 1, 1], [2, 1, 2]], "kernel_sizes": [[3, 1, 3], [3, 3, 3]]},
}


def pair(dimensions, order):
    values = {
        "kind": "unet",
        "dimensions": dimensions,
        "channels": 2,
        "classes": 3,
        "features": [3, 4],
        **SHAPES[dimensions],
    }
    return build_network(values), build_network(values | {"order": order})


@pytest.mark.parametrize(("dimensions", "order"), [(2, [1, 0]), (3, [2, 1, 0]), (3, [1, 2, 0])])
def test_it_is_the_same_function_with_the_same_weights(dimensions, order):
    plain, reordered = pair(dimensions, order)
    reordered.load_state_dict(plain.state_dict())
    for name, tensor in reordered.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    x = torch.randn(1, 2, *(8, 5, 6)[:dimensions])
    torch.testing.assert_close(reordered.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    heads = reordered.train()(x)
    assert [head.shape for head in heads] == [head.shape for head in plain.train()(x)]


def test_it_computes_on_the_other_order():
    _, reordered = pair(3, [2, 0, 1])
    seen = []
    reordered.encoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 2, 8, 5, 6)
    reordered(x)
    assert seen[0].is_contiguous()
    assert torch.equal(seen[0], x.permute(0, 1, 4, 2, 3))


def test_an_order_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"order is \[0, 2\], expected each of the axes 0 to 1 once"):
        pair(2, [0, 2])
