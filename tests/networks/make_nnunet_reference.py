"""Writes nnunet_reference.json: names, shapes and answers of nnU-Net's own networks. Not a test; run it by hand.

    pip install dynamic-network-architectures==0.4.4      (in an environment of its own, beside torch and medseg)
    python -m tests.networks.make_nnunet_reference

Weights are drawn from a generator seeded by each tensor's name, so that the test can make them again without the package.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from tests.networks.test_nnunet_names import CASES, drawn, picture


def reference(name: str) -> dict[str, object]:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    case = CASES[name]
    dimensions = case["dimensions"]

    def turned(sizes):
        return [list(reversed(size[:dimensions])) for size in sizes]

    kind = ResidualEncoderUNet if case["residual"] else PlainConvUNet
    counts = {"n_blocks_per_stage" if case["residual"] else "n_conv_per_stage": case["convolutions"]}
    network = kind(
        input_channels=case["channels"],
        n_stages=len(case["features"]),
        features_per_stage=case["features"],
        conv_op=nn.Conv2d if dimensions == 2 else nn.Conv3d,
        kernel_sizes=turned(case["kernel_sizes"]),
        strides=turned(case["strides"]),
        num_classes=case["classes"],
        n_conv_per_stage_decoder=case["decoder_convolutions"][::-1],
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **counts,
    )
    parameters = sum(p.numel() for p in network.parameters())
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    canonical = {k: s for k, s in shapes.items() if "all_modules" not in k and not k.startswith("decoder.encoder")}
    network.load_state_dict(drawn(canonical), strict=False)  # the further names are the same tensors
    x = picture(case)
    with torch.no_grad():
        heads = network.train()(x.permute(0, 1, *range(x.ndim - 1, 1, -1)))
    answers = [head.permute(0, 1, *range(x.ndim - 1, 1, -1)).flatten()[::7].tolist() for head in heads]
    return {"parameters": parameters, "shapes": canonical, "answers": [[round(v, 5) for v in a] for a in answers]}


if __name__ == "__main__":
    content = {name: reference(name) for name in CASES}
    Path(__file__).with_name("nnunet_reference.json").write_text(json.dumps(content, indent=0) + "\n")
