"""``medseg demo``: all four stages on a small data set made here, ending in a table of scores.

It starts the stages by the same ``main`` functions as the command line does, so what it shows is what a user's own config
gets. Each stage resumes by itself, and so does the demo.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from medseg.cli.entry import Context, run_verb

_STAGES = ("prepare", "train", "infer", "evaluate")
_BASELINES = "baselines.json"

Scores = Mapping[str, Mapping[str, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the first stage's exit code that is not 0, else 0."""
    return run_verb(
        "demo",
        argv,
        body=_demo,
        add_arguments=_add_arguments,
        description="All four stages on a small synthetic data set; a second start redoes nothing.",
        needs_config=False,
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=Path("work") / "demo")


def _demo(context: Context) -> int:
    from medseg.cli.demo_data import make_data
    from medseg.durable import write_bytes

    work = context.work
    manifest = make_data(work / "data")
    config = work / "demo.yaml"
    write_bytes(config, shipped_config())
    for stage in _STAGES:
        code = _run_stage(stage, context, config, manifest.parent)
        if code:
            return code
    baselines = _baselines(work, manifest)
    _print_table(_trained_scores(work), baselines)
    _print_places(work)
    return 0


def shipped_config() -> bytes:
    """The demo's config as it is installed; ``configs/demo.yaml`` is the same file."""
    return files("medseg.cli").joinpath("demo.yaml").read_bytes()


def _run_stage(stage: str, context: Context, config: Path, data_root: Path) -> int:
    print(f"== {stage}", file=sys.stderr, flush=True)
    arguments = ["--config", str(config), "--work", str(context.work), "--data-root", str(data_root)]
    if context.device:
        arguments += ["--device", context.device]
    if context.args.allow_changed:
        arguments.append("--allow-changed")
    # Imported here, one by one: a budget in minutes counts from the import of its stage.
    code: int = importlib.import_module(f"medseg.pipelines.{stage}").main(arguments)
    return code


def _baselines(work: Path, manifest_path: Path) -> Scores:
    """Scores of the two baselines; computed once for a data set and a network, then read back."""
    from medseg.durable import read_json, sha256_file, sha256_json, write_json
    from medseg.inference.runs import latest_run
    from medseg.manifest import load_manifest

    model = latest_run(work, None) / "model"
    key = sha256_json([sha256_file(work / "data" / "made.json"), sha256_file(model / "model.json")])
    path = work / _BASELINES
    if path.is_file():
        kept = read_json(path)
        if kept.get("key") == key:
            scores: Scores = kept["dice"]
            return scores
    from medseg.cli.demo_baselines import band_scores, read_scans, untrained_scores

    print("== baselines", file=sys.stderr, flush=True)
    manifest = load_manifest(manifest_path)
    root = manifest_path.parent
    training, testing = (read_scans(manifest, cases, data_root=root) for cases in (manifest.training, manifest.testing))
    dice = {
        "untrained network": untrained_scores(model, manifest, data_root=root),
        "best band of grey values": band_scores(training, testing),
    }
    write_json(path, {"format": 1, "key": key, "dice": dice})
    return dice


def _trained_scores(work: Path) -> dict[str, dict[str, float]]:
    """Class name to mean of each metric, from the scores that ``evaluate`` wrote, and to ``tolerance_mm`` of its NSD."""
    from medseg.durable import read_json

    scores = read_json(work / "scores" / "testing" / "metrics.json")
    return {
        name: {
            "tolerance_mm": scores["tolerance_mm"][name],
            **{metric: found["mean"] for metric, found in summary["metrics"].items()},
        }
        for name, summary in scores["classes"].items()
    }


def _print_table(trained: Mapping[str, Mapping[str, float]], baselines: Scores) -> None:
    from medseg.cli.demo_data import TESTING

    rows = {"trained network": {name: metrics["dice"] for name, metrics in trained.items()}, **baselines}
    width = max(len(row) for row in rows)
    print(f"\nDice on the {TESTING} held-out scans (mean; 1 is perfect)\n")
    print(" " * width, *(f"{name:>8}" for name in trained))
    for row, dices in rows.items():
        print(f"{row:<{width}}", *(f"{dices[name]:8.3f}" for name in trained))
    print("\nOf the trained network's surfaces:")
    for name, metrics in trained.items():
        near = f"{metrics['nsd']:.1%} within {metrics['tolerance_mm']:g} mm of the truth's"
        print(f"  {name}: {near}, 95 % within {metrics['hd95_mm']:.1f} mm")


def _print_places(work: Path) -> None:
    from medseg.inference.runs import latest_run

    programs = os.path.relpath(Path(sys.executable).parent)
    model = latest_run(work, None) / "model"
    print(
        f"\nmasks    {work}/predictions/testing/\n"
        f"scores   {work}/scores/testing/cases.csv, metrics.json and report.html\n"
        f"model    {model}\n"
        f"         {programs}/medseg infer SCAN --model {model} --output masks\n"
        f"runs     {programs}/mlflow ui --backend-store-uri sqlite:///{work}/mlflow.db"
    )
