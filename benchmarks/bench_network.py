"""One window through a network on this machine's cores, beside what its arithmetic allows.

    taskset -c 1 python benchmarks/bench_network.py --model MODEL [--threads 1] [--windows 400]

Peaks: the best of square matrix products (torch.mm) and direct convolutions of a few shapes. A window: the plain network, with
faster norms alone, and as inference computes it (`medseg/networks/quick_unet.py`); CPU seconds of the calling thread with one
thread, else wall seconds; the least of five. Products are counted as the plain network would compute them. ``--windows``: that
many windows, mirrored copies counted, at the peak: the least that any direct convolution could take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from medseg.inference.model import load_model
from medseg.networks.quick_norms import quick_norms
from medseg.networks.quick_unet import is_quick, quick_unet
from medseg.runner.resources import keep_freed_memory

KINDS = {"float32": None, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", type=int, default=400)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    model = load_model(args.model)
    network, patch = model.network, [n for n in model.plan.patch_size_xyz if n > 1]
    x = torch.randn(1, model.plan.input_count, *patch)
    with torch.inference_mode():
        work = products(network, x)
        print(f"{work / 1e9:.2f} GFLOP a window of {'x'.join(map(str, patch))}, {args.threads} thread(s)\n")
        print(
            "| arithmetic | peak, GFLOP/s | windows at the peak, s | plain, s | faster norms, s | ours, s | of plain |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, kind in KINDS.items():
            best = peak(kind or torch.float32, clock)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is not None):
                ways = [
                    nullcontext(),
                    quick_norms(network),
                    quick_unet(network, kind) if is_quick(network) else nullcontext(),
                ]
                plain, norms, ours = (timed(lambda: network(x), clock, way) for way in ways)
            least = args.windows * work / best
            print(
                f"| {name} | {best / 1e9:.0f} | {least:.1f} | {plain:.3f} | {norms:.3f} | {ours:.3f} | {ours / plain:.2f} |"
            )


def timed(call: Callable[[], object], clock: Callable[[], float], way=None) -> float:
    """The least seconds of five, after one."""
    with way or nullcontext():
        call()
        seconds = []
        for _ in range(5):
            began = clock()
            call()
            seconds.append(clock() - began)
    return min(seconds)


def peak(kind: torch.dtype, clock: Callable[[], float]) -> float:
    """The most floating point operations a second that were seen."""
    a = torch.randn(2048, 2048).to(kind)
    found = [2 * 2048**3 / timed(lambda: torch.mm(a, a), clock)]
    for channels, side in ((32, 40), (64, 24), (128, 16)):
        last = torch.channels_last_3d
        maps = torch.randn(2, channels, side, side, side).to(kind).contiguous(memory_format=last)
        weight = torch.randn(channels, channels, 3, 3, 3).to(kind).contiguous(memory_format=last)
        work = 2 * 27 * channels * maps.numel()
        found.append(work / timed(lambda m=maps, w=weight: torch.nn.functional.conv3d(m, w, padding=1), clock))
    return max(found)


def products(network: torch.nn.Module, x: torch.Tensor) -> int:
    """Floating point operations (two a product) of all convolutions, zeros around included."""
    total = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        turned = isinstance(module, torch.nn.ConvTranspose2d | torch.nn.ConvTranspose3d)
        places = inputs[0] if turned else output
        total += 2 * places.numel() // places.shape[1] * module.weight.numel()

    kinds = (torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, kinds)]
    network(x)
    for hook in hooks:
        hook.remove()
    return total


if __name__ == "__main__":
    main()
