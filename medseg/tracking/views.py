"""What MLflow's pages show first: a saved view of the runs, best first, with the scores as columns.

MLflow keeps the views that people save in an experiment's tags, and lists them under "Views". Ours is written alike, so one
click shows the experiments (each the run above its stages) by score. An MLflow without such a list leaves the tag alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

VIEW_ID = "medseg-scores"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"
KIND_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment: it is about models and not about language models' traces."""
STAGE_TAG = "medseg.stage"
EXPERIMENT = "experiment"
"""Value of that tag for the run above the stages."""
_NAME = "Scores, best first"
_MOST_COLUMNS = 14
_END = re.compile(r"_(low|high)(/|$)")


def view_with(present: str | None, metrics: Sequence[str], *, ms: int) -> str:
    """The view's tag with these metrics as columns too; the first of all is what runs are sorted by.

    Args:
        present: the tag as it is; None where there is none. Columns that it has stay where they are.
        metrics: names, the most telling first; ends of intervals are no columns.
        ms: now, in milliseconds since 1970.
    """
    known, created = _read(present)
    means = [name for name in metrics if not _END.search(name)]
    columns = list(dict.fromkeys([*known, *means]))[:_MOST_COLUMNS]
    shown = [f"metrics.`{name}`" for name in columns]
    state = {
        "searchFilter": f"tags.`{STAGE_TAG}` = '{EXPERIMENT}'",
        "orderByKey": shown[0] if shown else "attributes.start_time",
        "orderByAsc": bool(columns) and columns[0].endswith("_mm"),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": shown,
        "columnOrder": shown,
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    made = created if created is not None else ms
    return json.dumps({"name": _NAME, "createdAt": made, "updatedAt": made, "state": json.dumps(state)})


def _read(present: str | None) -> tuple[list[str], int | None]:
    try:
        envelope: Any = json.loads(present or "")
        columns = json.loads(envelope["state"])["selectedColumns"]
        names = [str(column).removeprefix("metrics.`").removesuffix("`") for column in columns]
        return names, int(envelope["createdAt"])
    except (ValueError, KeyError, TypeError):  # none, or a person saved another form of it under this name
        return [], None
