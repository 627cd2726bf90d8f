"""What the stages tell the tracker for those who review: descriptions, headline numbers, pictures, and a model's evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.durable.markdown import code, plain
from medseg.tracking.notes import command, description

if TYPE_CHECKING:
    from medseg.cli.entry import Context
    from medseg.crossvalidation.stage import CrossValidation
    from medseg.evaluation.experiment import CaseSet
    from medseg.evaluation.report import Scores
    from medseg.tracking.run import TrackedRun
    from medseg.training.inputs import TrainingInputs

OVERLAY = "overlay"
"""Key of the pictures of a scored set; the slider's steps are ranks, 0 the worst case."""
_MOST_PICTURES = 12
_SHOWN = ("dice", "nsd", "hd95_mm", "assd_mm", "situation")
_SCAN_SLICES = b'"scan":"data:image/'  # as the viewer of medseg.report names them
_SHA = 12


def prepare_note(context: Context, data: str, summary: str, sha256: str) -> str:
    """Description of a preparation; ``summary`` is what the terminal is told, a line a fact."""
    first, *others = summary.splitlines()
    return description(
        f"Prepared data of **{context.experiment.name}**: {plain(first)}.",
        {"data": f"{plain(data)}, prepared `{sha256[:_SHA]}`", "then": plain("; ".join(others))},
        look=[
            "Artifacts: `plan.yaml` says why each value of the plan is what it is, `checks.json` is the table of findings."
        ],
        again=command("prepare", context.args.config, context.args.overrides),
    )


def infer_note(context: Context, folder: Path, summary: str, models: Sequence[str]) -> str:
    """Description of an inference; ``models`` are the checksums of the model folders."""
    return description(
        f"Masks of **{context.experiment.name}** for {code(folder.name)}: {plain(summary)}.",
        {"model": ", ".join(f"`{sha256[:_SHA]}`" for sha256 in models)},
        look=["Artifacts: `infer_cases.json` has each case with its seconds, memory, volumes and flags."],
        again=command("infer", context.args.config, context.args.overrides),
    )


def train_note(context: Context, inputs: TrainingInputs, folder: Path, last: Mapping[str, float]) -> str:
    """Description of a training; ``last`` is what its last validation gave, empty while it runs."""
    config, plan = context.experiment, inputs.prepared.plan
    held_out = f"{len(inputs.validation)} held out (fold {inputs.fold})" if inputs.validation else "none held out"
    prefix = "validation/dice/"
    dices = [(name.removeprefix(prefix), f"{value:.4f}") for name, value in last.items() if name.startswith(prefix)]
    ended = f" Validation Dice {last['validation/dice']:.4f}." if "validation/dice" in last else ""
    facts = {
        "data": f"{len(inputs.training)} training cases, {held_out}; prepared data `{inputs.prepared.sha256[:_SHA]}`",
        "network": f"{inputs.network.kind}, patch {'x'.join(map(str, plan.patch_size_xyz))}",
        "budget": _budget(context),
        "seed": str(config.seed),
    }
    look = [
        "Model metrics: the group `validation` has Dice per class over training steps, `train` loss and learning rate.",
        "Artifacts: `figures/learning curves.png`, `model/` (weights as safetensors, plan, config).",
        "System metrics: memory and processor use.",
    ]
    return description(
        f"Training of **{config.name}**, run `{folder.name}`.{ended}",
        facts,
        tables={"Dice of the held-out cases during training": [("class", "Dice"), *dices]},
        look=look,
        again=command("train", context.args.config, context.args.overrides),
    )


def fold_words(fold: int | None) -> str:
    """The held-out fold as a tag has it."""
    return "none held out" if fold is None else str(fold)


def _budget(context: Context) -> str:
    budget = context.experiment.train.budget
    named = {"minutes": budget.minutes, "steps": budget.steps, "epochs": budget.epochs}
    ((unit, value),) = ((unit, value) for unit, value in named.items() if value is not None)
    return f"{value:g} {unit}"


def version_note(context: Context, inputs_sha256: str, folder: Path, *, name: str) -> str:
    """Description of a registered version."""
    facts = {"training": f"`{folder.parent.name}`, {_budget(context)}", "prepared data": f"`{inputs_sha256[:_SHA]}`"}
    return description(
        f"A model of **{context.experiment.name}**. Its scores are tags of this version once it is evaluated.",
        facts,
        look=[f"The source run has its training; `medseg promote {name}` moves the alias `champion`."],
        again=f"medseg infer SCANS --model models:/{name}@champion --work WORK --output masks",
        above_command="Use",
    )


def evaluate_note(context: Context, scores: Scores, *, pictures: Sequence[str] = ()) -> str:
    """Description of a scored set; ``pictures`` are the cases of the overlays in the order of their steps."""
    from medseg.evaluation.review import score_table, worst_table

    facts = {
        "data": f"{len(scores.rows)} of {scores.expected} cases scored, references `{_references(scores)}`",
        "NSD": f"within {', '.join(sorted({f'{value:g} mm' for value in scores.protocol.tolerance_mm.values()}))}",
        "empty masks": plain(scores.protocol.policy.name),
        "notes": plain(" ".join(scores.notes)),
    }
    look = ["Artifacts: `cases.json` is the table of every case and class, `metrics.json` all numbers."]
    if pictures:
        look.append(
            f"Images: `{OVERLAY}` has a slider from the worst case (step 0) to the best; the truth is outlined."
        )
    return description(
        f"Scores of **{context.experiment.name}** on {code(scores.name)}. {_mean_words(scores)}",
        facts,
        tables={"Scores": score_table(scores), "Where it fails": worst_table(scores)},
        look=look,
        again=command("evaluate", context.args.config, context.args.overrides),
    )


def crossval_note(context: Context, result: CrossValidation, by_fold: Mapping[str, float | None]) -> str:
    """Description of a cross-validation."""
    from medseg.evaluation.review import score_table, worst_table

    scores = result.reported
    folds = [(fold, "-" if mean is None else f"{mean:.4f}") for fold, mean in by_fold.items()]
    facts = {
        "data": f"{len(scores.rows)} of {scores.expected} cases, each scored by networks that did not train on it",
        "configuration": plain(result.final.choice.name),
        "post-processing": plain("; ".join(str(step) for step in result.final.adopted)) or "none",
    }
    return description(
        f"Cross-validation of **{context.experiment.name}** in {len(by_fold)} folds. {_mean_words(scores)}",
        facts,
        tables={
            "Scores": score_table(scores),
            "Dice by fold": [("fold", "mean Dice"), *folds],
            "Where it fails": worst_table(scores),
        },
        look=[
            "Artifacts: `crossvalidation.md` says which data decided what, `cases.json` has every case and class.",
            "Model metrics: `fold/dice` has a point per fold.",
        ],
        again=command("train", context.args.config, context.args.overrides, "--fold", "all"),
    )


def _references(scores: Scores) -> str:
    return scores.identity()["references"][:_SHA]


def _mean_words(scores: Scores) -> str:
    from medseg.evaluation.review import by_dice, headline

    dice, ranked = headline(scores).get("dice"), by_dice(scores.rows)
    if dice is None or not ranked:
        return "No case has a defined Dice."
    return f"Mean Dice **{dice:.4f}** over classes; worst case {code(ranked[0][0])} with {ranked[0][1]:.4f}."


def log_scores(
    run: TrackedRun,
    context: Context,
    scores: Scores,
    folder: Path,
    note: str,
    *,
    name: str | None = None,
    report: bool = True,
) -> None:
    """Logs what a scored set shows: the description, the data with their hashes, and the headline of the run above.

    ``name`` is what the headline's numbers begin with, the set's own name where it is None. ``report`` says whether the
    report in ``folder`` is of these scores, and not left by earlier ones.
    """
    from medseg.evaluation.review import headline

    run.log_note(note)
    rows = [{"case": case, "prediction": pair[0], "reference": pair[1]} for case, pair in scores.inputs.items()]
    run.log_dataset(name or scores.name, scores.identity()["references"], rows, context="testing")
    numbers = headline(scores)
    run.log_headline({f"{name or scores.name}/{key}": value for key, value in numbers.items()}, note=note)
    page, text = folder / "report.html", folder / "report.md"
    if report and page.is_file() and (context.experiment.tracking.images or not shows_scans(page)):
        run.log_file(page)
    if report and text.is_file():
        run.log_file(text)


def log_case_table(run: TrackedRun, scores: Scores) -> None:
    """Logs every case and class as the table ``cases``: the worst Dice first, the telling columns first, four digits."""
    from medseg.evaluation.report import case_table

    rows = [dict.fromkeys(("case", "class", *_SHOWN)) | row for row in case_table(scores)]
    rows.sort(key=lambda row: math.inf if row["dice"] is None else float(row["dice"]))
    run.log_table([{name: _rounded(value) for name, value in row.items()} for row in rows], "cases")


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def log_evidence(run: TrackedRun, model_sha256: str, scores: Scores, folder: Path) -> None:
    """Keeps the scores per case as those of a model, for `medseg promote`, and tags its registered versions with them."""
    from medseg.evaluation.review import headline

    numbers = headline(scores)
    tags = {f"{scores.name}.{name.replace('/', '.')}": f"{value:.4f}" for name, value in numbers.items()}
    run.log_scores(folder, model_sha256=model_sha256, of=scores.name, tags=tags)


def shows_scans(report: Path) -> bool:
    """Whether a report holds slices of scans; outlines of masks and drawings are none."""
    return _SCAN_SLICES in report.read_bytes()


def predicted_by(cases: CaseSet) -> str | None:
    """Checksum of the model folder that wrote the masks of a set, by the record of `infer` beside them; None if unknown."""
    from medseg.errors import InputError
    from medseg.tracking.record import read_stage_record

    folders = {pair.prediction.parent for pair in cases.pairs if pair.prediction is not None}
    if len(folders) != 1:
        return None
    try:
        found = read_stage_record(folders.pop()).get("model_folders", ())
    except InputError:
        return None
    return str(found[0]) if len(found) == 1 else None


def log_overlays(run: TrackedRun, cases: CaseSet, scores: Scores) -> list[str]:
    """Logs pictures from the worst case to the best, one step each.

    Returns:
        The cases, in the order of their steps.
    """
    from medseg.evaluation.review import case_words
    from medseg.evaluation.telling import ranked_cases, telling_slices
    from medseg.tracking.figures import captioned, overlay_png

    picked = ranked_cases(scores.rows, most=_MOST_PICTURES)
    shown: list[str] = []
    for rank, (image, truth, prediction, planar) in telling_slices(cases, scores.rows, picked=picked):
        case = picked[rank]
        picture = overlay_png(image, truth, prediction, flip_yx=not planar)
        words = (f"{rank}: {case}", case_words(scores.rows[case]))
        run.log_image(captioned(picture, words, cases.protocol.class_names), OVERLAY, step=len(shown))
        shown.append(case)
    return shown
