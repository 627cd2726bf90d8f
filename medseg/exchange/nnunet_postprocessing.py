"""nnU-Net's ``postprocessing.json`` as clean-up steps of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.durable import read_json
from medseg.errors import ModelError
from medseg.evaluation.postprocessing import Step

_FUNCTION = "remove_all_but_largest_component_from_segmentation"


def read_postprocessing(path: Path, labels: Mapping[str, tuple[int, ...]]) -> tuple[Step, ...]:
    """The steps that ``nnUNetv2_find_best_configuration`` or ``nnUNetv2_determine_postprocessing`` found to help.

    Args:
        path: ``postprocessing.json``; the pickle beside it is never read.
        labels: the plan's, background first.

    Raises:
        InputError: there is no such JSON file.
        ModelError: it asks for something that is no step of ours, which is named.
    """
    content = read_json(path)
    functions = content.get("postprocessing_fns") if isinstance(content, dict) else None
    arguments = content.get("postprocessing_kwargs") if isinstance(content, dict) else None
    if not isinstance(functions, list) or not isinstance(arguments, list) or len(functions) != len(arguments):
        raise ModelError(
            f"{path.name}: is not as nnU-Net v2 writes it, expected its postprocessing.json; check the path"
        )
    return tuple(_step(path.name, *pair, labels) for pair in zip(functions, arguments, strict=True))


def _step(name: str, function: Any, arguments: Any, labels: Mapping[str, tuple[int, ...]]) -> Step:
    arguments = arguments if isinstance(arguments, dict) else {"": arguments}
    wanted = arguments.get("labels_or_regions")
    values = wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
    flat = {v for value in values for v in (value if isinstance(value, list) else [value])}
    if (
        function != _FUNCTION
        or arguments.keys() - {"labels_or_regions", "background_label"}
        or arguments.get("background_label", 0)
    ):
        raise ModelError(
            f"{name}: asks for {str(function)[:60]} with {str(arguments)[:60]}, expected {_FUNCTION}; leave it out"
        )
    if flat == {value for own in list(labels.values())[1:] for value in own}:
        return Step(kind="largest_components", class_name=None)
    for label, own in list(labels.items())[1:]:
        if set(own) == flat:
            return Step(kind="largest_components", class_name=label)
    raise ModelError(
        f"{name}: cleans the values {sorted(map(str, flat))}, expected those of a label or of all; leave it out"
    )
