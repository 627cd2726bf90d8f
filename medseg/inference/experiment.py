"""What an experiment's config asks inference for: which cases, into which folders, with which models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.config import load_config
from medseg.config.sections import InferSection
from medseg.errors import ConfigError, ModelError, UsageError
from medseg.inference.cases import InferCase, manifest_cases, refuse_same_names
from medseg.inference.model import Model
from medseg.inference.runs import latest_run, run_name
from medseg.manifest import Manifest

TESTING = "testing"


def experiment_models(section: InferSection, *, work: Path, fold: int | None) -> tuple[Path, ...]:
    """Model folders in ``work``: of the newest run of every fold of ``section.ensemble``, or of ``fold`` where it is empty.

    Raises:
        UsageError: an ensemble would predict cases that some of its members were trained on.
    """
    folds = section.ensemble or (fold,)
    if section.cases != TESTING and fold is not None and set(folds) != {fold}:
        names = ", ".join(str(other) for other in folds)
        raise UsageError(
            f"infer.ensemble: is [{names}] with infer.cases {section.cases}, but folds other than {fold} were trained on "
            f"the held-out cases of fold {fold}; set infer.cases=testing, or take the ensemble out"
        )
    return tuple(latest_run(work, other) / "model" for other in folds)


def refuse_trained_on(models: Sequence[Model], section: InferSection, *, fold: int | None) -> None:
    """Raises UsageError where an ensemble that was named with ``--model`` would predict cases that members trained on."""
    strangers = [model.folder.name for model in models if model.stream and _fold_of(model) != fold]
    if section.cases != TESTING and strangers:
        raise UsageError(
            f"--model: member {strangers[0]} of the ensemble was trained on the held-out cases of fold {fold}, expected "
            "none of them; set infer.cases=testing, or name the scans"
        )


def _fold_of(model: Model) -> object:
    return model.info.get("training", {}).get("fold")


def experiment_cases(
    section: InferSection, manifest: Manifest, *, fold: int | None, data_root: Path, allow_outside: bool = False
) -> dict[str, tuple[InferCase, ...]]:
    """Cases per folder of predictions: ``fold_<k>`` for the held-out cases, ``testing`` for the testing list.

    Raises:
        UsageError: a list that the section names has no case.
    """
    wanted = {}
    if section.cases != TESTING:
        if fold is None:
            raise UsageError(
                f"infer.cases: is {section.cases}, but data.fold is null, so no case was held out; set infer.cases=testing"
            )
        wanted[run_name(fold)] = manifest.fold_cases(fold)[1]
    if section.cases in (TESTING, "all"):
        wanted[TESTING] = manifest.testing
    for name, cases in wanted.items():
        if not cases:
            raise UsageError(
                f"infer.cases: is {section.cases}, but {manifest.path.name} has no case for {name}; change one"
            )
    return {
        name: refuse_same_names(manifest_cases(manifest, cases, data_root=data_root, allow_outside=allow_outside))
        for name, cases in wanted.items()
    }


def own_section(model: Model) -> InferSection:
    """The inference section of the config that the model was trained with, which its folder holds.

    Raises:
        ModelError: that config can't be read by this medseg.
    """
    try:
        return load_config(model.folder / "config.yaml").infer
    except ConfigError as error:
        raise ModelError(
            f"{model.folder.name}: config.yaml can't be read ({error.faults[0]}); use the medseg it is of"
        ) from error
