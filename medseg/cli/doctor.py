"""``medseg doctor``: what a bug report needs about this machine, with nothing private in it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.cli.entry import Context, run_verb


def main(argv: Sequence[str] | None = None) -> int:
    """Prints versions, device, bf16, threads, memory, disk and tracker; no host, user or path."""
    return run_verb(
        "doctor",
        argv,
        body=_doctor,
        add_arguments=_add_arguments,
        description="Print what a bug report needs: no host, user or folder name is in it.",
        needs_config=False,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _doctor(context: Context) -> int:
    report = examine(context.work)
    if context.args.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(report)))
    return 0


def examine(work: Path) -> dict[str, Any]:
    """The report as plain values.

    Args:
        work: the work folder, whose disk and tracker are looked at; it need not exist.
    """
    from medseg.tracking import privacy
    from medseg.tracking.reach import tracker_state
    from medseg.tracking.record import code_commit, versions

    report = {
        "versions": versions(),
        "commit": code_commit() or "unknown",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": _device(),
        "memory": _memory(),
        "disk": _disk(work),
        "limits": {"open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0]},
        "tracker": tracker_state(work),
    }
    cleaned: dict[str, Any] = privacy.safe_value(report)
    return cleaned


def _device() -> dict[str, Any]:
    import torch

    from medseg.networks.precision import has_bf16

    result: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bf16": has_bf16(torch.device("cpu")),
    }
    if "OMP_NUM_THREADS" in os.environ:
        result["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    if not torch.cuda.is_available():
        return result | {"cuda": "none"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if has_bf16(torch.device("cuda", index)) else "no bf16"
        result[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {bf16}"
    return result | {"cuda": str(torch.version.cuda)}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory() -> dict[str, Any]:
    import psutil  # type: ignore[import-untyped, unused-ignore]

    memory = psutil.virtual_memory()
    result = {"total_gb": round(memory.total / 1e9, 1), "available_gb": round(memory.available / 1e9, 1)}
    limit = _container_limit()
    return result | ({"container_limit_gb": round(limit / 1e9, 1)} if limit and limit < memory.total else {})


def _container_limit() -> int | None:
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _disk(work: Path) -> dict[str, Any]:
    folder = next(place for place in (work.absolute(), *work.absolute().parents) if place.exists())
    result = {
        "work_free_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "work_writable": os.access(folder, os.W_OK),
    }
    shared = Path("/dev/shm")  # noqa: S108 - looked at, not written
    return result | (
        {"shared_memory_free_gb": round(shutil.disk_usage(shared).free / 1e9, 1)} if shared.exists() else {}
    )


def _lines(report: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in report.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix + key:<28}{value}")
    return lines
