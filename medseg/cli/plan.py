"""``medseg plan``: what will be trained and why, the memory it takes, and when it will be done, before it is begun."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.cli.entry import Context, run_verb

if TYPE_CHECKING:
    import torch

    from medseg.preparation.plan import Plan
    from medseg.training.cost import Timing
    from medseg.training.inputs import TrainingInputs
    from medseg.training.memory import MemoryForecast

_MOST_SECONDS = 20.0
# Below it, on the shared sets, the small preset was ahead of nnU-Net's plan (benchmarks/results/small_budgets_2026-11-21.md).
_FEW_STEPS = 2000
_UNSAID = ("format", "labels", "ignore", "fingerprint_sha256", "reasons", "made_from_cases", "alternatives")


def main(argv: Sequence[str] | None = None) -> int:
    """Shows the plan, its reasons, predicted memory, seconds per step and end time; 0."""
    purpose = "Show the plan with its reasons, the memory it needs and how long training will take."
    return run_verb("plan", argv, body=_plan, add_arguments=_arguments, description=purpose)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=_MOST_SECONDS, metavar="S",
        help="for timed training steps, at most 20; 0 times none [%(default)g]",
    )  # fmt: skip
    parser.add_argument("--replan", action="store_true", help="make the plan anew from the cases as they are now")
    parser.add_argument("--processes", type=int, metavar="N", help="cases at a time, where scans have to be read")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _plan(context: Context) -> int:
    from medseg.networks.build import build_network, parameter_count
    from medseg.networks.precision import choose_device, choose_precision, precision_name
    from medseg.training.architecture import architecture_of
    from medseg.training.cost import time_training
    from medseg.training.distributed import ALONE
    from medseg.training.memory import predict_memory, resident_bytes
    from medseg.training.trainer import Trainer

    device = choose_device(context.device)
    with tempfile.TemporaryDirectory() as scratch:
        inputs, prepared = _inputs(context, Path(scratch))
        plan, section = inputs.prepared.plan, inputs.section
        precision = choose_precision(device, section.precision)
        architecture = architecture_of(inputs.network, plan)
        trainer = Trainer(
            inputs, architecture, device=device, precision=precision, processes=ALONE, stop=lambda: bool(context.stop)
        )
        memory = predict_memory(
            architecture, plan=plan, section=section, loss=trainer.loss, device=device, precision=precision,
            base_bytes=resident_bytes(),
        )  # fmt: skip
        report: dict[str, Any] = {
            "plan": plan.model_dump(mode="json"),
            "network": architecture,
            "parameters": parameter_count(build_network(architecture)),
            "precision": precision_name(precision),
            "memory": {**dataclasses.asdict(memory), "peak": memory.peak, "device": _device_bytes(device)},
        }
        try:
            if context.args.seconds > 0 and _fits(memory, device):
                timing = time_training(trainer, seconds=min(_MOST_SECONDS, context.args.seconds), scratch=Path(scratch))
                report["time"] = _time(timing, inputs, context, prepared=prepared)
        finally:
            trainer.close()
    _show(report, plan, as_json=context.args.json)
    return 0


def _inputs(context: Context, scratch: Path) -> tuple[TrainingInputs, bool]:
    """What training will be given, and whether it is the prepared data; before that, noise in the median case's shape."""
    from medseg.manifest import load_manifest
    from medseg.preparation.report import show_checks
    from medseg.preparation.stage import run_prepare
    from medseg.training.cost import stand_ins
    from medseg.training.inputs import TrainingInputs, open_inputs, with_overrides

    config, args = context.experiment, context.args
    assert context.manifest_path is not None
    folder = context.work / "prepared"
    if (folder / "index.json").is_file() and not args.replan:
        return open_inputs(
            config, manifest_path=context.manifest_path, work=context.work, config_folder=args.config.parent
        ), True
    manifest = load_manifest(context.manifest_path).with_series(config.data.series)
    report = run_prepare(
        config.prepare, manifest, data_root=context.data_root, output=folder, allow_outside=args.allow_outside,
        replan=args.replan, plan_only=True, device=context.device, processes=args.processes, show=show_checks,
    )  # fmt: skip
    assert report.plan is not None
    held_out = manifest.fold_cases(config.data.fold)[1] if config.data.fold is not None else ()
    prepared = with_overrides(stand_ins(report.plan, scratch, seed=config.seed), config.prepare)
    names = tuple(prepared.cases)
    inputs = TrainingInputs(
        prepared=prepared, training=names, validation=names[: len(held_out)], network=config.network,
        section=config.train, seed=config.seed, fold=config.data.fold, config_text="",
        manifest_sha256=manifest.sha256,
    )  # fmt: skip
    return inputs, False


def _fits(memory: MemoryForecast, device: torch.device) -> bool:
    return memory.peak <= _device_bytes(device)


def _device_bytes(device: torch.device) -> int:
    import torch

    from medseg.preparation.device_memory import main_memory_bytes

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return main_memory_bytes()


def _time(timing: Timing, inputs: TrainingInputs, context: Context, *, prepared: bool) -> dict[str, Any]:
    from medseg.training.cost import run_seconds, steps_of_run

    section, pace = inputs.section, timing.pace
    if not prepared and inputs.validation:
        # As many noise cases as there are were timed; training will validate as many as the config says.
        asked = min(section.validation.cases, _held_out_count(context))
        timed = min(section.validation.cases, len(inputs.validation))
        pace = dataclasses.replace(pace, validation=pace.validation * asked / max(1, timed))
    # Timing took as long as the start of training will: reading the inputs and timing its own steps.
    start = time.monotonic() - context.started if section.budget.minutes is not None else 0.0
    steps = steps_of_run(section, pace, spent_seconds=start)
    seconds = section.budget.minutes * 60 if section.budget.minutes is not None else run_seconds(steps, section, pace)
    return {
        "seconds_per_step": pace.step,
        "spread": timing.spread,
        "timed_steps": timing.steps,
        "seconds_per_validation": pace.validation,
        "seconds_per_save": pace.save,
        "steps": steps,
        "seconds": seconds,
        "end": (datetime.now().astimezone() + timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        "peak_bytes_while_timing": timing.peak_bytes,
        "data": "prepared data" if prepared else "noise in the shape of the median case",
    }


def _held_out_count(context: Context) -> int:
    from medseg.manifest import load_manifest

    assert context.manifest_path is not None
    fold = context.experiment.data.fold
    return len(load_manifest(context.manifest_path).fold_cases(fold)[1]) if fold is not None else 0


def _show(report: dict[str, Any], plan: Plan, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    for field, value, reason in _rows(plan):
        sys.stdout.write(f"{field:<22}{value}\n{'':<22}  {reason}\n" if reason else f"{field:<22}{value}\n")
    for name, other in plan.alternatives.items():
        patch, spacing = _by(other.patch_size_xyz), _by(other.spacing_xyz_mm)
        sys.stdout.write(f"{'or ' + name:<22}{spacing} mm, patch {patch}, batch {other.batch_size}\n")
    sys.stdout.write("".join(f"{line}\n" for line in _cost_lines(report)))


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    for field in type(plan).model_fields:
        if field not in _UNSAID:
            value = getattr(plan, field)
            shown = ", ".join(value) or "none" if field == "mirror_axes" else _value(value)
            yield field, shown, plan.reasons.get(field, "")


def _value(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return ", ".join(_by(item) for item in value)
    if isinstance(value, tuple) and value and hasattr(value[0], "scheme"):
        return ", ".join(f"{c.name} {c.scheme}{' in the mask' if c.use_mask else ''}" for c in value)
    if value == ():
        return "2 per stage"
    if isinstance(value, tuple):
        return _by(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)


def _cost_lines(report: dict[str, Any]) -> list[str]:
    memory, network = report["memory"], report["network"]
    widths = f", features {_by(network['features'])}" if "features" in network else ""
    libraries = memory["overhead"] + memory["base"]
    lines = [
        f"{'network':<22}{network['kind']}{widths}; {report['parameters'] / 1e6:.2f} M parameters, {report['precision']}",
        (
            f"{'memory, predicted':<22}{_gb(memory['peak'])}: weights and optimiser {_gb(memory['weights'])}, a step "
            f"{_gb(memory['step'])}, libraries {_gb(libraries)}; the device has {_gb(memory['device'])}"
        ),
    ]
    if memory["peak"] > memory["device"]:
        return [*lines, "it does not fit: lower prepare.batch_size, prepare.patch_size_xyz or prepare.memory_gb"]
    if "time" in report:
        lines += _time_lines(report["time"])
        if report["time"]["steps"] < _FEW_STEPS and report["plan"]["preset"] != "small":
            lines.append(
                f"that is few: under {_FEW_STEPS:,} steps a thinner network with a tight patch and a batch of 2 learns more "
                "(prepare.preset: small, train.optimiser.learning_rate: 2e-3), or give it more minutes"
            )
    return lines


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _time_lines(cost: dict[str, Any]) -> list[str]:
    return [
        f"{'memory, while timing':<22}{_gb(cost['peak_bytes_while_timing'])}",
        (
            f"{'seconds per step':<22}{cost['seconds_per_step']:.3f} (SD {cost['spread']:.0%}, {cost['timed_steps']} steps "
            f"timed on {cost['data']})"
        ),
        (
            f"{'training':<22}{cost['steps']:,} steps, {cost['seconds_per_validation']:.1f} s a validation, "
            f"{cost['seconds'] / 60:.1f} min in all; started now it ends at {cost['end'].replace('T', ' ')[:16]}"
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
