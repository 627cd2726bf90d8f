"""A trained nnU-Net v2 model as a medseg model folder."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor

from medseg.config.loading import config_text
from medseg.config.sections import Config, DataSection, InferSection
from medseg.durable import FolderLock, sha256_file
from medseg.errors import ModelError, UsageError
from medseg.exchange.nnunet_checkpoint import Checkpoint, read_checkpoint
from medseg.exchange.nnunet_files import (
    TrainedFolder,
    choose_trained,
    find_trained,
    folds_to_take,
    open_files,
    previous_of,
)
from medseg.exchange.nnunet_plans import Described, describe, sha256_plain
from medseg.exchange.nnunet_postprocessing import read_postprocessing
from medseg.inference.licence import LICENCE, read_licence
from medseg.inference.model import load_models, save_ensemble, save_model
from medseg.networks.build import build_network, parameter_count
from medseg.networks.nnunet_names import from_nnunet, nnunet_names
from medseg.networks.unet import UNet
from medseg.preparation.plan import Plan

_LOG = logging.getLogger(__name__)

SOURCE = "nnU-Net v2"
# Trainer classes of nnU-Net 2.8 that change how is trained, and nothing of the network: their parts, in any combination.
TRAINING_ONLY = re.compile(
    r"nnUNet_?Trainer(_?("
    r"\d+epochs?|1500ep|BS\d+|Benchmark|noDataLoading|NoMirroring|onlyMirror01|NoDA|DA5|DASegOrd0|Segord0|ord0|noDummy2DDA|"
    r"VanillaAdam|Adam|Adan|\den\d|CosAnneal|warmup|CELoss|DiceLoss|DiceCELoss|noSmooth|DiceTopK10Loss|Topk10Loss|LS01|"
    r"NoDeepSupervision|probabilisticOversampling|\d{3}"
    r"))*"
)
_BATCH_NORM = "nnUNetTrainerBN"
_SCRATCH = ".importing-"
_COPIES = re.compile(r"(^|\.)all_modules\.|^decoder\.encoder\.")


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
        folder: the model folder.
        sha256: the model's.
        name: of nnU-Net's folder.
        configuration: which was imported.
        folds: whose models were taken.
        plan: of the model.
        parameters: of one network.
        previous: configuration of the first stage that came along.
    """

    folder: Path
    sha256: str
    name: str
    configuration: str
    folds: tuple[str, ...]
    plan: Plan
    parameters: int
    previous: str | None = None


def import_nnunet(  # noqa: PLR0913 - each is a flag of the command
    source: Path,
    output: Path,
    *,
    configuration: str | None = None,
    folds: Sequence[str] = (),
    checkpoint: Literal["final", "best"] = "final",
    accumulate: Literal["fp32", "fp16"] = "fp32",
    precision: Literal["auto", "float32", "bf16"] = "float32",
    postprocessing: Path | None = None,
    any_trainer: bool = False,
    licence: Path | None = None,
) -> Imported:
    """Writes a model folder that answers as the nnU-Net model does.

    Several folds become an ensemble, the second stage of a cascade brings its first stage along. The same call again writes
    the same folder. No code of the source is run.

    Args:
        source: the folder that ``nnUNetv2_train`` wrote, one above it, or the zip of ``nnUNetv2_export_model_to_zip``.
        output: model folder; made where it is missing.
        configuration: which, where the source holds several.
        folds: "0", "1" ... or "all"; empty takes all numbered ones.
        checkpoint: which of a fold's checkpoints.
        accumulate: what the model's own config says about blending; "fp16" is nnU-Net's arithmetic.
        precision: likewise about the network's arithmetic; float32 is nnU-Net's on CPUs.
        postprocessing: nnU-Net's ``postprocessing.json``, whose clean-up becomes part of the model; None takes none, as
            ``nnUNetv2_predict`` does.
        any_trainer: take a trainer class that medseg does not know for one that builds nnU-Net's own network.
        licence: text file with the weights' licence, which the model carries from then on; nnU-Net's files have none.

    Returns:
        What was written.

    Raises:
        InputError: there is no such source.
        ModelError: something in it can't be done exactly, is damaged or unsafe; nothing usable was written.
        UsageError: the source holds several configurations, the output another model, or the licence is no text file.
    """
    text = None if licence is None else read_licence(licence, key="--licence")
    found = find_trained(open_files(source))
    chosen = choose_trained(found, configuration)
    section = InferSection(accumulate=accumulate, precision=precision)
    _refuse_other_model(output)
    with FolderLock(output):
        return _import(
            chosen, found, output, _Choice(tuple(folds), checkpoint, section, postprocessing, any_trainer, text)
        )


@dataclass(frozen=True)
class _Choice:
    """What of each trained folder is taken."""

    folds: tuple[str, ...]
    checkpoint: str
    section: InferSection
    postprocessing: Path | None
    any_trainer: bool
    licence: bytes | None


def _import(one: TrainedFolder, found: tuple[TrainedFolder, ...], output: Path, choice: _Choice) -> Imported:
    # Written beside the output and then moved in, so that a stop in between leaves no half of a model where one is looked for.
    for stale in output.glob(f"{_SCRATCH}*"):  # of an import that was killed; the lock says that it is gone
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=output) as scratch:
        members, described, parameters = _write_folds(one, found, Path(scratch), choice)
        file = choice.postprocessing
        steps = () if file is None else read_postprocessing(file, described.plan.labels)
        if described.previous is not None or len(members) > 1 or steps:
            evidence = {"source": SOURCE, "name": one.name, "configuration": described.name}
            sha256 = save_ensemble(output, members, postprocessing=steps, evidence=evidence)
        else:
            sha256 = _move(next(iter(members.values())), output)
    load_models(output)
    folds = tuple(name.removeprefix("fold_") for name in members)
    return Imported(output, sha256, one.name, described.name, folds, described.plan, parameters, described.previous)


def _move(source: Path, target: Path) -> str:
    """One fold's files into the output, ``model.json`` last; gives its SHA-256."""
    with contextlib.suppress(FileNotFoundError):
        (target / "model.json").unlink()
    for stale in (*target.glob("fold_*"), target / "previous"):
        if (stale / "model.json").is_file():
            shutil.rmtree(stale)
    (target / LICENCE).unlink(missing_ok=True)
    for file in sorted(source.iterdir(), key=lambda path: path.name == "model.json"):
        file.replace(target / file.name)
    return sha256_file(target / "model.json")


def _write_folds(
    one: TrainedFolder, found: tuple[TrainedFolder, ...], scratch: Path, choice: _Choice
) -> tuple[dict[str, Path], Described, int]:
    """A model folder per fold, by name; the first carries a cascade's first stage for all."""
    members: dict[str, Path] = {}
    described: Described | None = None
    mirrors: tuple[int, ...] = ()
    previous: dict[str, Path] = {}
    parameters = 0
    for fold, path in folds_to_take(one, choice.folds, choice.checkpoint).items():
        with one.files.checkpoint(path) as file:
            read = read_checkpoint(file, str(path))
            if described is None:  # as nnU-Net does: the first fold's checkpoint speaks for all
                described = _described(one, read, any_trainer=choice.any_trainer)
                mirrors = described.mirror_axes_xyz(read.mirror_axes)
                if described.previous is not None:
                    stage = previous_of(one, found, described.previous)
                    previous = _write_folds(stage, found, scratch / "previous", choice)[0]
            target = scratch / f"fold_{fold}"
            record = _record(one, path, fold, file, read)
            _refuse_giant(described.architecture, file, one.name)
            parameters = _write(target, read, described, mirrors, record, choice, previous if not members else {})
            members[target.name] = target
    assert described is not None
    return members, described, parameters


def _refuse_giant(architecture: Mapping[str, Any], file: Path, name: str) -> None:
    """Refuses plans that ask for more parameters than the checkpoint has bytes, before any memory is taken for them."""
    try:
        with torch.device("meta"):
            promised = parameter_count(build_network(architecture))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ModelError(f"{name}: its plans make no network ({type(error).__name__}: {error})") from error
    if promised > file.stat().st_size:
        raise ModelError(
            f"{name}: its plans' network has {promised:,} parameters, expected one that fits the checkpoint of "
            f"{file.stat().st_size:,} bytes; copy the folder again"
        )


def _described(one: TrainedFolder, read: Checkpoint, *, any_trainer: bool) -> Described:
    batch_norm = read.trainer == _BATCH_NORM
    if not (batch_norm or any_trainer or TRAINING_ONLY.fullmatch(read.trainer)):
        raise ModelError(
            f"{one.name}: was trained by the class {read.trainer[:60]}, which medseg does not know, expected one of nnU-Net's "
            "own that keep its network; where yours does too, add --any-trainer"
        )
    return describe(one.plans, one.dataset, read.configuration, norm="batch" if batch_norm else "instance")


def _write(
    folder: Path,
    read: Checkpoint,
    described: Described,
    mirrors: tuple[int, ...],
    record: Mapping[str, Any],
    choice: _Choice,
    previous: Mapping[str, Path],
) -> int:
    """Writes the folder of one fold; gives the number of its network's parameters."""
    network = build_network(described.architecture)
    assert isinstance(network, UNet)
    network.load_state_dict(_weights(read, network, described, record["name"]))
    names = tuple(name for axis, name in enumerate("xyz") if axis in mirrors)
    save_model(
        folder,
        network.eval(),
        architecture=described.architecture,
        plan=described.plan.model_copy(update={"mirror_axes": names}),
        mirror_axes_xyz=mirrors,
        config_text=config_text(_config(record, choice.section)),
        training=record,
        previous=previous,
        licence=choice.licence,
    )
    return parameter_count(network)


def _weights(read: Checkpoint, network: UNet, described: Described, name: str) -> dict[str, Tensor]:
    order = described.architecture["order"]
    try:
        weights = from_nnunet(read.weights, network, axes=[order.index(axis) for axis in range(len(order))])
    except ValueError as error:
        raise ModelError(f"{name}: {error}; its plans.json is of another model") from error
    known, further = set(nnunet_names(network).values()), 0
    for key in read.weights:
        bare = key.replace("_orig_mod.", "").removeprefix("module.")
        further += bare not in known and not _COPIES.search(bare)
    if further:
        raise ModelError(
            f"{name}: the checkpoint holds {further} tensors that the plan's network lacks, expected none; its trainer built "
            "another network, predict with nnU-Net itself"
        )
    for key, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name}: {key} holds values that are not finite, expected trained weights; copy it again")
        weights[key] = tensor.float() if tensor.is_floating_point() else tensor
    if described.previous_inputs:
        key = next(key for key, tensor in weights.items() if tensor.ndim >= 4)
        images = len(described.plan.channels)
        inputs = [*range(images), *(images + place for place in described.previous_inputs)]
        weights[key] = weights[key][:, inputs].contiguous()
    return weights


def _record(one: TrainedFolder, path: PurePosixPath, fold: str, file: Path, read: Checkpoint) -> dict[str, Any]:
    """What model.json says about the training: names and checksums, no paths."""
    licence = one.dataset.get("licence") or one.dataset.get("license")
    return ({"data_licence": licence} if isinstance(licence, str) else {}) | {
        "source": SOURCE,
        "name": one.name,
        "dataset": str(one.plans.get("dataset_name", "")),
        "trainer": read.trainer,
        "configuration": read.configuration,
        "fold": int(fold) if fold.isdigit() else fold,
        "epochs": read.epoch,
        "checkpoint": path.name,
        "checkpoint_sha256": sha256_file(file),
        "plans_sha256": sha256_plain(one.plans),
        "dataset_sha256": sha256_plain(one.dataset),
    }


def _config(record: Mapping[str, Any], section: InferSection) -> Config:
    """The config that inference takes its section from; its manifest is not there and is not read."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"nnunet_{record['dataset'] or 'model'}_{record['configuration']}")[:64]
    return Config(name=name, data=DataSection(manifest="dataset.json"), infer=section)


def _refuse_other_model(output: Path) -> None:
    """An import may replace an import; anything else in the folder is somebody's."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"{output}: is a file, expected a folder for the model; give another --output")
    own = {"model.json", "plan.yaml", "config.yaml", "weights.safetensors", LICENCE, "previous", ".lock"}
    strange = [
        path.name for path in output.iterdir() if path.name not in own and not path.name.startswith((".", "fold_"))
    ]
    if strange:
        raise UsageError(
            f"{output}: holds {min(strange)} already, expected a new or empty folder; give another --output"
        )
    if (output / "model.json").is_file():
        models = load_models(output)
        if models[0].info.get("training", {}).get("source") != SOURCE:
            raise UsageError(f"{output}: holds a model that was not imported from nnU-Net; give another --output")
