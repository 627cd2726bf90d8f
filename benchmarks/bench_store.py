"""Which format should prepared cases have? Measures ways to keep an image and its labels on disk and read patches.

    python benchmarks/bench_store.py [--folder DIR] [--patches N] [--quick]

Two subjects: a CT-like 512x512x600 volume read in 128^3 patches at random places, and hippocampus-size cases (35x50x36) read
whole in 40x56x40 patches. For each format and type: bytes, seconds to write, milliseconds per patch (image and labels, as
float32 and uint8) with a cold and a warm page cache, with 1 and 4 reading processes. "Cold" drops the files' pages with
posix_fadvise before every patch; the disk's own cache stays. Prints a Markdown table; benchmarks/results/ keeps dated ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medseg.preparation import writing
from medseg.preparation.grid import Grid, rows_of
from medseg.preparation.store import StoredCase
from medseg.preparation.writing import write_case

Shape = tuple[int, int, int]
Read = Callable[[Shape, Shape], Any]


def ct_like(shape: Shape, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A body with organs and noise in a constant surrounding, normalised; labels are three organs."""
    rng = np.random.default_rng(seed)
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    image, labels = np.empty(shape, np.float32), np.zeros(shape, np.uint8)
    for k in range(shape[2]):
        radius = (x[:, None] / 0.85) ** 2 + (y[None, :] / 0.65) ** 2
        hounsfield = np.where(radius < 1, 40 + 30 * np.sin(9 * x[:, None]) * np.cos(7 * y[None, :] + 4 * z[k]), -1024)
        for index, (cx, cy, cz, r) in enumerate(
            ((-0.3, 0.1, 0, 0.3), (0.35, -0.1, 0.2, 0.2), (0.1, 0.3, -0.3, 0.12)), 1
        ):
            organ = (x[:, None] - cx) ** 2 + (y[None, :] - cy) ** 2 + (z[k] - cz) ** 2 < r * r
            labels[:, :, k][organ] = index
            hounsfield = np.where(organ, 100 + 20 * index, hounsfield)
        noise = rng.standard_normal(shape[:2], dtype=np.float32) * np.where(radius < 1.1, 18, 0)
        image[:, :, k] = (np.rint(np.clip(hounsfield + noise, -1024, 3071)).clip(-160, 240) - 40) / 60
    return image, labels


def small_case(shape: Shape, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise, two labels."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    labels = (smooth > np.quantile(smooth, 0.95)).astype(np.uint8) + (smooth > np.quantile(smooth, 0.98))
    return (smooth / smooth.std() + 0.3 * rng.standard_normal(shape)).astype(np.float32), labels.astype(np.uint8)


# --- formats: write(folder, image, labels, dtype), then open(folder) -> read(start, size) ---------------------------


SHIPPED = (writing.CHUNK_XYZ[0], writing.WHOLE_BELOW_VOXELS)


class Ours:
    """The store: chunks in raw bytes with a CRC-32 each."""

    def __init__(self, edge: int) -> None:
        self.name, self.edge = f"ours, {edge}^3 chunks, crc32" if edge else "ours as it is shipped", edge

    def write(self, folder: Path, image: np.ndarray, labels: np.ndarray, dtype: str) -> None:
        unit, shape = rows_of(np.eye(4)), image.shape
        grid = Grid(
            original_shape=shape, original_affine=unit, permutation=(0, 1, 2), flips=(False,) * 3, crop_start=(0, 0, 0),
            crop_stop=shape, spacing_xyz_mm=(1.0,) * 3, prepared_shape=shape, prepared_affine=unit,
            prepared_spacing_xyz_mm=(1.0,) * 3,
        )  # fmt: skip
        writing.CHUNK_XYZ = (self.edge or SHIPPED[0],) * 3
        writing.WHOLE_BELOW_VOXELS = 0 if self.edge else SHIPPED[1]
        write_case(folder / "case.bin", image=image[None], labels=labels, grid=grid, locations={}, dtype=dtype)

    def open(self, folder: Path) -> Read:
        return StoredCase("case", folder / "case.bin").read_patch


class PlainNpy:
    """np.save in C order, read through np.load(mmap_mode="r"). No checksum."""

    name = "npy, C order, memory-mapped"

    def write(self, folder: Path, image: np.ndarray, labels: np.ndarray, dtype: str) -> None:
        folder.mkdir(parents=True)
        for name, array in (("image", image.astype(dtype)), ("labels", labels)):
            with (folder / f"{name}.npy").open("wb") as stream:
                np.save(stream, array)
                os.fsync(stream.fileno())

    def open(self, folder: Path) -> Read:
        def read(start: Shape, size: Shape) -> Any:
            box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
            image, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("image", "labels"))
            return image[box].astype(np.float32), np.array(labels[box])

        return read


class ChunkedNpy:
    """Chunk-major npy (one row a chunk, padded), memory-mapped, CRC-32 per chunk in a second npy."""

    def __init__(self, edge: int) -> None:
        self.name, self.edge = f"npy, chunk-major {edge}^3, memory-mapped, crc32", edge

    def write(self, folder: Path, image: np.ndarray, labels: np.ndarray, dtype: str) -> None:
        import zlib

        folder.mkdir(parents=True)
        e = self.edge
        for name, array in (("image", image.astype(dtype)), ("labels", labels)):
            padded = np.pad(array, [(0, -n % e) for n in array.shape])
            nx, ny, nz = (n // e for n in padded.shape)
            rows = padded.reshape(nx, e, ny, e, nz, e).transpose(0, 2, 4, 1, 3, 5).reshape(nx * ny * nz, e, e, e)
            np.save(folder / f"{name}.crc.npy", np.array([zlib.crc32(row.tobytes()) for row in rows], np.uint32))
            with (folder / f"{name}.npy").open("wb") as stream:
                np.save(stream, rows)
                os.fsync(stream.fileno())
        np.save(folder / "shape.npy", np.array(image.shape))

    def open(self, folder: Path) -> Read:
        import zlib

        e = self.edge
        shape = np.load(folder / "shape.npy").tolist()
        grid = [-(-n // e) for n in shape]
        crcs = {name: np.load(folder / f"{name}.crc.npy") for name in ("image", "labels")}

        def read(start: Shape, size: Shape) -> Any:
            out = {"image": np.zeros(size, np.float32), "labels": np.zeros(size, np.uint8)}
            for name, target in out.items():
                rows = np.load(folder / f"{name}.npy", mmap_mode="r")
                spans = [
                    range(s // e, (min(s + n, m) - 1) // e + 1) for s, n, m in zip(start, size, shape, strict=True)
                ]
                for i in spans[0]:
                    for j in spans[1]:
                        for k in spans[2]:
                            number = (i * grid[1] + j) * grid[2] + k
                            row = np.asarray(rows[number])
                            assert zlib.crc32(row.data) == crcs[name][number]
                            here, there = [], []
                            for c, s, n in zip((i, j, k), start, size, strict=True):
                                low, high = max(c * e, s), min(c * e + e, s + n)
                                here.append(slice(low - c * e, high - c * e))
                                there.append(slice(low - s, high - s))
                            target[tuple(there)] = row[tuple(here)]
            return out["image"], out["labels"]

        return read


class Blosc2:
    """blosc2 NDArray frames, memory-mapped, one thread. No checksum."""

    def __init__(self, codec: str, level: int, chunk: int, block: int) -> None:
        self.name, self.codec, self.level, self.chunk, self.block = (
            f"blosc2 {codec} {level}, chunks {chunk}^3, blocks {block}^3", codec, level, chunk, block
        )  # fmt: skip

    def write(self, folder: Path, image: np.ndarray, labels: np.ndarray, dtype: str) -> None:
        import blosc2

        folder.mkdir(parents=True)
        blosc2.set_nthreads(1)
        for name, array in (("image", image.astype(dtype)), ("labels", labels)):
            cut = [tuple(min(n, edge) for n in array.shape) for edge in (self.chunk, self.block)]
            blosc2.asarray(
                np.ascontiguousarray(array), chunks=cut[0], blocks=cut[1], urlpath=str(folder / f"{name}.b2nd"), mode="w",
                cparams=blosc2.CParams(codec=blosc2.Codec[self.codec], clevel=self.level, nthreads=1),
            )  # fmt: skip
            with (folder / f"{name}.b2nd").open("rb") as stream:
                os.fsync(stream.fileno())

    def open(self, folder: Path) -> Read:
        import blosc2

        blosc2.set_nthreads(1)

        def read(start: Shape, size: Shape) -> Any:
            box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
            image, labels = (
                blosc2.open(str(folder / f"{name}.b2nd"), mode="r", mmap_mode="r", dparams={"nthreads": 1})
                for name in ("image", "labels")
            )
            return image[box].astype(np.float32), labels[box]

        return read


def formats(quick: bool) -> list[Any]:
    most = [
        PlainNpy(),
        Ours(0),
        Ours(32),
        Ours(64),
        ChunkedNpy(64),
        Blosc2("LZ4", 5, 128, 32),
        Blosc2("ZSTD", 3, 128, 32),
    ]
    return most if quick else [*most, Ours(16), Ours(48), Ours(128), ChunkedNpy(32), Blosc2("LZ4", 5, 64, 32)]


# --- measuring ------------------------------------------------------------------------------------------------------


def drop_pages(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def time_reads(job: tuple[Any, list[Path], Shape, Shape, int, int, bool]) -> list[tuple[float, float]]:
    form, folders, shape, size, count, seed, cold = job
    rng = np.random.default_rng(seed)
    reads = [form.open(folder) for folder in folders]
    seconds, used = [], []
    for number in range(count + 2):
        which = number % len(folders)
        start = tuple(int(rng.integers(0, max(1, n - s + 1))) for n, s in zip(shape, size, strict=True))
        within = tuple(min(n, s) for n, s in zip(shape, size, strict=True))
        if cold:
            drop_pages(folders[which])
        began, began_cpu = time.perf_counter(), time.process_time()
        reads[which](start, within)
        seconds.append(time.perf_counter() - began)
        used.append(time.process_time() - began_cpu)
    return list(zip(seconds[2:], used[2:], strict=True))


def measure(
    form: Any, dtype: str, subjects: list[tuple[np.ndarray, np.ndarray]], size: Shape, count: int, root: Path
) -> str:
    folders = [root / f"subject{i}" for i in range(len(subjects))]
    began = time.perf_counter()
    for folder, (image, labels) in zip(folders, subjects, strict=True):
        form.write(folder, image, labels, dtype)
    write_seconds = (time.perf_counter() - began) / len(subjects)
    amount = sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file()) / len(subjects)
    shape = subjects[0][0].shape
    cells = []
    for cold in (True, False):
        for readers in (1, 4):
            jobs = [(form, folders, shape, size, max(4, count // readers), 7 + r, cold) for r in range(readers)]
            if readers == 1:
                times = time_reads(jobs[0])
            else:
                with multiprocessing.get_context("fork").Pool(readers) as pool:
                    times = [t for part in pool.map(time_reads, jobs, chunksize=1) for t in part]
            cells.append(statistics.quantiles([wall for wall, _ in times], n=4)[0] * 1e3)
            if not cold and readers == 1:
                cpu = statistics.quantiles([used for _, used in times], n=4)[0] * 1e3
    shutil.rmtree(root)
    unit = (amount / 1e6, "MB") if amount > 1e6 else (amount / 1e3, "kB")
    numbers = " | ".join(f"{c:.3g}" for c in [*cells, cpu])
    return f"| {form.name} | {dtype} | {unit[0]:.0f} {unit[1]} | {write_seconds:.3g} | {numbers} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write (a disk, not tmpfs)")
    parser.add_argument("--patches", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="fewer formats")
    parser.add_argument("--subject", choices=("ct", "hippocampus", "both"), default="both")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, numpy {np.__version__}, "
          f"lower quartile of {args.patches} patches\n")  # fmt: skip
    head = (
        "| format | type | size a case | s to write | cold, 1 | cold, 4 | warm, 1 | warm, 4 | warm, 1, CPU |\n"
        + "| --- " * 9
        + "|"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.subject != "hippocampus":
            print(
                "CT-like 512x512x600, patch 128x128x128: ms per patch (image + labels), by readers\n\n" + head,
                flush=True,
            )
            subject = ct_like((512, 512, 600), 1)
            for form in formats(args.quick):
                for dtype in ("float16", "float32"):
                    print(measure(form, dtype, [subject], (128,) * 3, args.patches, Path(folder) / "ct"), flush=True)
            del subject
        if args.subject != "ct":
            print(
                "\nHippocampus size 35x50x36, patch = case: ms per patch (image + labels), by readers\n\n" + head,
                flush=True,
            )
            cases = [small_case((35, 50, 36), s) for s in range(20)]
            for form in formats(args.quick):
                for dtype in ("float16", "float32"):
                    count = 10 * args.patches
                    print(measure(form, dtype, cases, (40, 56, 40), count, Path(folder) / "small"), flush=True)


if __name__ == "__main__":
    main()
