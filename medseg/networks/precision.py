"""Which arithmetic a device has, and which one to use."""

from __future__ import annotations

import torch

from medseg.errors import EnvironmentFault


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` computes convolutions in bfloat16 natively (emulation is slower than float32 and counts as no)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return _cpu_has_bf16()
    return False


def _cpu_has_bf16() -> bool:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001 - there is no public way to ask
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX") or capability == "DEFAULT":
        # oneDNN says yes on plain AVX512 too, where it emulates and is slower than float32.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001
    return True


def choose_precision(device: torch.device, wanted: str = "auto") -> torch.dtype | None:
    """The autocast type, or None for plain float32.

    Args:
        device: where the network runs.
        wanted: "auto" takes bfloat16 where the hardware has it, "bf16" insists, "float32" declines; "fp16" is for inference on
            CUDA, where it rounds 8 times finer than bfloat16 and overflows above 65504.

    Raises:
        EnvironmentFault: bf16 or fp16 is insisted on and the device lacks it.
    """
    if wanted == "float32":
        return None
    if wanted == "fp16":
        if device.type != "cuda":
            raise EnvironmentFault(f"device {device.type}: computes no float16; set precision: auto or float32")
        return torch.float16
    if has_bf16(device):
        return torch.bfloat16
    if wanted == "bf16":
        raise EnvironmentFault(f"device {device.type}: has no bfloat16 arithmetic; set precision: auto or float32")
    return None


def choose_device(wanted: str | None) -> torch.device:
    """The device asked for, else CUDA where there is one, else the CPU.

    Raises:
        EnvironmentFault: the device asked for is not there.
    """
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise EnvironmentFault(f"--device is {wanted!r}, expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise EnvironmentFault(f"--device is {wanted!r}, expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFault(
            f"--device is {wanted!r}, found {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def precision_name(dtype: torch.dtype | None) -> str:
    """The precision as logs and records name it: bf16, fp16 or float32."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "float32") if dtype is not None else "float32"
