"""A network that onnxruntime runs in place of torch: the ONNX file of an exported model folder.

Everything around it (windows, mirrors, blending, resampling) stays as it is, so a mask differs from torch's only where the
network's scores do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from medseg.durable import read_json, sha256_file
from medseg.errors import EnvironmentFault, ModelError

Backend = Literal["torch", "onnxruntime"]

ONNX_FILE = "network.onnx"
ONNX_FOLDER = "onnx"
"""Subfolder of a model folder that ``--backend onnxruntime`` looks into."""
IMAGE, SCORES = "image", "scores"
"""Names of the ONNX file's input and output."""


class OnnxNetwork(nn.Module):
    """An ONNX file as a network: (B, C, X, Y, Z) float32 to scores (B, K, X, Y, Z), without Z where planar.

    It computes as the file says (float32, or int8 inside), whatever autocast asks for, with as many threads as torch has.

    Args:
        content: the file's bytes.
        device: on CUDA its kernels are used where onnxruntime has them (the package onnxruntime-gpu), else the CPU's.

    Raises:
        EnvironmentFault: onnxruntime is not installed.
        ValueError: the bytes are no ONNX network with these names.
    """

    def __init__(self, content: bytes, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._session = _session(content, torch.device(device))
        inputs = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if inputs != [IMAGE] or outputs != [SCORES]:
            raise ValueError(f"ONNX file has inputs {inputs} and outputs {outputs}, expected {IMAGE} and {SCORES}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        image = x.detach().to("cpu", torch.float32).contiguous().numpy()
        scores = self._session.run([SCORES], {IMAGE: image})[0]
        return torch.from_numpy(scores).to(x.device)


def _session(content: bytes, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentFault(
            "onnxruntime: is not installed, expected for an ONNX model; pip install medseg[onnx]"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    # Threads that spin while they wait keep others from running where cores are shared.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(content, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes derive from Exception alone and are not public
        raise ValueError(f"onnxruntime refuses the ONNX file ({type(error).__name__})") from error


def backend_folder(folder: Path, backend: Backend | None) -> Path:
    """The model folder that ``backend`` runs.

    Args:
        folder: as ``--model`` names it: a model of torch's, or an export of one to ONNX.
        backend: None takes what ``folder`` holds.

    Returns:
        ``folder``, or its subfolder ``onnx`` where onnxruntime is asked for and ``folder`` holds torch's weights.

    Raises:
        ModelError: the folder holds nothing that the backend runs, or an export of another model.
    """
    inner = folder / ONNX_FOLDER
    held: Backend = "onnxruntime" if is_onnx_folder(folder) else "torch"
    if backend is None or backend == held:
        return folder
    if backend == "torch":
        raise ModelError(
            f"{folder.name}: holds an ONNX network, expected weights for --backend torch; name the model itself"
        )
    if not is_onnx_folder(inner):
        raise ModelError(
            f"{folder.name}: has no ONNX network for --backend onnxruntime; "
            f"make it with: medseg export {folder} --onnx {inner}"
        )
    if read_json(inner / "model.json")["onnx"]["source_sha256"] != sha256_file(folder / "model.json"):
        raise ModelError(f"{folder.name}: its ONNX network is of another model; remove {ONNX_FOLDER}/ and export again")
    return inner


def is_onnx_folder(folder: Path) -> bool:
    """Whether ``folder`` is a model folder (single or ensemble) whose networks are ONNX files."""
    path = folder / "model.json"
    if not path.is_file():
        return False
    info = read_json(path)
    return isinstance(info, dict) and isinstance(info.get("onnx"), dict)
