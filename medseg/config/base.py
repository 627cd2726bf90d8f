"""What every section is made of: the base model and the types of its fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Spacing = tuple[Positive, Positive, Positive]
Size = tuple[PositiveInt, PositiveInt, PositiveInt]


class Section(BaseModel):
    """Base of everything people write: frozen, strict, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
