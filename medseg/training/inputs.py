"""What a training run is a function of, put together from config, manifest and prepared data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.config.loading import config_text
from medseg.config.network_sections import NetworkSection
from medseg.config.sections import Config, PrepareSection
from medseg.config.train_sections import TrainSection
from medseg.durable import sha256_bytes
from medseg.errors import InputError
from medseg.inference.licence import read_licence
from medseg.manifest import load_manifest
from medseg.manifest.cases import Case, Manifest
from medseg.preparation.plan import Plan
from medseg.preparation.settling import require_made_with
from medseg.preparation.store import PreparedData, StoredCase
from medseg.training.previous import first_stage_models

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingInputs:
    """What a run is a function of.

    Attributes:
        prepared: the prepared data.
        training, validation: case ids.
        network, section: the config's sections.
        seed: of everything drawn.
        fold: for the record.
        config_text: the resolved config as YAML, kept beside the weights.
        manifest_sha256: for the record.
        inner: training cases set aside for early stopping, not in ``training``.
        init_from: weights to start with.
        previous: of a cascade's second stage, name to model folder of its first.
        licence: text of the weights' licence.
        data_licence: what the manifest says of the data's.
    """

    prepared: PreparedData
    training: tuple[str, ...]
    validation: tuple[str, ...]
    network: NetworkSection
    section: TrainSection
    seed: int
    fold: int | None
    config_text: str
    manifest_sha256: str
    inner: tuple[str, ...] = ()
    init_from: Path | None = None
    previous: Mapping[str, Path] = field(default_factory=dict)
    licence: bytes | None = None
    data_licence: str = ""


def open_inputs(
    config: Config, *, manifest_path: Path, work: Path, config_folder: Path = Path(), allow_changed: bool = False
) -> TrainingInputs:
    """`training_inputs` of an experiment's files: its manifest and the prepared data in ``work``.

    Args:
        config: the experiment.
        manifest_path: the config's manifest.
        work: folder that holds ``prepared``.
        config_folder: where ``train.init_from``, ``train.licence`` and ``prepare.previous_work`` start.
        allow_changed: take prepared data that were made with other settings.

    Raises:
        ChangedError: the prepared data were made with other settings, channels or labels; or as `training_inputs`.
        InputError: nothing is prepared there; or as `training_inputs`.
    """
    manifest = load_manifest(manifest_path).with_series(config.data.series)
    prepared = PreparedData.open(work / "prepared")
    if not allow_changed:
        require_made_with(config.prepare, manifest, prepared.folder)
    return training_inputs(config, manifest, prepared, config_folder=config_folder)


def training_inputs(
    config: Config, manifest: Manifest, prepared: PreparedData, *, config_folder: Path = Path()
) -> TrainingInputs:
    """What the config's fold is trained on.

    Args:
        config: the experiment.
        manifest: its cases.
        prepared: its prepared data.
        config_folder: where ``train.init_from``, ``train.licence`` and ``prepare.previous_work`` start.

    Raises:
        UsageError: ``train.licence`` is no text file.
        InputError: a case of the manifest was not prepared, and skipping bad cases was not asked for; or a cascade's first
            stage is not there.
        ChangedError: a cascade's first stage is not the one that drew the prepared masks.
    """
    fold, skip = config.data.fold, config.prepare.on_bad_case == "skip"
    kept, held_out = manifest.fold_cases(fold) if fold is not None else (manifest.training, ())
    early, init_from, licence = config.train.early_stopping, config.train.init_from, config.train.licence
    inner: tuple[Case, ...] = ()
    if early.patience_epochs is not None:
        kept, inner = inner_split(kept, share=early.inner_share, seed=config.seed)
    return TrainingInputs(
        prepared=with_overrides(prepared, config.prepare),
        training=prepared_ids(prepared, kept, skip=skip),
        validation=prepared_ids(prepared, held_out, skip=skip),
        network=config.network,
        section=config.train,
        seed=config.seed,
        fold=fold,
        config_text=config_text(config),
        manifest_sha256=manifest.sha256,
        inner=prepared_ids(prepared, inner, skip=skip),
        init_from=config_folder / init_from if init_from is not None else None,
        previous=first_stage_models(config.prepare, prepared, fold=fold, config_folder=config_folder),
        licence=None if licence is None else read_licence(config_folder / licence, key="train.licence"),
        data_licence=manifest.licence,
    )


def inner_split(cases: Sequence[Case], *, share: float, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Parts training cases into those to train on and those set aside, by patient.

    Which patients are set aside goes by a hash of (seed, patient), so that it does not change when other cases come or go.

    Args:
        cases: of the training part of a fold.
        share: of the patients to set aside, rounded, at least one.
        seed: of the experiment.

    Returns:
        Cases to train on, cases set aside; both in the given order.

    Raises:
        InputError: there are fewer than two patients.
    """
    patients = sorted({case.patient for case in cases}, key=lambda name: sha256_bytes(f"{seed} {name}".encode()))
    if len(patients) < 2:
        raise InputError(
            f"training: has {len(patients)} patient(s), expected 2 or more to set some aside; switch train.early_stopping off"
        )
    aside = set(patients[: max(1, round(share * len(patients)))])
    kept = tuple(case for case in cases if case.patient not in aside)
    return kept, tuple(case for case in cases if case.patient in aside)


def prepared_ids(prepared: PreparedData, cases: Sequence[Case], *, skip: bool) -> tuple[str, ...]:
    """Ids of those of ``cases`` that can be trained on: prepared and with labels.

    Raises:
        InputError: a case was not prepared, and skipping bad cases was not asked for.
    """
    for case in cases:
        if case.id in prepared.skipped:
            _LOG.warning("%s: was left out by prepare, so it is not trained on", case.id)
    known = prepared.cases.keys() | set(prepared.skipped)
    missing = [case.id for case in cases if case.id not in known]
    if missing and not skip:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"prepared data: {len(missing)} of {len(cases)} cases of the manifest are not in it ({shown}); run medseg prepare "
            "again, with prepare.on_bad_case: skip if bad cases are to be left out"
        )
    present = [case.id for case in cases if case.id in prepared.cases]
    return tuple(case for case in present if prepared.cases[case].has_labels)


def with_overrides(prepared: PreparedData, section: PrepareSection) -> PreparedData:
    """The prepared data under the config's own patch and batch size, which a plan made before does not know yet.

    Raises:
        InputError: the patch is thicker than one voxel along the axis that 2D slices are stacked along.
    """
    own = {"patch_size_xyz": section.patch_size_xyz, "batch_size": section.batch_size}
    changes = {name: value for name, value in own.items() if value is not None}
    patch, axis = section.patch_size_xyz, prepared.plan.slice_axis
    if patch is not None and axis is not None and patch[axis] != 1:
        raise InputError(
            f"prepare.patch_size_xyz: is {list(patch)}, expected 1 along {'xyz'[axis]}; the plan is 2D, slice by slice"
        )
    return replace(prepared, plan=prepared.plan.model_copy(update=changes))


def partly_labelled(cases: Sequence[StoredCase], plan: Plan) -> dict[str, tuple[bool, ...]]:
    """Of the cases that were labelled for some classes only: id to which of the plan's labels, background first."""
    return {
        case.id: (True, *(name in labelled for name in list(plan.labels)[1:]))
        for case in cases
        if (labelled := case.labelled) is not None
    }
