"""nnU-Net's own predictor and export on a synthetic scan, for `bench_large_scan.py`; runs in nnU-Net's environment.

python nnunet_large_scan.py X Y Z
"""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

_CLASSES, _SPACING = 40, 1.25


def main() -> None:
    """Prints seconds per phase as JSON."""
    shape = [int(size) for size in sys.argv[1:4]]
    torch.manual_seed(0)
    predictor = nnUNetPredictor(
        use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.network = PlainConvUNet(
        1, 4, (8, 16, 32, 64), torch.nn.Conv3d, 3, (1, 2, 2, 2), 2, _CLASSES, 2, conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    ).eval()  # fmt: skip
    predictor.list_of_parameters = [predictor.network.state_dict()]
    predictor.configuration_manager = SimpleNamespace(patch_size=[96, 96, 96])
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=_CLASSES)
    predictor.allowed_mirroring_axes = None
    scan = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    fine, coarse = [1.0] * 3, [_SPACING] * 3
    times = [time.monotonic()]
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    new = [round(size / _SPACING) for size in shape]
    data = resample_data_or_seg_to_shape(scan, new, fine, coarse, **kwargs)
    times.append(time.monotonic())
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data).float())
    times.append(time.monotonic())
    back = resample_data_or_seg_to_shape(logits, shape, coarse, fine, **{**kwargs, "order": 1})
    np.asarray(back).argmax(0)
    times.append(time.monotonic())
    seconds = dict(zip(("prepare", "compute", "mask"), np.round(np.diff(times), 1).tolist(), strict=True))
    sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
