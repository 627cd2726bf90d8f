"""Which plan holds: the one that is there, or a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.config.sections import PrepareSection
from medseg.durable import read_json, write_json
from medseg.errors import ChangedError, InputError
from medseg.manifest import Manifest
from medseg.preparation.case import expand_channels
from medseg.preparation.device_memory import device_memory_gb
from medseg.preparation.facts import CaseFacts
from medseg.preparation.fingerprint import CaseGeometry, Fingerprint, fingerprint_drift, merge_sketches, structure_size
from medseg.preparation.order import fixed_orders
from medseg.preparation.plan import Plan
from medseg.preparation.plan_file import read_plan, write_plan
from medseg.preparation.planning import make_plan


def fingerprint_of(facts: Mapping[str, CaseFacts], good: Sequence[str]) -> Fingerprint:
    """The fingerprint of the training cases ``good`` from their facts.

    Raises:
        InputError: there is none.
    """
    cases: dict[str, CaseGeometry] = {i: g for i in good if (g := facts[i].geometry) is not None}
    if not cases:
        raise InputError("training: has 0 usable cases, expected at least 1; correct the cases or the manifest")
    channels = max((len(facts[i].sketches) for i in good), default=0)
    sketches = [[s for i in good for s in facts[i].sketches[c : c + 1] if s is not None] for c in range(channels)]
    intensities = tuple(merge_sketches(s) for s in sketches)
    orders = fixed_orders([facts[i].centres for i in cases])
    extents = [
        [voxels * mm for voxels, mm in zip(extent, geometry.spacing_xyz_mm, strict=True)]
        for i, geometry in cases.items()
        if (extent := facts[i].extent_xyz) is not None
    ]
    planar = all(facts[i].planar for i in good)
    return Fingerprint(cases, planar, intensities, orders, structure_size(extents))


def settle_plan(
    section: PrepareSection,
    manifest: Manifest,
    output: Path,
    fingerprint: Fingerprint,
    *,
    replan: bool,
    device: str | None = "cpu",
) -> tuple[Plan, list[str]]:
    """The plan that is there, with how far the data have moved from it, or a new one.

    ``fingerprint.json`` is written first and the plan names its checksum, so a kill between the two leaves no wrong pair.
    ``device`` is what will train: a new plan is fitted to its memory where the section leaves that open.

    Raises:
        ChangedError: the plan that is there was made with other settings, channels or labels, and ``replan`` is False.
        InputError: a file that is there is no plan or fingerprint.
    """
    made_with = _made_with(section, manifest)
    if not replan and (output / "plan.yaml").is_file() and (output / "fingerprint.json").is_file():
        content = read_json(output / "fingerprint.json")
        old, plan = Fingerprint.from_plain(content), read_plan(output / "plan.yaml")
        if plan.fingerprint_sha256 == old.sha256:
            _must_be_made_with(content.get("made_with"), made_with)
            return plan, fingerprint_drift(old, fingerprint)
    plan = make_plan(
        fingerprint,
        channels=expand_channels(manifest.channels),
        labels=manifest.labels,
        ignore=manifest.ignore,
        section=section,
        device_gb=device_memory_gb(device),
    )
    plan = plan.model_copy(update={"label_table": {name: dict(entry) for name, entry in manifest.label_table.items()}})
    write_json(output / "fingerprint.json", {**fingerprint.plain(), "made_with": made_with})
    write_plan(output / "plan.yaml", plan)
    return plan, []


def require_made_with(section: PrepareSection, manifest: Manifest, output: Path) -> None:
    """Refuses prepared data whose plan was made with other settings than the config has now.

    Patch and batch size may differ: what reads the prepared data takes them from the config.

    Raises:
        ChangedError: one line per difference.
    """
    if not (output / "fingerprint.json").is_file():  # prepared by other means, as tests do
        return
    free = ("prepare.patch_size_xyz", "prepare.batch_size")
    now = {key: value for key, value in _made_with(section, manifest).items() if key not in free}
    _must_be_made_with(read_json(output / "fingerprint.json").get("made_with"), now)


def _made_with(section: PrepareSection, manifest: Manifest) -> dict[str, Any]:
    """Everything besides the fingerprint that a plan depends on, by the name people know it under."""
    settings = section.model_dump(mode="json", exclude={"on_bad_case", "previous_work"})
    return {
        **{f"prepare.{key}": value for key, value in settings.items()},
        "the manifest's channels": [
            [c.name, c.unit, *([c.series.model_dump()] if c.series else [])] for c in manifest.channels
        ],
        "the manifest's labels": {name: list(values) for name, values in manifest.labels.items()},
        "the manifest's ignore": manifest.ignore,
    }


def _must_be_made_with(before: Any, now: Mapping[str, Any]) -> None:
    before = before if isinstance(before, dict) else {}
    # A plan from before a setting existed was made with its default.
    before = {f"prepare.{key}": value for key, value in PrepareSection().model_dump(mode="json").items()} | before
    faults = [
        f"{key}: is {value}, but the plan was made with {before.get(key)}; give --replan to medseg prepare, or set it back"
        for key, value in now.items()
        if before.get(key) != value
    ]
    if faults:
        raise ChangedError(faults)
