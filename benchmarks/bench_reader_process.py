#!/usr/bin/env python3
"""What it costs to decode a scan in a process of its own: wall seconds of the same reads here and there.

    python benchmarks/bench_reader_process.py --repeats 5

Scans are synthetic int16 volumes with noise, as .mha (compressed, through SimpleITK), .nii.gz and .nii.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medseg.imaging import Volume, write_volume
from medseg.inference.decoding import CaseReader
from medseg.preparation.plan import ChannelPlan

_CHANNELS = (ChannelPlan(name="CT", scheme="ct", mean=0.0, std=1.0, low=0.0, high=1.0),)
_SHAPES = ((64, 64, 40), (256, 256, 200), (512, 512, 300))


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def row(path: Path, shape: tuple[int, int, int], repeats: int) -> str:
    here, there = CaseReader(isolation="never"), CaseReader(isolation="always")

    def read(reader: CaseReader) -> Callable[[], object]:
        return lambda: reader("scan", (path,), _CHANNELS)

    seconds_of(read(here))  # libraries are imported, the file is in the system's cache
    first = seconds_of(read(there))
    own = [seconds_of(read(here)) for _ in range(repeats)]
    other = [seconds_of(read(there)) for _ in range(repeats)]
    there.close()
    name = "".join(path.suffixes)
    middle = statistics.median(own), statistics.median(other)
    size = f"{np.prod(shape) * 4 / 1e6:.0f} MB"
    return f"| {'x'.join(map(str, shape))} {name} | {size} | {middle[0]:.3f} | {middle[1]:.3f} | {first:.2f} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest", type=int, default=len(_SHAPES), help="how many of the sizes")
    args = parser.parse_args(argv)
    print("| scan | as float32 | read here, s | read in a process, s | first read there, s |")
    print("| --- | --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for shape in _SHAPES[: args.largest]:
            array = rng.normal(0, 300, (1, *shape)).round().clip(-1000, 3000).astype(np.float32)
            for suffix in (".mha", ".nii.gz", ".nii"):
                path = Path(folder) / f"scan{suffix}"
                write_volume(Volume(array, np.eye(4)), path, dtype="int16")
                print(row(path, shape, args.repeats), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
