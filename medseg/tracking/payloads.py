"""Tables and pictures as bytes for the spool."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medseg.tracking import privacy

if TYPE_CHECKING:  # numpy and Pillow are imported by those who log pictures
    import numpy as np
    from numpy.typing import NDArray


def table_json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows in the layout of MLflow's tables (pandas ``orient="split"``); missing and non-finite values are null.

    Args:
        rows: plain or numpy scalars by column; columns may differ. No rows give an empty table.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = [[_cell(row.get(column)) for column in columns] for row in rows]
    table = {"columns": [privacy.scrub(str(column)) for column in columns], "data": data}
    return json.dumps(table, ensure_ascii=False, default=str, allow_nan=False).encode()


def _cell(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return privacy.safe_value(value)


def png(array: NDArray[np.uint8]) -> bytes:
    """A picture as PNG.

    Args:
        array: (H, W) grey or (H, W, 3) colours, uint8.

    Raises:
        ValueError: it is none of these.
    """
    from PIL import Image

    if str(array.dtype) != "uint8" or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"picture is {array.dtype} of shape {array.shape}, expected uint8 (H, W) or (H, W, 3)")
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
