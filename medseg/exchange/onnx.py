"""A model folder with its networks as ONNX files, which ``medseg infer`` runs in onnxruntime.

Only the network travels into ONNX: windows, mirrors, resampling and all that makes a mask of scores stay medseg's. Batch and
image sizes are free where torch can prove that they may be (whole multiples of the strides).
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.durable import read_json, sha256_file, write_bytes, write_json
from medseg.errors import EnvironmentFault, ModelError
from medseg.inference.model import ONNX_FORMAT, Model, load_model
from medseg.inference.onnx_network import IMAGE, ONNX_FILE, SCORES, OnnxNetwork
from medseg.inference.previous_models import PREVIOUS
from medseg.preparation.plan import Plan

_LOG = logging.getLogger(__name__)

_WEIGHTS = "weights.safetensors"
# onnxruntime comes as a package of either name.
_PACKAGES = ("medseg", "monai", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch")
_SEED = 3
# torch proves less of a network that reshapes (a transformer); then fewer sizes are left free.
_FREE = ("batch and sizes", "batch", "nothing")


def export_onnx(source: Path, target: Path, *, int8: bool = False) -> list[dict[str, Any]]:
    """Writes ``source`` with ONNX files in place of its weights: a single model, an ensemble, or the stages of a cascade.

    Args:
        source: a model folder of torch's.
        target: folder to write into; it and what it needs is made.
        int8: convolutions in 8 bits (weights beforehand, activations as they come), about a third of the size.

    Returns:
        Per network, what it was tried with and the largest difference of its scores from torch's.

    Raises:
        ModelError: the folder holds no such model, or torch can't turn its network into ONNX.
        EnvironmentFault: onnx, onnxscript or onnxruntime is not installed.
    """
    info = _read(source)
    if "onnx" in info:
        raise ModelError(f"{source.name}: holds ONNX networks already; export the model that they are of")
    marks: dict[str, Any] = {"source_sha256": sha256_file(source / "model.json"), "int8": int8}
    found: list[dict[str, Any]] = []
    content = {key: value for key, value in info.items() if key not in ("members", "previous", "files", "versions")}
    if "members" in info:
        members = []
        for member in info["members"]:
            found += export_onnx(source / member["folder"], target / member["folder"], int8=int8)
            members.append({**member, "sha256": sha256_file(target / member["folder"] / "model.json")})
        content["members"] = members
    else:
        found.append(_export_network(load_model(source, alone=True), target, int8=int8))
        marks |= {key: found[-1][key] for key in ("opset", "free")}
        content["format"] = ONNX_FORMAT
    # Members of an ensemble name a first stage, too; it lies in the ensemble's folder, once for all.
    if "previous" in info and (source / PREVIOUS).is_dir():
        name = PREVIOUS
        found += export_onnx(source / name, target / name, int8=int8)
        content["previous"] = {**info["previous"], "sha256": sha256_file(target / name / "model.json")}
    _copy_others(source, target, info)
    if "files" in info:
        names = [ONNX_FILE if name == _WEIGHTS else name for name in info["files"]]
        content["files"] = {name: sha256_file(target / name) for name in names}
    content |= {"onnx": marks, "versions": dict(_versions())}
    write_json(target / "model.json", content)
    return found


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    info = read_json(path) if path.is_file() else None
    if not isinstance(info, dict) or info.get("kind") != "medseg model":
        raise ModelError(f"{folder.name}: holds no medseg model; finish training or check the path")
    return info


def _copy_others(source: Path, target: Path, info: Mapping[str, Any]) -> None:
    """The files beside the weights: plan and config, and what else the model brings along (calibration)."""
    for path in sorted(source.iterdir()):
        listed = path.name in info.get("files", {})
        if path.is_file() and path.name not in (_WEIGHTS, "model.json") and (listed or path.suffix == ".json"):
            write_bytes(target / path.name, path.read_bytes())


def _export_network(model: Model, target: Path, *, int8: bool) -> dict[str, Any]:
    _require("onnx", "onnxscript", "onnxruntime")  # all at once: the last is needed minutes later
    network, plan = model.ready(), model.plan
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / ONNX_FILE
        free = write_onnx(network, path, plan=plan, name=model.folder.name)
        float_file = path.read_bytes()
        checks = check_network(network, float_file, plan=plan, free=free)
        if int8:
            path = _quantised(path)
        write_bytes(target / ONNX_FILE, path.read_bytes())
    return {"opset": _opset(float_file), "free": free, **checks}


def write_onnx(network: nn.Module, path: Path, *, plan: Plan, name: str) -> str:
    """Writes a network in eval mode as one ONNX file, with its weights inside.

    Returns:
        What is left free: "batch and sizes", "batch", or "nothing" (then the plan's patch, one at a time).

    Raises:
        ModelError: torch can't turn the network into ONNX.
        EnvironmentFault: onnx or onnxscript is not installed.
    """
    _require("onnx", "onnxscript")
    fault: Exception | None = None
    for free in _FREE:
        example, dynamic = _example(plan, free)
        try:
            with _quiet():
                program = torch.onnx.export(
                    network,
                    (example,),
                    dynamo=True,
                    dynamic_shapes=(dynamic,),
                    input_names=[IMAGE],
                    output_names=[SCORES],
                    verbose=False,
                    external_data=False,
                )
            assert program is not None
            program.save(str(path), external_data=False)
        except Exception as error:  # noqa: BLE001 - torch's exporter raises of many kinds; a simpler form is tried next
            _LOG.debug("%s: %s not free in ONNX", name, free, exc_info=True)
            fault = error
        else:
            return free
    raise ModelError(
        f"{name}: its network can't be turned into ONNX ({type(fault).__name__}); run it with torch, or choose another kind"
    ) from fault


def _example(plan: Plan, free: str) -> tuple[torch.Tensor, dict[int, Any] | None]:
    """An input and which of its axes are free; sizes of 1 would be taken for fixed."""
    sizes = [size for axis, size in enumerate(plan.patch_size_xyz) if axis != plan.slice_axis]
    if free == "nothing":
        return torch.zeros(1, plan.input_count, *sizes), None
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    if free == "batch and sizes":
        steps = _strides(plan)
        dynamic |= {2 + i: _multiple(f"{'abc'[i]}_blocks", step) for i, step in enumerate(steps)}
        sizes = [2 * step for step in steps]
    return torch.zeros(2, plan.input_count, *sizes), dynamic


def _multiple(name: str, step: int) -> Any:
    blocks = torch.export.Dim(name)
    return blocks if step == 1 else step * blocks


def _strides(plan: Plan) -> list[int]:
    """What a size must be a multiple of, per axis that the network sees."""
    products = [math.prod(stride[axis] for stride in plan.strides) for axis in range(3)]
    return [n for axis, n in enumerate(products) if axis != plan.slice_axis]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that are not needed and on its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_network(network: nn.Module, content: bytes, *, plan: Plan, free: str) -> dict[str, Any]:
    """Scores of torch and of onnxruntime on random inputs of several shapes.

    Returns:
        ``shapes`` tried, ``largest_score`` and ``score_difference`` over them, all plain values.
    """
    other = OnnxNetwork(content)
    draw = torch.Generator().manual_seed(_SEED)
    shapes, largest, difference = _shapes(plan, free), 0.0, 0.0
    for shape in shapes:
        image = torch.randn(shape, generator=draw)
        with torch.inference_mode():
            own = network(image)
            largest = max(largest, float(own.abs().max()))
            difference = max(difference, float((own - other(image)).abs().max()))
    return {"shapes": shapes, "largest_score": largest, "score_difference": difference}


def _shapes(plan: Plan, free: str) -> list[list[int]]:
    patch = [size for axis, size in enumerate(plan.patch_size_xyz) if axis != plan.slice_axis]
    shapes = [[1, plan.input_count, *patch]]
    if free != "nothing":
        shapes.append([2, plan.input_count, *patch])
    if free == "batch and sizes":
        shapes.append([1, plan.input_count, *(2 * step for step in _strides(plan))])
        shapes.append([3, plan.input_count, *((2 + i) * step for i, step in enumerate(_strides(plan)))])
    return shapes


def _quantised(path: Path) -> Path:
    _require("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name("int8.onnx")
    with _quiet():
        # Ranges fixed beforehand (QDQ) made 3D convolutions several times slower and no more exact.
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it says on the root logger that shapes might be inferred beforehand
        try:
            quantize_dynamic(path, target, op_types_to_quantize=["Conv"], weight_type=QuantType.QUInt8)
        finally:
            root.setLevel(level)
    return target


def _opset(content: bytes) -> int:
    import onnx

    return int(onnx.load_from_string(content).opset_import[0].version)


def _require(*packages: str) -> None:
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise EnvironmentFault(f"{package}: is not installed, expected for ONNX; pip install medseg[onnx]")
