"""A trained model as a MONAI bundle: a folder that ``python -m monai.bundle run`` executes with the voxels of ``medseg infer``.

The bundle needs medseg installed where it runs (its metadata say so): reading, preparing, windows and the way back to the
scan's grid are medseg's own code under MONAI's interfaces, not a second version of it that drifts.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from medseg.config.sections import InferSection
from medseg.durable import write_bytes, write_json, write_text
from medseg.errors import EnvironmentFault, ModelError
from medseg.imaging import regions_of
from medseg.inference.engine import SHARED_BY_AN_ENSEMBLE
from medseg.inference.licence import write_licence
from medseg.inference.model import Model
from medseg.preparation.plan import Plan
from medseg.preparation.plan_file import plan_text

_PARTS = "medseg.exchange.bundle_parts"
_NEEDS = ("pytorch-ignite", "fire", "nibabel", "scipy")
_MOST_TEXT = 4000


def write_bundle(
    folder: Path, models: Sequence[Model], section: InferSection, *, name: str, licence: bytes | None = None
) -> None:
    """Writes the bundle of a model, or of an ensemble of one configuration.

    Args:
        folder: there already.
        models: from ``load_models``, of torch's.
        section: overlap, mirrors, precision and so on; they stand in ``configs/inference.json`` and can be changed there.
        name: what the metadata call it.
        licence: text of the weights' licence, which becomes ``LICENSE``, where MONAI's own bundles have theirs.

    Raises:
        ModelError: the models are of several configurations, a cascade, or ONNX networks.
    """
    _refuse_unfit(models)
    plan = models[0].plan
    architectures = [dict(model.info["architecture"]) for model in models]
    weights = {
        (key if len(models) == 1 else f"members.{number}.{key}"): value.detach().cpu().clone().contiguous()
        for number, model in enumerate(models)
        for key, value in model.ready().state_dict().items()
    }
    stream = io.BytesIO()
    torch.save(weights, stream)
    write_bytes(folder / "models" / "model.pt", stream.getvalue())
    write_text(folder / "configs" / "plan.yaml", plan_text(plan))
    steps = [step.plain() for step in models[0].postprocessing] if section.postprocess else []
    write_json(folder / "configs" / "inference.json", inference_config(models, section, architectures, steps))
    write_json(folder / "configs" / "metadata.json", metadata(models, name=name))
    write_text(folder / "configs" / "logging.conf", _LOGGING)
    write_text(folder / "docs" / "README.md", _readme(plan, name, licensed=licence is not None))
    write_licence(folder, licence)
    if data := sorted({str(model.info["training"].get("data_licence", "")) for model in models} - {""}):
        write_text(folder / "docs" / "data_license.txt", "".join(f"{line}\n" for line in data))


def _refuse_unfit(models: Sequence[Model]) -> None:
    first = models[0]
    for model in models:
        if "onnx" in model.info:
            raise ModelError(
                f"{model.folder.name}: holds ONNX networks, expected weights for a bundle; name the model itself"
            )
        if model.plan.previous_channels:
            raise ModelError(
                f"{model.folder.name}: is a cascade, which a bundle can't hold; export it with --container"
            )
        shared = all(getattr(model.plan, key) == getattr(first.plan, key) for key in SHARED_BY_AN_ENSEMBLE)
        if not shared or model.plan.patch_size_xyz != first.plan.patch_size_xyz:
            raise ModelError(
                f"{model.folder.name}: is of another configuration than {first.folder.name}, expected one in a bundle; "
                "export them one by one, or together with --container"
            )
        if model.mirror_axes_xyz != first.mirror_axes_xyz:
            raise ModelError(
                f"{model.folder.name}: mirrors other axes than {first.folder.name}, expected the same in a bundle; "
                "export them one by one"
            )


def inference_config(
    models: Sequence[Model],
    section: InferSection,
    architectures: Sequence[dict[str, Any]],
    steps: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """``configs/inference.json``: the workflow in MONAI's terms; every value of it can be overridden on the command line."""
    single = len(models) == 1
    network = (
        {"_target_": "medseg.networks.build.build_network", "architecture": architectures[0]}
        if single
        else {"_target_": f"{_PARTS}.AveragedNetworks", "architectures": list(architectures)}
    )
    settings = section.model_dump(mode="json", exclude={"cases", "ensemble", "postprocess"})
    shared = {"plan_file": "@plan_file", "settings": "@settings"}
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "plan_file": "$@bundle_root + '/configs/plan.yaml'",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "device": "$__import__('torch').device('cuda:0' if __import__('torch').cuda.is_available() else 'cpu')",
        "settings": settings,
        "mirror_axes_xyz": list(models[0].mirror_axes_xyz),
        "postprocessing_steps": list(steps),
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": "image",
                    "reader": {"_target_": f"{_PARTS}.CaseReader", "plan_file": "@plan_file"},
                    "ensure_channel_first": False,
                },
                {"_target_": f"{_PARTS}.PrepareScand", "keys": "image", "plan_file": "@plan_file"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": {"_target_": f"{_PARTS}.find_scans", "folder": "@dataset_dir", "plan_file": "@plan_file"},
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": {"_target_": f"{_PARTS}.WindowInferer", **shared, "mirror_axes_xyz": "@mirror_axes_xyz"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": f"{_PARTS}.RestoreMaskd", "keys": "pred", **shared, "postprocessing": "@postprocessing_steps"}
            ],
        },
        "saving": {"_target_": f"{_PARTS}.SaveMaskd", "keys": "pred", "output_dir": "@output_dir"},
        "handlers": [
            {"_target_": "CheckpointLoader", "load_path": "@ckpt_path", "load_dict": {"model": "@network"},
             "map_location": "@device"},
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": {"_target_": "Compose", "transforms": ["@postprocessing", "@saving"]},
            "val_handlers": "@handlers",
        },
        "initialize": [],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def metadata(models: Sequence[Model], *, name: str) -> dict[str, Any]:
    """``configs/metadata.json``: versions, and what the network takes and gives, in MONAI's keys."""
    plan = models[0].plan
    patch = [size for axis, size in enumerate(plan.patch_size_xyz) if axis != plan.slice_axis]
    image = {
        "type": "image",
        "format": "hounsfield" if plan.channels[0].scheme == "ct" else "magnitude",
        "modality": plan.channels[0].name,
        "num_channels": plan.input_count,
        "spatial_shape": patch,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(number): channel.name for number, channel in enumerate(plan.channels)},
    }
    outputs = list(plan.labels) if regions_of(plan.labels) is None else list(plan.labels)[1:]
    pred = {
        "type": "image",
        "format": "segmentation",
        "num_channels": plan.output_count,
        "spatial_shape": patch,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(number): label for number, label in enumerate(outputs)},
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20220324.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by medseg {version('medseg')}"},
        "name": name,
        "monai_version": version("monai"),
        "pytorch_version": str(torch.__version__).split("+", maxsplit=1)[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            package: version(package) for package in ("medseg", *_NEEDS) if _is_there(package)
        },
        "task": f"segmentation of {', '.join(list(plan.labels)[1:])}",
        "description": "A model trained with medseg; docs/README.md says how to run it, parity.json how near it is to infer",
        "authors": "",
        "copyright": "",
        "intended_use": "research only; no medical device",
        "medseg_models": {f"model_{number}": model.sha256 for number, model in enumerate(models)},
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _is_there(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _readme(plan: Plan, name: str, *, licensed: bool) -> str:
    classes = "\n".join(f"- {label}: {', '.join(map(str, values))}" for label, values in plan.labels.items())
    channels = ", ".join(channel.name for channel in plan.channels)
    licence = (
        "The weights are given under the terms in `LICENSE`." if licensed else "No licence text came with the weights."
    )
    return _README.format(name=name, classes=classes, channels=channels, version=version("medseg"), licence=licence)


def run_bundle(folder: Path, scans: Path, output: Path, *, device: str = "cpu", threads: int | None = None) -> None:
    """Runs a bundle as its users do, in a process of its own: ``python -m monai.bundle run``.

    Args:
        folder: of the bundle.
        scans: folder with the scans.
        output: folder for the masks.
        device: torch's name of it.
        threads: of torch; None leaves them.

    Raises:
        EnvironmentFault: what MONAI's command needs is not installed.
        ModelError: the command ended with another code than 0.
    """
    missing = [package for package in ("fire", "pytorch-ignite") if not _is_there(package)]
    if missing:
        raise EnvironmentFault(f"{missing[0]}: is not installed, expected to run a bundle; pip install medseg[bundle]")
    command = [
        sys.executable, "-m", "monai.bundle", "run",
        "--config_file", str(folder / "configs" / "inference.json"),
        "--meta_file", str(folder / "configs" / "metadata.json"),
        "--logging_file", str(folder / "configs" / "logging.conf"),
        "--bundle_root", str(folder), "--dataset_dir", str(scans), "--output_dir", str(output),
        "--device", f"$__import__('torch').device('{device}')",
    ]  # fmt: skip
    environment = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - our own words
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip()[-_MOST_TEXT:].splitlines() or ["no output"]
        raise ModelError(f"{folder.name}: python -m monai.bundle run ended with {done.returncode} ({last[-1]})")


_LOGGING = """\
[loggers]
keys=root

[handlers]
keys=consoleHandler

[formatters]
keys=fullFormatter

[logger_root]
level=INFO
handlers=consoleHandler

[handler_consoleHandler]
class=StreamHandler
level=INFO
formatter=fullFormatter
args=(sys.stdout,)

[formatter_fullFormatter]
format=%(asctime)s - %(name)s - %(levelname)s - %(message)s
"""

_README = """\
# {name}

A segmentation model trained with medseg, as a MONAI bundle. Research software, no medical device.

Channels: {channels}. Values in the masks:

{classes}

## Run

    pip install medseg=={version} fire pytorch-ignite
    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir SCANS --output_dir MASKS

`SCANS` is a folder with scans in any format that medseg reads, DICOM series among them; each mask has its scan's grid and
name. `--settings#mirror False` and the like change a value of the `infer` section for one run.

`parity.json` says how far the masks are from those of `medseg infer`. `export.json` lists every file with its SHA-256.
A bundle's configuration is executed by MONAI as Python: run only bundles that you made or trust.

{licence}
"""
