"""What an exported or lighter model costs and loses: one table of size, seconds a scan and Dice; and the bundle's masks.

    python benchmarks/bench_exports.py --model work/hippocampus/runs/fold_0/model --cases MANIFEST.json --held-out 0 \
        --student work/hippocampus/distilled/fold_0-.../model --threads 2 --folder /tmp/exports

Rows: torch in float32 and bf16 (where the CPU has it), onnxruntime in float32 and 8 bits, and the student in all of them.
Seconds are the median over scans of scoring one prepared scan (windows, mirrors, network), after one warm scan, in turns: each
scan goes through every row before the next one, so that a slow minute of the machine hits all rows. Dice is the mean over
classes and scans against the labels; "lost" is the first row's less the row's. Exports that are there already are kept.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from medseg.exchange.export import CPU, Checks, export_bundle, export_networks, manifest_checks, named_checks
from medseg.exchange.parity import compare_masks
from medseg.inference.ensemble import build_engine
from medseg.inference.experiment import own_section
from medseg.inference.model import load_models
from medseg.manifest import load_manifest
from medseg.networks.precision import has_bf16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--cases", type=Path, required=True, help="manifest with labels")
    parser.add_argument("--held-out", type=int, metavar="FOLD", help="only this fold's cases")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--most", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True, help="for the exports")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checks = cases_of(args)

    bundle = export_bundle(args.model, args.folder / "bundle", checks=checks)
    print("MONAI bundle:", "is there already, see parity.json" if bundle is None else bundle.sentence())
    onnx = export_networks(args.model, args.folder / "onnx", int8=False, checks=checks)
    print("ONNX:", "is there already, see parity.json" if onnx is None else onnx.sentence())
    table(rows_of(args, checks), checks)


def cases_of(args: argparse.Namespace) -> Checks:
    """The cases to measure on, with their labels."""
    plan = load_models(args.model)[0].plan
    if args.held_out is None:
        return named_checks([args.cases], plan=plan, most=args.most, data_root=args.data_root)
    manifest = load_manifest(args.cases)
    held_out = manifest.fold_cases(args.held_out)[1][: args.most]
    return manifest_checks(manifest, held_out, data_root=args.data_root or args.cases.parent)


def rows_of(args: argparse.Namespace, checks: Checks) -> list[tuple[str, Path, str]]:
    """(name, model folder, precision) per row."""
    rows: list[tuple[str, Path, str]] = []
    for name, folder in (("model", args.model), ("student", args.student)):
        if folder is None:
            continue
        own = args.folder if name == "model" else args.folder / "student"
        rows.append((f"{name}, torch float32", folder, "float32"))
        if has_bf16(CPU):
            rows.append((f"{name}, torch bf16", folder, "bf16"))
        export_networks(folder, own / "onnx", int8=False, checks=checks)
        export_networks(folder, own / "int8", int8=True, checks=checks)
        rows.append((f"{name}, onnxruntime float32", own / "onnx", "float32"))
        rows.append((f"{name}, onnxruntime int8", own / "int8", "float32"))
    return rows


def table(rows: list[tuple[str, Path, str]], checks: Checks) -> None:
    """Measures all rows and prints them."""
    engines, seconds, dice = {}, {}, {}
    for name, folder, precision in rows:
        models = load_models(folder)
        section = own_section(models[0]).model_copy(update={"precision": precision})
        engines[name] = build_engine(models, section, device=CPU)
        seconds[name], dice[name] = [], []
    first = engines[rows[0][0]]
    for number, (_, scan) in enumerate(checks.each(first.plan, Path())):
        array, grid = first.prepare(scan.volume)
        for name, engine in engines.items():
            if number == 0:
                engine.scores(array)
            began = time.perf_counter()
            scores = engine.scores(array)
            seconds[name].append(time.perf_counter() - began)
            mask = engine.classes(scores, grid)
            found = compare_masks(mask, mask, scan, class_names=engine.class_names, plan=engine.plan)
            dice[name].append(np.mean([own for own, _ in found.reference_dice.values()]))
    best = float(np.mean(dice[rows[0][0]]))
    print(f"\n{len(checks.scans)} scans, {torch.get_num_threads()} threads\n")
    print("| network | MB | seconds a scan | Dice | lost |\n| --- | --- | --- | --- | --- |")
    for name, folder, _ in rows:
        mean = float(np.mean(dice[name]))
        print(
            f"| {name} | {megabytes(folder):.2f} | {statistics.median(seconds[name]):.3f} | {mean:.4f} | {best - mean:+.4f} |"
        )


def megabytes(folder: Path) -> float:
    """Of the networks in a model folder."""
    files = [path for path in folder.rglob("*") if path.name in ("weights.safetensors", "network.onnx")]
    own = [path for path in files if "onnx" not in path.relative_to(folder).parts[:-1]]
    return sum(path.stat().st_size for path in own) / 1e6


if __name__ == "__main__":
    main()
