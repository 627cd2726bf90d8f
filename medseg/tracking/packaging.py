"""What makes a model folder of ours a model of MLflow's: a few text files beside it, and no pickle.

MLflow's "models from code": ``MLmodel`` names a Python file that is run when the model is loaded (``pyfunc_model.py``), and the
model folder itself is its one artifact, at the place where it lies. So a folder downloaded from MLflow is both: ``medseg infer
--model`` takes it, and ``mlflow.pyfunc.load_model`` does.
"""

from __future__ import annotations

import json
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

CODE_NAME = "pyfunc_model.py"
_EXAMPLE_NAME = "input_example.json"
_EXAMPLE = "scan.nii.gz"
_REQUIREMENTS_NAME = "requirements.txt"
_ENVIRONMENT_NAME = "python_env.yaml"


def write_package(folder: Path, *, run_id: str, artifact: str, ms: int) -> list[Path]:
    """Writes the files, which are the same whenever the same model is packaged.

    Args:
        folder: where to; it exists.
        run_id: the run that the model is an artifact of.
        artifact: its folder among the run's artifacts.
        ms: when the model was made, in milliseconds since 1970.

    Returns:
        The files, all to lie beside ``model.json``.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    shutil.copyfile(Path(__file__).with_name(CODE_NAME), folder / CODE_NAME)
    (folder / _REQUIREMENTS_NAME).write_text(f"medseg=={version('medseg')}\n")
    (folder / _ENVIRONMENT_NAME).write_text(
        f"python: {platform.python_version()}\nbuild_dependencies: []\ndependencies:\n- -r {_REQUIREMENTS_NAME}\n"
    )
    example = {"columns": ["scan"], "data": [[_EXAMPLE]]}
    (folder / _EXAMPLE_NAME).write_text(json.dumps({"dataframe_split": example}, indent=2) + "\n")
    model: Any = Model(
        artifact_path=artifact,
        run_id=run_id,
        utc_time_created=str(datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None)),
        signature=_signature(),
        saved_input_example_info={
            "artifact_path": _EXAMPLE_NAME,
            "type": "dataframe",
            "pandas_orient": "split",
        },
        model_uuid=None,
    )
    add_to_model(
        model,
        loader_module="mlflow.pyfunc.model",
        model_code_path=CODE_NAME,
        python_env=_ENVIRONMENT_NAME,
        artifacts={"model": {"path": ".", "uri": "."}},
        streamable=False,
    )
    model.save(str(folder / "MLmodel"))
    return sorted(folder.iterdir())


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    # Without a column's name MLflow takes a list of paths as well as a table of one column.
    return ModelSignature(
        inputs=Schema([ColSpec("string")]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema([ParamSpec("output", "string", default=""), ParamSpec("device", "string", default="cpu")]),
    )
