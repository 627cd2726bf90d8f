"""The four stages as commands: what each leaves, what must be equal, and how much a start did and kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medseg.durable import sha256_file
from tests.experiment import Experiment
from tests.reliability.watching import MARKER, TEMPORARY

LOGS = ("logs", "tracking")
"""Folders of a work folder that are no results."""
_MOST_SECONDS = 240


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: the verb.
        equal: patterns, below the work folder, of the files that must be the same in the end, byte for byte.
        appended: those of them that grow line by line; after a kill they may be shorter.
        flags: besides those of every stage.
        expected: what a start must do, given what lies in the work folder.
        counted: what a start said it did, from its output.
    """

    name: str
    equal: tuple[str, ...]
    expected: Callable[[Path, Experiment], dict[str, int]]
    counted: Callable[[str], dict[str, int]]
    appended: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    def hashes(self, work: Path) -> dict[str, str]:
        """Path below ``work`` to sha256, of the files that must be equal."""
        files = sorted(path for pattern in self.equal for path in _final(work, pattern))
        return {path.relative_to(work).as_posix(): sha256_file(path) for path in files}


def _sum(pattern: str, text: str) -> int:
    return sum(int(number) for number in re.findall(pattern, text))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _final(work: Path, pattern: str) -> list[Path]:
    return [path for path in work.glob(pattern) if not path.name.startswith(TEMPORARY)]


def _prepare_expected(work: Path, made: Experiment) -> dict[str, int]:
    known, stored = _lines(work / "prepared" / "facts.jsonl"), len(_final(work, "prepared/cases/*.bin"))
    manifest = json.loads((made.data / "dataset.json").read_text())
    training, testing = len(manifest["training"]), len(manifest["testing"])
    return {"scans read": training + testing - known, "cases written": training - stored}


def _prepare_counted(text: str) -> dict[str, int]:
    return {"scans read": _sum(r"\((\d+) read now\)", text), "cases written": _sum(r"(\d+) written now", text)}


def _train_expected(work: Path, _: Experiment) -> dict[str, int]:
    if list(work.glob("runs/*/model/model.json")):
        return {"finished": 1, "step": 0}
    return {"finished": 0, "step": max((int(p.stem) for p in work.glob("runs/*/state/[0-9]*.json")), default=0)}


def _train_counted(text: str) -> dict[str, int]:
    return {"finished": int("trained before" in text), "step": _sum(r"goes on after step (\d+) of", text)}


def _infer_expected(work: Path, made: Experiment) -> dict[str, int]:
    sidecars = _final(work, "predictions/*/*.sidecar.json")
    kept = sum(path.with_name(path.name.removesuffix(".sidecar.json")).exists() for path in sidecars)
    return {"kept": kept, "done": sum(map(len, made.predicted.values())) - kept}


def _infer_counted(text: str) -> dict[str, int]:
    return {"kept": _sum(r"(\d+) kept", text), "done": _sum(r"(\d+) ok", text)}


def _evaluate_expected(work: Path, made: Experiment) -> dict[str, int]:
    kept = len(_final(work, "scores/*/cases/*.json"))
    return {"kept": kept, "done": sum(map(len, made.predicted.values())) - kept}


def _evaluate_counted(text: str) -> dict[str, int]:
    return {"kept": _sum(r"cases scored, (\d+) kept", text), "done": _sum(r"(\d+) cases scored,", text)}


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            ("prepared/cases/*", "prepared/index.json", "prepared/plan.yaml", "prepared/fingerprint.json",
             "prepared/checks.json", "prepared/facts.jsonl"),
            _prepare_expected,
            _prepare_counted,
            appended=("prepared/facts.jsonl",),
            flags=("--processes", "2"),
        ),
        Stage("train", ("runs/*/model/*",), _train_expected, _train_counted),
        Stage("infer", ("predictions/*/*.nii.gz", "predictions/*/*.sidecar.json"), _infer_expected, _infer_counted),
        Stage(
            "evaluate",
            ("scores/*/cases.csv", "scores/*/metrics.json", "scores/*/cases/*.json"),
            _evaluate_expected,
            _evaluate_counted,
            flags=("--processes", "2"),
        ),
    )
}  # fmt: skip


def start(
    stage: Stage, made: Experiment, work: Path, *, marker: str, tracked: bool, output: Path
) -> subprocess.Popen[bytes]:
    """Starts the stage's command in a process group of its own; what it says goes to the file ``output``."""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "MEDSEG_TRACKING": "on" if tracked else "off",
        "PYTHONPATH": str(root),
        MARKER: marker,
    }
    command = [sys.executable, "-m", "medseg.cli.main", stage.name, *made.flags(work), *stage.flags]
    with output.open("wb") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)


def run(stage: Stage, made: Experiment, work: Path, *, marker: str, tracked: bool = False) -> str:
    """Runs the command to its end and gives what it said; it must end in 0."""
    output = work.with_name(f"{work.name}.out")
    process = start(stage, made, work, marker=marker, tracked=tracked, output=output)
    code = process.wait(_MOST_SECONDS)
    said = output.read_text()
    assert code == 0, f"{stage.name} ended in {code}:\n{said}"
    return said


def broken_files(stage: Stage, work: Path, reference: dict[str, str]) -> list[str]:
    """Files under a final name that are not what an undisturbed run writes there: partial, or of another content."""
    found = [
        name
        for name, sha256 in stage.hashes(work).items()
        if name not in stage.appended and reference.get(name) != sha256
    ]
    for path in work.rglob("*.json"):
        inside = path.relative_to(work).parts
        if inside[0] in LOGS or path.name.startswith(TEMPORARY):
            continue
        try:
            content = json.loads(path.read_text())
            if path.parent.name == "state" and sha256_file(path.with_suffix(".safetensors")) != content["sha256"]:
                found.append("/".join(inside))
        except (ValueError, OSError):
            found.append("/".join(inside))
    return sorted(set(found))


def temporaries(work: Path) -> list[str]:
    """Temporary files in the work folder, without the logs' and the tracking database's, which its next sender removes."""
    found = (path.relative_to(work) for path in work.rglob(f"{TEMPORARY}*"))
    others = ("-lock", "mlflow.db", "mlflow.db-journal")
    return sorted(path.as_posix() for path in found if path.parts[0] not in LOGS and not path.name.endswith(others))
