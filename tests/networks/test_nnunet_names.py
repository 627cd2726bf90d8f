import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.networks.build import build_network, parameter_count
from medseg.networks.nnunet_names import from_nnunet, nnunet_names, to_nnunet

FLAT = {
    "dimensions": 2, "channels": 2, "classes": 3, "features": [4, 8, 10], "strides": [[1, 1, 1], [2, 2, 1], [2, 1, 1]],
    "kernel_sizes": [[3, 1, 1], [3, 3, 1], [3, 3, 1]], "convolutions": [1, 3, 2], "decoder_convolutions": [1, 2],
}  # fmt: skip
DEEP = FLAT | {
    "dimensions": 3, "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
}  # fmt: skip
CASES = {
    "plain_2d": FLAT | {"residual": False}, "residual_2d": FLAT | {"residual": True},
    "plain_3d": DEEP | {"residual": False}, "residual_3d": DEEP | {"residual": True},
}  # fmt: skip


def drawn(shapes):
    """A tensor per name, the same wherever it is drawn."""
    generators = {name: np.random.default_rng(zlib.crc32(name.encode())) for name in shapes}
    return {n: torch.from_numpy(0.3 * generators[n].standard_normal(s).astype(np.float32)) for n, s in shapes.items()}


def picture(case):
    size = (8, 12) if case["dimensions"] == 2 else (8, 4, 6)
    return drawn({"picture": [1, case["channels"], *size]})["picture"]


@pytest.fixture(scope="module")
def reference():
    return json.loads(Path(__file__).with_name("nnunet_reference.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_nnunets_weights_give_nnunets_answer(name, reference):
    case, theirs = CASES[name], reference[name]
    network = build_network({"kind": "unet", **case})
    assert parameter_count(network) == theirs["parameters"]
    weights = drawn(theirs["shapes"])
    network.load_state_dict(from_nnunet(weights, network))
    heads = network.train()(picture(case))
    assert len(heads) == len(theirs["answers"])
    for head, answer in zip(heads, theirs["answers"], strict=True):
        np.testing.assert_allclose(head.detach().flatten()[::7], answer, atol=1e-4)
    back = to_nnunet(network)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_wrapped_names_and_copies_are_understood():
    network = build_network({"kind": "unet", **CASES["residual_3d"], "norm": "batch", "dropout": 0.1})
    weights = {f"module._orig_mod.{name}": tensor for name, tensor in to_nnunet(network).items()}
    other = build_network({"kind": "unet", **CASES["residual_3d"], "norm": "batch", "dropout": 0.1})
    other.load_state_dict(from_nnunet(weights | {"decoder.encoder.stem": torch.zeros(1)}, other))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_axes_say_which_of_theirs_is_ours():
    network = build_network({"kind": "unet", **CASES["plain_3d"]})
    turned = to_nnunet(network, axes=(1, 2, 0))
    assert torch.equal(turned["decoder.transpconvs.0.weight"], network.up[0].weight.permute(0, 1, 3, 4, 2))
    back = from_nnunet(turned, network, axes=(2, 0, 1))
    assert torch.equal(back["up.0.weight"], network.up[0].weight)


def test_what_does_not_fit_is_named():
    network = build_network({"kind": "unet", **CASES["plain_2d"]})
    weights = to_nnunet(network)
    assert set(nnunet_names(network).values()) == set(weights)
    with pytest.raises(ValueError, match=r"decoder\.seg_layers\.0\.bias has shape \[4\], expected \[3\]"):
        from_nnunet(weights | {"decoder.seg_layers.0.bias": torch.zeros(4)}, network)
    del weights["encoder.stages.1.0.convs.2.norm.weight"]
    with pytest.raises(ValueError, match=r"convs\.2\.norm\.weight is missing"):
        from_nnunet(weights, network)
