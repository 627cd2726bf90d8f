"""The flags of ``medseg infer`` that say where and how: which cases, which shard, what to do with masks that are there."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from medseg.config.sections import InferSection, OutputSection
from medseg.config.series import SeriesSection
from medseg.errors import UsageError
from medseg.runner.cluster_flags import add_cluster_flags

if TYPE_CHECKING:
    from medseg.inference.stage import RunOptions

_GB = 10**9


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--pattern", action="append", metavar="GLOB", help="take only files of folders that fit, such as '*_ct.nii.gz'"
    )
    group.add_argument(
        "--series", action="append", metavar="KEY=VALUE",
        help="which series of DICOM studies is the scan: modality=CT, description=REGEX, most_slices, code=1a2b3c4d; "
        "may be given several times, all must hold; T1:modality=MR is for the channel T1",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="make every mask anew, whatever is there")
    group.add_argument("--dry-run", action="store_true", help="say which cases, minutes and memory; write nothing")
    group.add_argument(
        "--shard", metavar="I/N", help="do part I of N, counted from 0; auto takes a SLURM array's or torchrun's number"
    )
    group.add_argument(
        "--memory", type=_positive, metavar="GB", help="for scans in work [three quarters of what is free]"
    )
    group.add_argument(
        "--isolate", choices=("auto", "always", "never"), default="auto",
        help="decode in a process of its own: all but NIfTI [auto], everything, nothing",
    )  # fmt: skip
    group.add_argument(
        "--read-seconds", type=_positive, default=900.0, metavar="S", help="longest time to decode a case there [900]"
    )
    add_cluster_flags(parser)
    group.add_argument(
        "--contract", choices=("refuse", "warn", "off"), help="scans unlike those of training are [refuse]"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format", choices=_choices("format"), help="of the masks [auto: PNG for pictures, else .nii.gz]"
    )
    output.add_argument("--layout", choices=_choices("layout"), help="one label map, or a file per structure")
    output.add_argument(
        "--probabilities", nargs="?", const="uint8", choices=("uint8", "fp16"),
        help="write each class' probability too, in steps of 1/255 [uint8] or half precision",
    )  # fmt: skip
    output.add_argument(
        "--uncertainty", nargs="?", const="entropy", choices=("entropy", "disagreement"),
        help="write a map too: each voxel's entropy, or how many models of an ensemble disagree there",
    )  # fmt: skip


def asked_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the ``infer`` section that flags set: the mask of a scan does not depend on them, so they need no config.

    Raises:
        UsageError: ``--series`` says nothing that a rule can.
    """
    given = {name: getattr(args, name) for name in ("contract", "probabilities", "uncertainty")}
    given["series"] = None if args.series is None else series_rule(args.series)
    return {name: value for name, value in given.items() if value is not None}


def series_rule(said: Sequence[str]) -> SeriesSection | dict[str, SeriesSection]:
    """The rule of ``KEY=VALUE`` texts, or one per channel of ``CHANNEL:KEY=VALUE``; ``most_slices`` alone means true.

    Raises:
        UsageError: an unknown key, one given twice, a value that can't be, or rules with and without a channel.
    """
    parts: dict[str, dict[str, Any]] = {}
    for text in said:
        whole, equals, value = text.partition("=")
        channel, _, key = whole.rpartition(":")
        values = parts.setdefault(channel, {})
        if key not in SeriesSection.model_fields or key in values or not (equals or key == "most_slices"):
            keys = ", ".join(SeriesSection.model_fields)
            raise UsageError(
                f"--series: is {text!r}, expected KEY=VALUE or CHANNEL:KEY=VALUE with each of {keys} at most once; correct it"
            )
        values[key] = value.upper() if key == "modality" else value
        if key == "most_slices":
            values[key] = value.lower() != "false"
    if "" in parts and len(parts) > 1:
        raise UsageError(
            f"--series: {' '.join(said)} has rules with and without a channel, expected one kind; correct it"
        )
    try:
        rules = {channel: SeriesSection(**values) for channel, values in parts.items()}
    except ValidationError as error:
        raise UsageError(f"--series: {' '.join(said)} is no rule ({error.errors()[0]['msg']}); correct it") from error
    return rules.get("", rules)


def given_path(text: str) -> Path:
    """A path of the command line; an empty one, as an unset variable leaves it, would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty, expected a path; is a variable unset?")
    return Path(text)


def refuse_file(output: Path) -> None:
    """Refuses an output that is a file, or by its name is meant to be one: masks go into a folder, named like their scans.

    Raises:
        UsageError: nothing may be written there.
    """
    from medseg.imaging import suffix_of

    is_file, is_folder = os.path.isfile(output), os.path.isdir(output)  # noqa: PTH113, PTH112  (False behind a closed folder)
    if is_file or (suffix_of(output) is not None and not is_folder):
        raise UsageError(
            f"--output: is {output}, expected a folder, in which masks are named like their scans; give --output "
            f"{output.with_name('masks')}"
        )


def _choices(field: str) -> tuple[str, ...]:
    return get_args(OutputSection.model_fields[field].annotation)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"is {text}, expected a number above 0")
    return value


def run_options(
    args: argparse.Namespace, section: InferSection, environment: Mapping[str, str] = os.environ
) -> RunOptions:
    """What the flags ask for.

    Raises:
        UsageError: a shard, format or layout that there is not.
    """
    from medseg.inference.outputs import OutputSpec
    from medseg.inference.shards import shard_of
    from medseg.inference.stage import RunOptions

    return RunOptions(
        spec=OutputSpec.of(section.output, format=args.format, layout=args.layout),
        overwrite=args.overwrite,
        shard=shard_of(args.shard, environment),
        isolation=args.isolate,
        read_seconds=args.read_seconds,
        memory_bytes=memory_bytes(args),
    )


def memory_bytes(args: argparse.Namespace) -> int | None:
    """What ``--memory`` leaves to scans; None where nothing was said."""
    return None if args.memory is None else int(args.memory * _GB)


def device_name(asked: str | None, shard: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The device of this process: with ``--shard auto`` under torchrun, each process of a machine takes its own GPU."""
    rank = environment.get("LOCAL_RANK", "")
    if shard != "auto" or asked not in (None, "cuda") or not rank.isdecimal():
        return asked
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(rank) % count}" if count else asked
