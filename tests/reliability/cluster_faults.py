#!/usr/bin/env python3
"""A Dask cluster of local worker processes: one is killed, one is frozen, and whether every case was done, once and alike.

    python tests/reliability/cluster_faults.py --cases 200 --output benchmarks/results/cluster_2026-01-31.md
    python tests/reliability/cluster_faults.py --timing

The workers have work folders of their own and no nanny, so a killed one stays dead. The masks are compared with those of the
same command without a cluster. ``--timing`` compares two workers of one thread each with one: on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

from medseg.durable import sha256_file  # noqa: E402
from tests.inference.stand_ins import write_model  # noqa: E402
from tests.synthetic import affine_of, scan_on, write_scan  # noqa: E402

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
LOST_SECONDS = 8.0
_MOST_SECONDS = 540.0


@dataclass
class Machines:
    """A scheduler and its workers, each a process."""

    folder: Path
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.folder / "scheduler.json")

    def add_worker(self, *more: str) -> subprocess.Popen[bytes]:
        name = f"w{len(self.workers)}"
        own = self.folder / name
        own.mkdir()
        command = ["worker", "--scheduler-file", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        command += ["--memory-limit", "0", "--local-directory", str(own / "spill"), "--name", name, *more]
        self.workers.append(dask(command, own, self.folder / f"{name}.log"))
        return self.workers[-1]

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))


def dask(arguments: Sequence[str], cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments], cwd=cwd, stdout=stream, stderr=stream,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(_ROOT)},
        )  # fmt: skip


@contextmanager
def machines(folder: Path, workers: int) -> Iterator[Machines]:
    folder.mkdir(parents=True)
    command = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    command += ["--scheduler-file", str(folder / "scheduler.json")]
    made = Machines(folder, dask(command, folder, folder / "scheduler.log"))
    try:
        until = time.monotonic() + 60
        while not Path(made.address).exists():
            assert time.monotonic() < until, made.logs()
            time.sleep(0.1)
        for _ in range(workers):
            made.add_worker()
        yield made
    finally:
        made.stop()


def write_scans(folder: Path, count: int, side: int = 24) -> Path:
    """Scans that differ, in ``folder/scans``."""
    scans = folder / "scans"
    for number in range(count):
        shape = (side, side + number % 5, side)
        image, _ = write_scan(scan_on(shape, affine_of((1, 1, 1.5)), seed=number), folder / "made")
        scans.mkdir(exist_ok=True)
        shutil.move(image, scans / f"scan_{number:03d}.nii.gz")
    return scans


def infer(scans: Path, model: Path, output: Path, *more: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medseg.cli.main", "infer", str(scans), "--model", str(model)]
    command += ["--output", str(output), "--device", "cpu", *more]
    with log.open("w") as stream:
        return subprocess.Popen(command, cwd=_ROOT, stdout=stream, stderr=stream, env={**os.environ, **ONE_THREAD})


def masks(output: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(output.glob("*.nii.gz"))}


def lines(output: Path) -> list[dict[str, object]]:
    report = output / "report.jsonl"
    if not report.exists():
        return []
    found = []
    for text in report.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue  # being written
    return found


def wait_for_lines(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _MOST_SECONDS
    while len(lines(output)) < count:
        assert process.poll() is None, "ended before the fault"
        assert time.monotonic() < until, "too slow"
        time.sleep(0.02)


@dataclass
class Findings:
    """What was seen; ``faults`` should be empty."""

    faults: list[str] = field(default_factory=list)
    killed_at: int = 0
    frozen_at: int = 0
    seconds: float = 0.0
    log: str = ""


def run(folder: Path, *, cases: int) -> Findings:
    """Three workers, one killed and one frozen in mid-run, against the command alone."""
    found = Findings()
    scans, model = write_scans(folder, cases), write_model(folder / "model")
    alone, output = folder / "alone", folder / "clustered"
    assert infer(scans, model, alone, log=folder / "alone.log").wait(_MOST_SECONDS) == 0
    with machines(folder / "machines", 3) as made:
        began = time.monotonic()
        flags = ("--cluster", made.address, "--cluster-lost", str(LOST_SECONDS))
        process = infer(scans, model, output, *flags, log=folder / "clustered.log")
        try:
            wait_for_lines(output, cases // 5, process)
            made.workers[0].kill()
            found.killed_at = len(lines(output))
            wait_for_lines(output, cases * 2 // 5, process)
            made.workers[1].send_signal(signal.SIGSTOP)
            found.frozen_at = len(lines(output))
            code = process.wait(_MOST_SECONDS)
            found.seconds = time.monotonic() - began
            before = masks(output)
            made.workers[1].send_signal(signal.SIGCONT)  # thawed, it may end the case that it had
            time.sleep(3)
        finally:
            process.kill()
            process.wait()
        found.log = (folder / "clustered.log").read_text()
        if code != 0:
            found.faults.append(f"exit code {code}, expected 0")
    check(found, alone, output, before, cases)
    # The same command without the cluster finds everything done: the sidecars are the same.
    assert infer(scans, model, output, log=folder / "again.log").wait(_MOST_SECONDS) == 0
    if f"{cases} kept" not in (folder / "again.log").read_text():
        found.faults.append("the command without the cluster does cases again")
    return found


def check(found: Findings, alone: Path, output: Path, before: dict[str, str], cases: int) -> None:
    if masks(output) != masks(alone):
        found.faults.append("masks differ from those without a cluster")
    if masks(output) != before:
        found.faults.append("the thawed worker changed a mask")
    statuses = Counter(str(line["status"]) for line in lines(output))
    ids = {line["id"] for line in lines(output)}
    if statuses != {"ok": cases} or len(ids) != cases:
        found.faults.append(f"report: {dict(statuses)} of {len(ids)} cases, expected {cases} ok")
    if left := [path.name for path in output.iterdir() if path.name.startswith((".tmp-", ".cluster-", ".lock"))]:
        found.faults.append(f"left over: {left}")


def time_workers(folder: Path, *, cases: int, side: int, workers: int) -> float:
    """Seconds for ``cases`` with so many workers of one thread, their model loaded before."""
    scans, model = folder / "scans", folder / "model"
    with machines(folder / f"machines_{workers}", workers) as made:
        some = folder / "some"
        if not some.exists():
            some.mkdir()
            for path in sorted(scans.iterdir())[: 4 * workers]:
                shutil.copy(path, some)
        flags = ("--cluster", made.address)
        warm = infer(some, model, folder / f"warm_{workers}", *flags, log=folder / "warm.log")
        assert warm.wait(_MOST_SECONDS) == 0, (folder / "warm.log").read_text()
        began = time.monotonic()
        process = infer(scans, model, folder / f"timed_{workers}", *flags, log=folder / "timed.log")
        wait_for_lines(folder / f"timed_{workers}", 1, process)
        first = time.monotonic()
        assert process.wait(_MOST_SECONDS) == 0, (folder / "timed.log").read_text()
        sys.stdout.write(f"{workers} worker(s): {first - began:.1f} s to the first mask, ")
        seconds = time.monotonic() - first
        sys.stdout.write(f"{seconds:.1f} s from there to the end of {cases} cases of {side}^3\n")
        return seconds


def report(found: Findings, cases: int) -> str:
    return "\n".join([
        f"# {cases} cases on three Dask workers, one killed and one frozen, {time.strftime('%Y-%m-%d')}", "",
        f"- command: `python tests/reliability/cluster_faults.py --cases {cases}`",
        f"- killed after {found.killed_at} cases, frozen (SIGSTOP) after {found.frozen_at}; {found.seconds:.0f} s in all",
        f"- a silent worker counts as lost after {LOST_SECONDS:g} s (60 s unless told)",
        "- checked: exit code, masks equal to those without a cluster, one report line a case, nothing left over, and that the",
        "  command without a cluster keeps every mask afterwards",
        f"- faults: {'; '.join(found.faults) or 'none'}", "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it and prints what was found; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--timing", action="store_true", help="two workers against one, in place of the faults")
    parser.add_argument("--side", type=int, default=64, help="voxels along the timed scans' axes [64]")
    parser.add_argument("--output", type=Path, help="Markdown file")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    try:
        if args.timing:
            write_scans(folder, args.cases, args.side)
            write_model(folder / "model")
            one, two = (time_workers(folder, cases=args.cases, side=args.side, workers=n) for n in (1, 2))
            sys.stdout.write(f"two workers need {two / one:.2f} of one's time\n")
            return 0 if two <= 0.6 * one else 1
        found = run(folder, cases=args.cases)
    except BaseException:
        for log in sorted(folder.rglob("*.log")):
            sys.stdout.write(f"--- {log.name}\n{log.read_text()[-2000:]}\n")
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(report(found, args.cases))
    if args.output is not None:
        args.output.write_text(report(found, args.cases))
    if found.faults:
        sys.stdout.write(found.log[-3000:])
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
