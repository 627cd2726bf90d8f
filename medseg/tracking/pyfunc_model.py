"""A model folder as MLflow loads it; a copy of this file lies in every model that medseg logs, and runs where it is loaded.

::

    model = mlflow.pyfunc.load_model("models:/liver@champion")
    masks = model.predict(["a.nii.gz", "b.nii.gz"], params={"output": "masks"})

``predict`` takes paths of scans (a list, a Series, a table of one column) and gives the paths of their masks in the same order.
The masks are those of ``medseg infer``, with a sidecar each and ``report.csv``, in the folder ``output``; without it in a new
temporary folder, which is the caller's to remove. The same call again keeps the masks that are there.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel


class SegmentationModel(PythonModel):  # type: ignore[misc, unused-ignore]
    """Segments scans that are named by path."""

    def load_context(self, context: Any) -> None:
        """Checks that the model is whole; its weights are loaded by the first ``predict``."""
        self._folder = Path(context.artifacts["model"]).resolve()
        _of_medseg("inference.model").model_json(self._folder)
        self._engines: dict[str, Any] = {}

    # MLflow reads the annotation: whatever it is given, a list comes here.
    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:  # noqa: ARG002
        """Paths of masks, one per scan.

        Args:
            context: MLflow's.
            model_input: paths of scans: list, Series, or table whose first column holds them.
            params: ``output``: folder for the masks; ``device``: cpu, cuda, cuda:1 ...

        Raises:
            MedsegError: a scan is missing, or two masks would have one name; nothing is written then.
            RuntimeError: some scans can't be segmented; the masks of the others are written.
        """
        params = params or {}
        output = Path(params.get("output") or tempfile.mkdtemp(prefix="medseg-"))
        engine = self._engine(params.get("device") or "cpu")
        cases = [case for path in _paths(model_input) for case in self._cases(engine, path)]
        reports = _of_medseg("inference.stage").infer_folder(engine, cases, output=output)
        bad = [report.reason or report.id for report in reports if not report.good]
        if bad:
            raise RuntimeError(f"{len(bad)} of {len(reports)} scans have no mask: {'; '.join(bad)}")
        return [str(output / report.output) for report in reports]

    def _engine(self, device: str) -> Any:
        if device not in self._engines:
            chosen = _of_medseg("networks.precision").choose_device(device)
            models = _of_medseg("inference.model").load_models(self._folder, device=chosen)
            section = _of_medseg("inference.experiment").own_section(models[0])
            self._engines[device] = _of_medseg("inference.ensemble").build_engine(models, section, device=chosen)
        return self._engines[device]

    def _cases(self, engine: Any, path: Path) -> Any:
        cases = _of_medseg("inference.cases").find_cases(
            [path], channels=engine.plan.channels, series=engine.section.series
        )
        if len(cases) != 1:
            raise ValueError(f"{path.name}: holds {len(cases)} scans, expected a path per scan")
        return cases


def _paths(model_input: Any) -> list[Path]:
    if hasattr(model_input, "iloc"):  # of pandas: a table's first column, or a series
        model_input = model_input.iloc[:, 0] if model_input.ndim == 2 else model_input
    paths = [model_input] if isinstance(model_input, str | Path) else list(model_input)
    if not paths:
        raise ValueError("no scan was given, expected at least one path")
    return [Path(path) for path in paths]


def _of_medseg(module: str) -> Any:
    # By name: this file lies in a tracking server's artifacts and is no part of the package's layers.
    return importlib.import_module(f"medseg.{module}")


mlflow.models.set_model(SegmentationModel())
