"""Plants faults into the hippocampus set and checks that `medseg audit` lists them first.

    python benchmarks/plant_faults.py --data-root hippocampus --seeds 5 [--output FILE]

For each seed four faults of random size and place are planted into a copy of the manifest (the scans stay where they are):

- a leak: a scan under a second id in another fold, scaled, noisy, cut at two borders, in every other seed mirrored;
- a duplicate: a scan under a second id in its own fold, stored again with another type;
- a side swap: two classes exchanged, or the whole label mirrored left to right;
- a shifted label: moved by 2.5 to 4.5 voxels in a random direction.

The leak's and the duplicate's labels are those of the scan. The first four findings must be the four planted. The table says
the score of each planted fault and of the first finding that was not planted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medseg.audit.stage import run_audit
from medseg.imaging import LabelMap, Volume, read_label_map, read_volume, write_label_map, write_volume
from medseg.manifest import load_manifest

MANIFEST = Path(__file__).parents[1] / "data_manifests" / "hippocampus.json"


def plant(root: Path, source: Path, seed: int) -> dict[str, set[str]]:
    """Writes ``root/dataset.json`` and the changed files; returns name of each fault to the cases that show it."""
    rng = np.random.default_rng(seed)
    content = json.loads(MANIFEST.read_text())
    for name in ("imagesTr", "labelsTr"):
        (root / name).symlink_to(source / name)
    cases = content["training"]
    leaked, doubled, swapped, shifted = (cases[k] for k in rng.choice(len(cases), 4, replace=False))
    cases += [_leak(root, leaked, rng, seed), _duplicate(root, doubled)]
    kind = _swap(root, swapped, rng)
    move = _shift(root, shifted, rng)
    (root / "dataset.json").write_text(json.dumps(content))
    return {
        "leak": {leaked["id"], "planted_leak"},
        "duplicate": {doubled["id"], "planted_duplicate"},
        kind: {swapped["id"]},
        f"label moved by {move}": {shifted["id"]},
    }


def _leak(root: Path, case: dict, rng: np.random.Generator, seed: int) -> dict:
    volume, labels = read_volume(root / case["image"]), read_label_map(root / case["label"])
    x, y = (int(v) for v in rng.integers(1, 4, 2))
    image = np.asarray(volume.array[:, x:, : volume.shape[1] - y]) * rng.uniform(0.3, 3)
    image += rng.normal(0, 0.1 * image.std(), image.shape)
    classes = np.asarray(labels.array[x:, : labels.shape[1] - y])
    if seed % 2:
        image, classes = np.flip(image, 1), np.flip(classes, 0)
    folds = [fold for fold in range(5) if fold != case["fold"]]
    return _write(root, "planted_leak", image, classes, volume.affine, int(rng.choice(folds)))


def _duplicate(root: Path, case: dict) -> dict:
    volume, labels = read_volume(root / case["image"]), read_label_map(root / case["label"])
    return _write(root, "planted_duplicate", volume.array, labels.array, volume.affine, case["fold"])


def _write(root: Path, case_id: str, image: np.ndarray, classes: np.ndarray, affine: np.ndarray, fold: int) -> dict:
    names = f"{case_id}.nii.gz", f"{case_id}_label.nii.gz"
    write_volume(Volume(np.ascontiguousarray(image, np.float32), affine), root / names[0])
    write_label_map(LabelMap(np.ascontiguousarray(classes), affine), root / names[1], like=None)
    return {"id": case_id, "image": names[0], "label": names[1], "fold": fold}


def _swap(root: Path, case: dict, rng: np.random.Generator) -> str:
    labels = read_label_map(root / case["label"])
    mirrored = rng.random() < 0.5
    classes = np.flip(labels.array, 0) if mirrored else np.array([0, 2, 1], labels.array.dtype)[labels.array]
    case["label"] = f"{case['id']}_swapped.nii.gz"
    write_label_map(LabelMap(np.ascontiguousarray(classes), labels.affine), root / case["label"], like=None)
    return "label mirrored" if mirrored else "classes exchanged"


def _shift(root: Path, case: dict, rng: np.random.Generator) -> tuple[int, ...]:
    labels = read_label_map(root / case["label"])
    move = np.zeros(3, int)
    while not 2.5 <= np.linalg.norm(move) <= 4.5:
        move = rng.integers(-4, 5, 3)
    moved = np.zeros_like(labels.array)
    here = tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(move, moved.shape, strict=True))
    there = tuple(slice(max(0, -d), n + min(0, -d)) for d, n in zip(move, moved.shape, strict=True))
    moved[here] = labels.array[there]
    case["label"] = f"{case['id']}_shifted.nii.gz"
    write_label_map(LabelMap(moved, labels.affine), root / case["label"], like=None)
    return tuple(int(d) for d in move)


def check(source: Path, seed: int) -> tuple[list[str], bool]:
    """Lines of the table for one seed, and whether the four planted faults came first."""
    with tempfile.TemporaryDirectory() as folder:
        root, began = Path(folder) / "data", time.monotonic()
        root.mkdir()
        planted = plant(root, source, seed)
        report = run_audit(
            load_manifest(root / "dataset.json"),
            data_root=root,
            output=Path(folder) / "audit",
            allow_outside=True,
            processes=1,
        )
        seconds = time.monotonic() - began
    lines, ranks = [], []
    for fault, cases in planted.items():
        rank = next(k for k, f in enumerate(report.findings, 1) if set(f.cases) == cases)
        finding = report.findings[rank - 1]
        ranks.append(rank)
        lines.append(f"| {seed} | {fault} | {rank} | {finding.score:.1f} | {finding.kind}: {finding.sentence} |")
    rest = next(f for f in report.findings if set(f.cases) not in planted.values())
    lines.append(f"| {seed} | none, {seconds:.0f} s in all | | {rest.score:.1f} | {rest.kind}: {rest.sentence} |")
    return lines, sorted(ranks) == [1, 2, 3, 4]


def main() -> int:
    """Prints the table; 1 where a planted fault was not among the first four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    table, passed = ["| seed | planted | rank | score | finding |", "| --- | --- | --- | --- | --- |"], []
    for seed in range(args.seeds):
        lines, good = check(args.data_root.resolve(), seed)
        passed.append(good)
        table += lines
        print("\n".join(lines), flush=True)
    table += ["", f"First four are the planted four: {sum(passed)} of {len(passed)} seeds."]
    print(table[-1])
    if args.output:
        args.output.write_text("\n".join(table) + "\n")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
