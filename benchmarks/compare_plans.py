"""Are our plans nnU-Net's? Compares them field by field with what nnU-Net 2.8.1 itself planned.

    python benchmarks/compare_plans.py FACTS.json [--prepared work/hippocampus/prepared] [--output results.md]

FACTS.json is written by benchmarks/nnunet_plans.py in nnU-Net's environment. Our plan is made from the fingerprint that nnU-Net
found, or with ``--prepared`` from the one that ``medseg prepare`` found in the same files. Every preset and configuration is
compared in nnU-Net's terms (axes coarsest first, then z, y, x). Prints a Markdown table; exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medseg.config.sections import PrepareSection
from medseg.durable import read_json
from medseg.manifest.cases import Channel
from medseg.preparation.fingerprint import CaseGeometry, Fingerprint, Intensities
from medseg.preparation.plan import Plan
from medseg.preparation.planning import make_plan

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
SCHEMES = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "rgb": "RGBTo01Normalization",
    "none": "NoNormalization",
    "range": "RescaleTo01Normalization",
}
SHOWN = ("spacing", "patch_size", "batch_size", "features", "batch_dice")
Facts = dict[str, Any]


def fingerprint_of(facts: Facts) -> Fingerprint:
    """The fingerprint that nnU-Net found, in our terms."""
    cases: dict[str, CaseGeometry] = {}
    for (z, y, x), (dz, dy, dx), count in facts["cases"]:
        for _ in range(count):
            cases[f"{len(cases)}"] = CaseGeometry((x, y, z), (dx, dy, dz), facts["crop_share"])
    planar = all(case.shape_xyz[2] == 1 for case in cases.values())
    some = Intensities(mean=0, std=1, median=0, low=-1, high=1, minimum=-1, maximum=1)
    return Fingerprint(cases, planar, (some,) * len(facts["channels"]))


def our_plan(facts: Facts, fingerprint: Fingerprint, preset: str, configuration: str) -> Plan:
    """Our plan for a set of nnU-Net's."""
    return make_plan(
        fingerprint,
        channels=[Channel(name=name) for name in facts["channels"]],
        labels={f"class {i}": (i,) for i in range(facts["classes"])},
        ignore=None,
        section=PrepareSection(preset=preset, configuration=configuration),  # type: ignore[arg-type]
    )


def in_nnunets_terms(plan: Plan) -> Facts:
    """A plan as nnU-Net's plans file would have it."""
    spacing = np.array(plan.spacing_xyz_mm)
    first = 2 - int(np.argmax(spacing[::-1])) if plan.dimensions == 3 else plan.slice_axis
    axes = [first, *(a for a in (2, 1, 0) if a != first)][-plan.dimensions :]

    def turned(values: Any) -> list[Any]:
        return [values[axis] for axis in axes]

    return {
        "spacing": turned(plan.spacing_xyz_mm),
        "median_shape": turned(plan.median_shape_xyz),
        "patch_size": turned(plan.patch_size_xyz),
        "batch_size": plan.batch_size,
        "features": list(plan.features),
        "strides": [turned(stage) for stage in plan.strides],
        "kernel_sizes": [turned(stage) for stage in plan.kernel_sizes],
        "residual": plan.residual,
        "convolutions": list(plan.convolutions),
        "decoder_convolutions": list(plan.decoder_convolutions),
        "normalisation": [SCHEMES[c.scheme] for c in plan.channels],
        "use_mask": [c.use_mask for c in plan.channels],
        "batch_dice": plan.batch_dice,
    }


def differences(ours: Facts, theirs: Facts) -> dict[str, tuple[Any, Any]]:
    """Field to (ours, nnU-Net's) where they differ; spacing within 1e-5 of its size, a median of half a voxel rounded."""
    different = {}
    for field, value in theirs.items():
        own = ours[field]
        if field == "spacing":
            same = np.allclose(own, value, rtol=1e-5)
        elif field == "median_shape":
            same = len(own) == len(value) and bool(np.all(np.abs(np.array(own) - value) <= 0.5))
        else:
            same = own == value
        if not same:
            different[field] = (own, value)
    return different


def compared(
    facts: Facts, fingerprint: Fingerprint
) -> Iterator[tuple[str, str, Facts, Facts, dict[str, tuple[Any, Any]]]]:
    """(preset, configuration, ours, nnU-Net's, differences) for every plan that nnU-Net made, and none that it did not."""
    for preset, plans in facts["plans"].items():
        made = {name for name in plans if name in CONFIGURATIONS}
        rules = our_plan(facts, fingerprint, preset, "auto")
        if (mine := {rules.configuration, *rules.alternatives}) != made:
            yield preset, "configurations", {}, {}, {"configurations": (sorted(map(str, mine)), sorted(made))}
        for name in sorted(made):
            ours = in_nnunets_terms(our_plan(facts, fingerprint, preset, name))
            yield preset, name, ours, plans[name], differences(ours, plans[name])


def table(sets: list[tuple[Facts, Fingerprint]]) -> tuple[str, int]:
    """The Markdown table and the number of plans that differ."""
    lines = [
        "| set | preset | configuration | " + " | ".join(SHOWN) + " | fields equal | different (ours, nnU-Net's) |",
        "| --- | --- | --- |" + " --- |" * (len(SHOWN) + 2),
    ]
    wrong = 0
    for facts, fingerprint in sets:
        for preset, name, _, theirs, different in compared(facts, fingerprint):
            wrong += bool(different)
            values = [_text(theirs.get(field)) for field in SHOWN]
            equal = f"{len(theirs) - len(different)} of {len(theirs)}"
            what = "; ".join(f"{field}: {_text(a)}, {_text(b)}" for field, (a, b) in different.items())
            lines.append(f"| {facts['name']} | {preset} | {name} | {' | '.join(values)} | {equal} | {what} |")
    return "\n".join(lines) + "\n", wrong


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(_text(v) for v in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path, nargs="+")
    parser.add_argument("--prepared", type=Path, action="append", default=[], help="one per set, in the same order")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    every = [facts for file in args.facts for facts in json.loads(file.read_text())]
    own = [Fingerprint.from_plain(read_json(folder / "fingerprint.json")) for folder in args.prepared]
    text, wrong = table(list(zip(every, own or map(fingerprint_of, every), strict=True)))
    text += f"\n{text.count(chr(10)) - 2} plans, {wrong} of them different.\n"
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
