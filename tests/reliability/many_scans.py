#!/usr/bin/env python3
"""Thousands of small scans, some of them broken, and ``medseg infer`` killed in the midst of them.

    python tests/reliability/many_scans.py --scans 2000 --broken 30 --kills 3 --output many_scans.md

The command is started, killed with SIGKILL (its whole process group) when a share of the masks is there, and started again,
until it ends by itself. Then every good scan must have the mask that `medseg.load(...).predict` gives for it, every broken one
its reason, no mask may have been written twice, and the exit code must be 4.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

import numpy as np  # noqa: E402

import medseg  # noqa: E402
from medseg.imaging import read_label_map  # noqa: E402
from tests.inference.stand_ins import write_model  # noqa: E402
from tests.reliability.broken_scans import HOOK, SHAPE, broken_scans  # noqa: E402
from tests.synthetic import affine_of, scan_on, write_scan  # noqa: E402

_LOG = logging.getLogger("many_scans")
_SIDECAR = ".sidecar.json"
_MOST_SECONDS = 3600.0
_DIFFERENT = 20


@dataclass
class Trial:
    """What happened; every list but ``seconds`` should be empty.

    Attributes:
        good, broken: ids of the cases.
        kept_at: masks that were there at each kill.
        seconds: of each start.
        exit_code: of the last start; 4 where some are broken.
        wrong: good scans without their mask, or with another one.
        unexplained: broken scans without a reason, or with a mask.
        redone: masks that were there at a kill and were written again.
        left_over: temporary files, locks and notes at the end.
        reports: faults of report.jsonl and report.csv.
        again: what one more start did besides keeping everything.
        reasons: of the broken scans.
    """

    good: list[str]
    broken: list[str]
    kept_at: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    exit_code: int = -1
    wrong: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    redone: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """Everything that is wrong, one line each."""
        names = ("wrong", "unexplained", "redone", "left_over", "reports", "again")
        found = [f"{name}: {entry}" for name in names for entry in getattr(self, name)]
        wanted = 4 if self.broken else 0
        return found if self.exit_code == wanted else [*found, f"exit code {self.exit_code}, expected {wanted}"]


class Scans:
    """The scans, the model and the command of a trial, all in one folder."""

    def __init__(self, folder: Path, *, scans: int, broken: int) -> None:
        self.folder, self.input, self.output = folder, folder / "scans", folder / "masks"
        self.model = write_model(folder / "model")
        self._hook = folder / "hook"
        self._hook.mkdir(parents=True)
        (self._hook / "sitecustomize.py").write_text(HOOK)
        self.good = [f"s{number:05d}" for number in range(scans - broken)]
        self._write_good()
        # Named so that they lie among the good ones.
        whole = (self.input / f"{self.good[0]}.nii.gz").read_bytes()
        self.broken = broken_scans(self.input, broken, whole)
        for place, case_id in enumerate(self.broken):
            after = self.good[place * len(self.good) // broken]
            self.broken[place] = self._renamed(case_id, f"{after}_{case_id}")

    def _write_good(self) -> None:
        different = [self._scan(seed) for seed in range(min(_DIFFERENT, len(self.good)))]
        self.input.mkdir()
        for number, case_id in enumerate(self.good):
            shutil.copy(different[number % len(different)], self.input / f"{case_id}.nii.gz")

    def _scan(self, seed: int) -> Path:
        image, _ = write_scan(
            scan_on(SHAPE, affine_of((1, 1, 1.5)), seed=seed), self.folder / "different", case_id=f"{seed}"
        )
        return image

    def _renamed(self, case_id: str, new: str) -> str:
        """Files that a hook knows by their beginning go into a folder of that name in place of being renamed."""
        (path,) = (found for found in self.input.iterdir() if found.name.split(".")[0] == case_id)
        folder = self.input / new.removesuffix(f"_{case_id}")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
        return new

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the command in a process group of its own; what it says is appended to ``said.txt``."""
        code = "import sys; from medseg.pipelines.infer import main; sys.exit(main())"
        flags = ["--model", str(self.model), "--output", str(self.output), "--device", "cpu", "--read-seconds", "10"]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MEDSEG_TRACKING": "off",
            "PYTHONPATH": os.pathsep.join((str(self._hook), str(_ROOT))),
        }
        command = [sys.executable, "-c", code, str(self.input), *flags]
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)

    def masks(self) -> dict[str, tuple[int, int]]:
        """Finished masks: name to inode and time of writing."""
        found = {}
        for sidecar in self.output.glob(f"[!.]*{_SIDECAR}"):
            status = sidecar.with_name(sidecar.name.removesuffix(_SIDECAR)).stat()
            found[sidecar.name.removesuffix(_SIDECAR)] = (status.st_ino, status.st_mtime_ns)
        return found


def run_trial(folder: Path, *, scans: int, broken: int, kills: int) -> Trial:
    """Writes the scans, runs and kills the command, and looks at what is there in the end."""
    made = Scans(folder, scans=scans, broken=broken)
    trial = Trial(good=made.good, broken=made.broken)
    seen: dict[str, tuple[int, int]] = {}
    for number in range(kills):
        _run(made, trial, until=len(made.good) * (number + 1) // (kills + 1))
        now = made.masks()
        trial.redone += [name for name, mark in seen.items() if now.get(name) != mark]
        trial.kept_at.append(len(now))
        seen = now
    trial.exit_code = _run(made, trial, until=None)
    now = made.masks()
    trial.redone += [name for name, mark in seen.items() if now.get(name) != mark]
    _check(made, trial)
    code = _run(made, trial, until=None)
    after = made.masks()
    trial.again += [name for name, mark in now.items() if after.get(name) != mark]
    trial.again += [] if code == trial.exit_code else [f"exit code {code}"]
    return trial


def _run(made: Scans, trial: Trial, *, until: int | None) -> int:
    """Starts the command; kills it when so many masks are there, or lets it end."""
    began, process = time.monotonic(), made.start()
    try:
        while process.poll() is None and (until is None or len(list(made.output.glob(f"[!.]*{_SIDECAR}"))) < until):
            assert time.monotonic() - began < _MOST_SECONDS, (made.folder / "said.txt").read_text()[-3000:]
            time.sleep(0.05)
        assert until is None or process.poll() is None, (
            "ended before its kill:\n" + (made.folder / "said.txt").read_text()
        )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    trial.seconds.append(time.monotonic() - began)
    _LOG.info("ended with %d after %.0f s, %d masks", code, trial.seconds[-1], len(made.masks()))
    return code


def _check(made: Scans, trial: Trial) -> None:
    lines = [json.loads(line) for line in (made.output / "report.jsonl").read_text().splitlines()]
    by_id = {line["id"]: line for line in lines}
    if len(lines) != len(by_id) or by_id.keys() != {*trial.good, *trial.broken}:
        trial.reports.append(f"report.jsonl has {len(lines)} lines for {len(trial.good) + len(trial.broken)} cases")
    rows = (made.output / "report.csv").read_text().splitlines()
    if [row.split(",")[0] for row in rows[1:]] != [line["id"] for line in lines]:
        trial.reports.append("report.csv has other cases than report.jsonl")
    for case_id in trial.broken:
        line = by_id.get(case_id, {})
        trial.reasons[case_id] = line.get("reason") or ""
        if line.get("status") not in ("refused", "failed") or not line.get("reason") or line.get("output"):
            trial.unexplained.append(f"{case_id}: {line.get('status')}, {line.get('reason')}")
    trial.wrong += _wrong_masks(made, trial.good)
    masks = {f"{case_id}.nii.gz" for case_id in trial.good}
    known = masks | {f"{name}{_SIDECAR}" for name in masks}
    for path in sorted(made.output.iterdir()):
        journal, hidden = path.match("report-*.jsonl"), path.name.startswith(".")
        if journal or hidden or (".nii.gz" in path.name and path.name not in known):
            trial.left_over.append(path.name)


def _wrong_masks(made: Scans, good: Sequence[str]) -> list[str]:
    """Compares with what the Python interface says of each of the different scans."""
    model = medseg.load(made.model)
    answers = [
        model.predict(made.folder / "different" / "images" / f"{seed}.nii.gz")
        for seed in range(min(_DIFFERENT, len(good)))
    ]
    wrong = []
    for number, case_id in enumerate(good):
        path, answer = made.output / f"{case_id}.nii.gz", answers[number % len(answers)]
        if not path.is_file() or not np.array_equal(read_label_map(path).array, answer.array):
            wrong.append(case_id)
    return wrong


def text_of(trial: Trial, arguments: Sequence[str]) -> str:
    """The result as Markdown."""
    scans = len(trial.good) + len(trial.broken)
    lines = [
        f"# {scans} scans, {len(trial.broken)} of them broken, {len(trial.kept_at)} kills, {time.strftime('%Y-%m-%d')}",
        "",
        f"- command: `python tests/reliability/many_scans.py {shlex.join(arguments)}`",
        f"- machine: {platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} core(s) given",
        f"- seconds of each start: {', '.join(f'{seconds:.0f}' for seconds in trial.seconds)} (the last one found all done)",
        f"- masks at each kill: {', '.join(map(str, trial.kept_at))}; redone afterwards: {len(trial.redone)}",
        f"- good scans with their mask: {len(trial.good) - len(trial.wrong)} of {len(trial.good)}",
        f"- broken scans with their reason: {len(trial.broken) - len(trial.unexplained)} of {len(trial.broken)}",
        f"- exit code: {trial.exit_code}",
        "",
        "| broken scan | reason |",
        "| --- | --- |",
        *(f"| {case_id.split('_', 1)[1]} | {reason} |" for case_id, reason in trial.reasons.items()),
        "",
    ]
    return "\n".join([*lines, *(f"- FAULT {fault}" for fault in trial.faults[:50])]).rstrip("\n") + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trial and prints what came of it; 1 if anything was wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=2000, help="in all [2000]")
    parser.add_argument("--broken", type=int, default=30, help="of them [30]")
    parser.add_argument("--kills", type=int, default=3, help="[3]")
    parser.add_argument("--output", type=Path, help="Markdown file for the result")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = Path(tempfile.mkdtemp(prefix="many-scans-"))
    trial = run_trial(folder, scans=args.scans, broken=args.broken, kills=args.kills)
    text = text_of(trial, arguments)
    if args.output:
        args.output.write_text(text)
    sys.stdout.write(text)
    if trial.faults:
        _LOG.info("what went wrong lies in %s", folder)
    else:
        shutil.rmtree(folder)
    return int(bool(trial.faults))


if __name__ == "__main__":
    sys.exit(main())
