"""Kinds of nnU-Net models beyond the reference archive's: other readers, pictures, normalisations, trainers and labels.

    NNUNET_PYTHON benchmarks/nnunet_kinds.py make WORK        (nnunetv2 2.8.1 in an environment of its own, see setup_nnunet.sh)
    python benchmarks/nnunet_kinds.py compare WORK            (in medseg's environment; ends with 1 where a voxel differs)

The models are untrained, so that masks are salt and pepper and the smallest difference in arithmetic shows.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

_MAKER = Path(__file__).parents[1] / "tests" / "exchange" / "make_nnunet_reference.py"
_Z = "ZScoreNormalization"
_TURNED = np.array([[0, -1.1, 0, 5], [0.9, 0, 0, -3], [0, 0, -1.6, 9], [0, 0, 0, 1.0]])
_COS, _SIN = np.cos(0.3), np.sin(0.3)
_OBLIQUE = np.array([[_COS, -_SIN, 0, 0], [_SIN, _COS, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ _TURNED
_STRAIGHT = np.diag([1.1, 1.3, 1.6, 1.0])
# name: normalisations, their masks, reader, transpose_forward, channel names, affine of the scan (None: a picture), mirrors,
# trainer, labels where they are not two classes
_KINDS: dict[str, tuple[Any, ...]] = {
    "Colour": ([_Z] * 3, False, "NaturalImage2DIO", (0, 1, 2), ["R", "G", "B"], None, (0, 1), "", {}),
    "Colour01": (
        ["RGBTo01Normalization"] * 3, False, "NaturalImage2DIO", (0, 1, 2), ["rgb_to_0_1"] * 3, None, (0, 1), "", {},
    ),
    "Grey": ([_Z], False, "NaturalImage2DIO", (0, 1, 2), ["micro"], None, None, "NoMirroring", {}),
    "Ras": (
        [_Z, "NoNormalization"], True, "NibabelIOWithReorient", (1, 2, 0), ["T1", "noNorm"], _TURNED, (0, 2), "", {},
    ),
    "RasOblique": (
        ["RescaleTo01Normalization"], False, "NibabelIOWithReorient", (0, 1, 2), ["x"], _OBLIQUE, (0, 1, 2), "", {},
    ),
    "SitkRas": (
        ["CTNormalization"], False, "SimpleITKIOWithReorient", (0, 2, 1), ["CT"], _TURNED, (0,), "", {},
    ),
    "Nib": ([_Z], False, "NibabelIO", (0, 1, 2), ["x"], _OBLIQUE, (0, 1, 2), "", {}),
    "Bn": ([_Z], False, "SimpleITKIO", (0, 1, 2), ["x"], _STRAIGHT, (0, 1, 2), "BN", {}),
    "RegIgnore": (
        [_Z], False, "SimpleITKIO", (0, 1, 2), ["x"], _STRAIGHT, (0, 1, 2), "",
        {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]},
    ),
    "Wide": (
        [_Z], False, "SimpleITKIO", (0, 1, 2), ["x"], _STRAIGHT, (0, 1, 2), "",
        {"labels": {"background": 0, **{f"organ_{k}": k for k in range(1, 12)}}},
    ),
}  # fmt: skip


def _maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_nnunet_reference", _MAKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plans(maker: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    schemes, masked, reader, forward, channels, affine, _, _, more = _KINDS[name]
    masks = [masked and scheme == _Z for scheme in schemes]
    if affine is None:
        network = maker.architecture(maker.PLAIN, 2, [4, 6], [[3, 3]] * 2, [[1, 1], [2, 2]], [1, 1], [1])
        settings = {"2d": maker.configuration([16, 24], [1.0, 1.0], schemes, masks, {"architecture": network})}
    else:
        network = maker.architecture(maker.PLAIN, 3, [4, 6], maker.CUBES, maker.HALF, [1, 1], [1])
        values = maker.configuration([8, 12, 10], [1.5, 1.2, 1.1], schemes, masks, {"architecture": network})
        settings = {"3d_fullres": values}
    plans = maker.plans(name, settings, forward) | {"image_reader_writer": reader}
    plans["foreground_intensity_properties_per_channel"] = {str(n): maker.FACTS for n in range(len(schemes))}
    if affine is None:
        plans["original_median_spacing_after_transp"] = [999.0, 1.0, 1.0]
        plans["original_median_shape_after_transp"] = [1, 30, 40]
    dataset = maker.dataset(channels, maker.TWO) | more
    return plans, dataset | ({"file_ending": ".png"} if affine is None else {})


def _scans(folder: Path, name: str, seed: int) -> list[Path]:
    """Smooth noise with air at its edges, named as nnU-Net wants it: a colour picture is one file."""
    import nibabel as nib
    from PIL import Image
    from scipy import ndimage

    channels, affine = len(_KINDS[name][0]), _KINDS[name][5]
    folder.mkdir(parents=True, exist_ok=True)
    if affine is None:
        smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(41, 37, 3)), (1.5, 1.5, 0))
        picture = np.asarray((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255, np.uint8)
        picture[:3], picture[:, -2:] = 0, 0
        Image.fromarray(picture if channels == 3 else picture[..., 0]).save(folder / "case_0000.png")
        return [folder / "case_0000.png"]
    files = [folder / f"case_{channel:04d}.nii.gz" for channel in range(channels)]
    for channel, file in enumerate(files):
        noise = np.random.default_rng([seed, channel]).normal(size=(17, 13, 15))
        array = np.asarray(3 * ndimage.gaussian_filter(noise, 0.8), np.float32)
        array[0], array[:, -2:], array[..., :1] = 0, 0, 0
        nib.save(nib.Nifti1Image(array, affine), file)
    return files


def make(work: Path) -> None:
    """Models, scans and nnU-Net's masks, in nnU-Net's environment."""
    maker = _maker()
    import nnunetv2
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    for seed, name in enumerate(_KINDS):
        plans, dataset = _plans(maker, name)
        (config,), trainer = plans["configurations"], f"nnUNetTrainer{_KINDS[name][7]}"
        manager = PlansManager(json.loads(json.dumps(plans)))
        values = manager.get_configuration(config)
        where = f"{nnunetv2.__path__[0]}/training/nnUNetTrainer"
        build = recursive_find_python_class(
            where, trainer, "nnunetv2.training.nnUNetTrainer"
        ).build_network_architecture
        first = (
            (manager, values)
            if "plans_manager" in inspect.signature(build).parameters
            else (
                values.network_arch_class_name,
                values.network_arch_init_kwargs,
                values.network_arch_init_kwargs_req_import,
            )
        )
        heads = manager.get_label_manager(dataset).num_segmentation_heads
        network = build(*first, determine_num_input_channels(manager, values, dataset), heads, True)
        torch.manual_seed(seed)
        for parameter in network.parameters():
            parameter.data = torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else 0.3)
        for module in network.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        maker.balance(network.eval(), values)
        top = work / "models" / name / f"{trainer}__{name}__{config}"
        (top / "fold_0").mkdir(parents=True)
        start = {
            "plans": plans,
            "configuration": config,
            "fold": 0,
            "dataset_json": dataset,
            "device": torch.device("cpu"),
        }
        checkpoint = {
            "network_weights": network.state_dict(), "optimizer_state": {}, "grad_scaler_state": None, "logging": {},
            "_best_ema": None, "current_epoch": 3, "init_args": start, "trainer_name": trainer,
            "inference_allowed_mirroring_axes": _KINDS[name][6],
        }  # fmt: skip
        torch.save(checkpoint, top / "fold_0" / "checkpoint_final.pth")
        (top / "plans.json").write_text(json.dumps(plans))
        (top / "dataset.json").write_text(json.dumps(dataset))
        files = _scans(work / "scans" / name, name, seed)
        (work / "masks").mkdir(exist_ok=True)
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(top), (0,), "checkpoint_final.pth")
        predictor.predict_from_files_sequential([[str(file) for file in files]], [str(work / "masks" / name)])


def compare(work: Path) -> int:
    """Prints the voxels that differ from nnU-Net's masks; 1 where one does with its own arithmetic."""
    import torch

    from medseg.config.sections import InferSection
    from medseg.exchange.nnunet import import_nnunet
    from medseg.imaging import read_label_map
    from medseg.inference.cases import find_cases
    from medseg.inference.ensemble import build_engine
    from medseg.inference.model import load_models
    from medseg.preparation.case import load_case

    sections = {"fp16": InferSection(accumulate="fp16"), "fp32": InferSection(precision="float32")}
    voxels, totals = 0, dict.fromkeys(sections, 0)
    for name in _KINDS:
        models = load_models(import_nnunet(work / "models" / name, work / "imported" / name).folder)
        expected = read_label_map(next((work / "masks").glob(f"{name}.*"))).array
        voxels += expected.size
        for key, section in sections.items():
            engine = build_engine(models, section, device=torch.device("cpu"))
            (case,) = find_cases([work / "scans" / name], channels=engine.plan.channels)
            volume = load_case(case.images, engine.plan.channels)
            array, grid = engine.prepare(volume)
            classes = engine.classes(engine.scores(array), grid)
            own = engine.label_map(classes, affine=volume.affine, header=volume.header).array
            differing = int(np.count_nonzero(own != expected))
            totals[key] += differing
            sys.stdout.write(f"{name} {key}: {differing} of {expected.size} voxels differ\n")
    sys.stdout.write(f"together: {totals} of {voxels}\n")
    return int(totals["fp16"] > 0)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("make", "compare"):
        sys.exit(__doc__)
    sys.exit(make(Path(sys.argv[2])) if sys.argv[1] == "make" else compare(Path(sys.argv[2])))
