"""What a training run is a function of, put together from config, manifest and prepared data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medseg.config.loading import config_text
from medseg.config.network_sections import NetworkSection
from medseg.config.sections import Config, PrepareSection
from medseg.config.train_sections import TrainSection
from medseg.errors import InputError
from medseg.manifest.cases import Case, Manifest
from medseg.preparation.plan import Plan
from medseg.preparation.store import PreparedData

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


def training_inputs(config: Config, manifest: Manifest, prepared: PreparedData) -> TrainingInputs:
    """What the config's fold is trained on.

    Raises:
        InputError: a case of the manifest was not prepared, and skipping bad cases was not asked for.
    """
    fold, skip = config.data.fold, config.prepare.on_bad_case == "skip"
    kept, held_out = manifest.fold_cases(fold) if fold is not None else (manifest.training, ())
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
    )


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
    """The prepared data under the config's own patch and batch size, which a plan made before does not know yet."""
    own = {"patch_size_xyz": section.patch_size_xyz, "batch_size": section.batch_size}
    changes = {name: value for name, value in own.items() if value is not None}
    return replace(prepared, plan=prepared.plan.model_copy(update=changes))


def architecture_of(section: NetworkSection, plan: Plan) -> dict[str, Any]:
    """Plain values that rebuild the network: the config's where it has them, the plan's elsewhere."""
    values: dict[str, Any] = {
        "dimensions": plan.dimensions,
        "channels": len(plan.channels),
        "classes": plan.class_count,
        "features": list(plan.features),
        "strides": [list(size) for size in plan.strides],
        "kernel_sizes": [list(size) for size in plan.kernel_sizes],
    }
    own = {name: value for name, value in section.model_dump(mode="json").items() if value is not None}
    features = own.get("features", values["features"])
    if "strides" not in own and len(features) != len(values["strides"]):
        raise InputError(
            f"network: features has {len(features)} stages, the plan {len(values['strides'])}; give strides and "
            "kernel_sizes too, or as many features as the plan has stages"
        )
    return values | own
