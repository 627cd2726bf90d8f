"""What pretraining gains on hippocampus with few labelled cases: the same training from random and from pretrained weights.

    python benchmarks/pretraining_gain.py --data-root hippocampus --work gain --pretrain 20 --train 5 --seeds 3

Labelled are so many cases of folds 1 to 4, unlabelled the others of these folds; fold 0 is the test set and seen by neither.
Scans with ids 2k - 1 and 2k are taken for one person's (docs/audit.md) and kept on one side. Each seed draws other labelled
cases, and trains both networks for the same steps: as many as --train minutes give the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "hippocampus.yaml"


def person(case: dict) -> int:
    """The person a case seems to be of, by its id; see docs/audit.md."""
    return (int(case["id"].split("_")[1]) + 1) // 2


def write_manifests(folder: Path, labelled: int, seed: int) -> None:
    """``few.json`` (labelled cases, and fold 0 as fold 0) and ``rest.json`` (scans without labels)."""
    content = json.loads((ROOT / "data_manifests" / "hippocampus.json").read_text())
    test = [case for case in content["training"] if case["fold"] == 0]
    tested = {person(case) for case in test}
    usable = [case for case in content["training"] if case["fold"] != 0 and person(case) not in tested]
    people = np.random.default_rng(seed).permutation(sorted({person(case) for case in usable}))
    few: list[dict] = []
    for one in people:
        few += [case | {"fold": 1} for case in usable if person(case) == one and len(few) < labelled]
    few = few[:labelled]
    names = {case["id"] for case in few}
    chosen = {person(case) for case in few}
    rest = [{"id": c["id"], "image": c["image"]} for c in usable if c["id"] not in names and person(c) not in chosen]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "few.json").write_text(json.dumps(content | {"training": few + test}))
    (folder / "rest.json").write_text(json.dumps(content | {"training": rest}))
    config = CONFIG.read_text().replace("../data_manifests/hippocampus.json", "few.json")
    (folder / "few.yaml").write_text(config.replace("name: hippocampus", "name: few"))


def medseg(verb: str, folder: Path, work: Path, data: Path, *more: str) -> None:
    """Runs a verb on ``folder/few.yaml``."""
    common = ["--config", str(folder / "few.yaml"), "--work", str(work), "--data-root", str(data)]
    run = [sys.executable, "-m", "medseg.cli.main", verb, *common, "--set", "tracking.enabled=false"]
    subprocess.run([*run, *more], check=True, cwd=ROOT)


def dice_of(work: Path) -> float:
    """Mean Dice over classes on fold 0."""
    classes = json.loads((work / "scores" / "fold_0" / "metrics.json").read_text())["classes"]
    return float(np.mean([one["metrics"]["dice"]["mean"] for one in classes.values()]))


def compare(args: argparse.Namespace, seed: int) -> tuple[float, float]:
    """Dice from random weights, and from pretrained ones."""
    folder, data = args.work / f"seed_{seed}", args.data_root.resolve()
    write_manifests(folder, args.labelled, seed)
    scratch, started = folder / "scratch", folder / "pretrained"
    budget = ("--set", f"train.budget.minutes={args.train}", "--set", f"seed={seed}")
    for work in (scratch, started):
        medseg("prepare", folder, work, data)
    medseg("train", folder, scratch, data, *budget)
    steps = json.loads((scratch / "runs" / "fold_0" / "model" / "model.json").read_text())["training"]["steps"]
    flags = ("--unlabelled", str(folder / "rest.json"), "--unlabelled-root", str(data), "--minutes", str(args.pretrain))
    medseg("pretrain", folder, started, data, *flags)
    init = ("--set", "train.init_from=pretrained/pretraining/run/model")
    equal = ("--set", "train.budget.minutes=null", "--set", f"train.budget.steps={steps}", "--set", f"seed={seed}")
    medseg("train", folder, started, data, *equal, *init)
    for work, own in ((scratch, budget), (started, (*equal, *init))):
        medseg("infer", folder, work, data, *own)
        medseg("evaluate", folder, work, data, *own)
    return dice_of(scratch), dice_of(started)


def main() -> int:
    """Prints a row per seed and the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=10)
    parser.add_argument("--pretrain", type=float, default=20, metavar="MINUTES")
    parser.add_argument("--train", type=float, default=5, metavar="MINUTES")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.work = args.work.resolve()
    rows = []
    print("| seed | from random weights | from pretrained weights |\n| --- | --- | --- |")
    for seed in range(args.seeds):
        rows.append(compare(args, seed))
        print(f"| {seed} | {rows[-1][0]:.4f} | {rows[-1][1]:.4f} |", flush=True)
    gains = np.array([after - before for before, after in rows])
    print(
        f"\nGain in mean Dice: {gains.mean():+.4f} (from {gains.min():+.4f} to {gains.max():+.4f}, {len(gains)} seeds)."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
