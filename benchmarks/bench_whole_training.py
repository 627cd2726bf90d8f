"""Dice against minutes: a short training by nnU-Net as it comes and by medseg with a config, same cores, same cases.

    benchmarks/setup_nnunet.sh /tmp/nnunet_env
    python benchmarks/bench_whole_training.py --peer-python /tmp/nnunet_env/bin/python --config configs/hippocampus.yaml \\
        --data-root hippocampus --work /tmp/whole --minutes 5 10 30 [--folds 0 1 2 3 4] [--output RESULT.md]

Every budget is a training of its own with its own schedule, one after the other; minutes are those of training alone, from its
start to the last weights. Both are scored by ``medseg evaluate`` on the held-out fold; of several folds all cases are pooled,
each scored by the training that held it out. Run it with ``OMP_NUM_THREADS=1 taskset -c 0`` for one core. A second call goes on
with what is not there yet. ``--peer-mirrors off`` leaves mirroring out of nnU-Net's masks, where it would take hours.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).resolve().parent


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 10, 30])
    parser.add_argument("--folds", type=int, nargs="+", help="[the config's]")
    parser.add_argument("--only", choices=("peer", "medseg"))
    parser.add_argument("--peer-mirrors", choices=("on", "off"), default="on")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text())
    manifest = args.config.parent / config["data"]["manifest"]
    folds = args.folds or [config["data"]["fold"]]
    rows = []
    for minutes in args.minutes:
        for who, run in (("nnU-Net 2.8.1", _peer), ("medseg", _own)):
            if args.only in (None, "peer" if run is _peer else "medseg"):
                of_folds = []
                for fold in folds:
                    config["data"]["fold"] = fold
                    folder = args.work / f"{who[:6]}_{minutes:g}_fold_{fold}"
                    of_folds.append(_once(folder, run, args, config, manifest, minutes))
                rows.append((who, minutes, of_folds))
    text = _table(rows, args, config)
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text)


def _once(
    folder: Path, run: Any, args: argparse.Namespace, config: dict[str, Any], manifest: Path, minutes: float
) -> dict[str, Any]:
    kept = folder / "result.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(run(folder, args, config, manifest, minutes)))
    result: dict[str, Any] = json.loads(kept.read_text())
    return result


def _peer(
    folder: Path, args: argparse.Namespace, config: dict[str, Any], manifest: Path, minutes: float
) -> dict[str, Any]:
    command = [args.peer_python, _HERE / "peers/nnunet_train.py", manifest, args.data_root, args.work / "nnunet"]
    command += [config["data"]["fold"], minutes, args.peer_mirrors]
    out = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    report: dict[str, Any] = json.loads(out)
    if not report["steps"]:
        return report
    labels = args.work / "nnunet/nnUNet_raw/Dataset001_Set/labelsTr"
    names = {name: i for i, name in enumerate(json.loads(manifest.read_text())["labels"]) if i}
    references = folder / "references"
    references.mkdir(exist_ok=True)
    for mask in Path(report["predictions"]).glob("*.nii.gz"):
        (references / mask.name).unlink(missing_ok=True)
        (references / mask.name).symlink_to((labels / mask.name).resolve())
    _medseg(
        "evaluate", "--predictions", report["predictions"], "--references", references, "--output", folder / "scores",
        "--labels", ",".join(f"{name}={value}" for name, value in names.items()),
    )  # fmt: skip
    return report | {"dice": _dice(folder / "scores")}


def _own(
    folder: Path, args: argparse.Namespace, config: dict[str, Any], _manifest: Path, minutes: float
) -> dict[str, Any]:
    common: list[object] = ["--config", args.config, "--data-root", args.data_root, "--work", folder]
    common += ["--set", f"train.budget.minutes={minutes:g}", "--set", "tracking.enabled=false"]
    common += ["--set", f"data.fold={config['data']['fold']}"]
    _medseg("prepare", *common)
    began = time.monotonic()
    peak = _medseg("train", *common)
    took = (time.monotonic() - began) / 60
    _medseg("infer", *common)
    _medseg("evaluate", *common)
    run = f"fold_{config['data']['fold']}"
    training = json.loads((folder / "runs" / run / "model/model.json").read_text())["training"]
    plan = yaml.safe_load((folder / "prepared/plan.yaml").read_text())
    dice = _dice(folder / "scores" / run)
    return {"minutes": took, "steps": training["steps"], "batch": plan["batch_size"], "peak_mib": peak, "dice": dice}


def _medseg(*command: object) -> float:
    """Runs a verb; the peak resident memory of its process in MiB."""
    process = subprocess.Popen([sys.executable, "-m", "medseg.cli.main", *map(str, command)], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"medseg {command[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024


def _dice(scores: Path) -> dict[str, list[float]]:
    """Class name to the Dice of every case."""
    found: dict[str, list[float]] = {}
    with (scores / "cases.csv").open() as stream:
        for row in csv.DictReader(stream):
            if row["dice"]:
                found.setdefault(row["class"], []).append(float(row["dice"]))
    return found


def _table(
    rows: list[tuple[str, float, list[dict[str, Any]]]], args: argparse.Namespace, config: dict[str, Any]
) -> str:
    asked = " ".join(f"{m:g}" for m in args.minutes)
    folds = " ".join(map(str, args.folds or [config["data"]["fold"]]))
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"# Dice against minutes, {config['name']}, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python benchmarks/bench_whole_training.py --config {args.config} --minutes {asked} --folds {folds}`",
        "",
        f"{platform.machine()}, {cores} core{'s' * (cores > 1)}, torch {version('torch')}; seed {config.get('seed', 12345)}.",
        f"nnU-Net's mirrors {args.peer_mirrors}. Intervals: the mean's, 95 %, Student's t over cases.",
        "",
        "| who | minutes asked | took | steps x batch | cases | Dice (per class) | by fold | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for who, minutes, results in rows:
        if not results[0]["steps"]:
            seconds = results[0]["step_seconds"]
            lines.append(
                f"| {who} | {minutes:g} | | does not train: {seconds:.0f} s a step of {results[0]['batch']} | | | | |"
            )
            continue
        took = "-".join(f"{m:.1f}" for m in _ends([r["minutes"] for r in results]))
        steps = "-".join(str(s) for s in _ends([r["steps"] for r in results])) + f" x {results[0]['batch']}"
        pooled = {name: [d for r in results for d in r["dice"][name]] for name in results[0]["dice"]}
        each = ", ".join(f"{name} {_interval(values)}" for name, values in pooled.items())
        by_fold = ", ".join(f"{_mean_of_classes(r['dice']):.4f}" for r in results)
        cases = len(next(iter(pooled.values())))
        peak = max(r["peak_mib"] for r in results)
        lines.append(
            f"| {who} | {minutes:g} | {took} | {steps} | {cases} | {_mean_of_classes(pooled):.4f} ({each}) | {by_fold} "
            f"| {peak:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _ends(values: list[Any]) -> list[Any]:
    return sorted({min(values), max(values)})


def _mean_of_classes(dice: dict[str, list[float]]) -> float:
    return statistics.fmean(statistics.fmean(values) for values in dice.values())


def _interval(values: list[float]) -> str:
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} [{mean - half:.4f}, {mean + half:.4f}]"


if __name__ == "__main__":
    main()
