"""Which series of a DICOM folder is meant: one rule for a scan, or one per channel where a folder holds several channels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from medseg.config.base import Section
from medseg.errors import ConfigError


class SeriesSection(Section):
    """Which series of a DICOM folder that holds several is the scan: all that is said must hold of it."""

    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] | None = None
    """DICOM's code: CT, MR, PT ..."""
    description: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """A regular expression found somewhere in the series' description, whatever the case of letters."""
    most_slices: bool = False
    """Of several that are left, the one with the most slices; without it, several are refused."""
    code: str | None = None
    """The short code of one series, as reports and messages show it."""

    @model_validator(mode="after")
    def _is_an_expression(self) -> SeriesSection:
        try:
            re.compile(self.description or "")
        except re.error as error:
            raise ValueError(f"description is no regular expression ({error})") from error
        return self


def _kind(value: Any) -> str:
    # Of a rule's own fields none holds a rule, so a channel may even be called "modality".
    by_channel = isinstance(value, dict) and any(isinstance(held, dict | SeriesSection) for held in value.values())
    return "by channel" if by_channel else "rule"


Series = Annotated[
    Annotated[SeriesSection, Tag("rule")] | Annotated[dict[str, SeriesSection], Tag("by channel")],
    Discriminator(_kind),
]
"""One rule for every channel, or channel name to rule; as a config has it."""
SeriesRules = SeriesSection | Mapping[str, SeriesSection]
"""The same, as functions take it."""


def rules_of_channels(
    series: SeriesRules | None, names: Sequence[str], *, key: str
) -> tuple[SeriesSection | None, ...]:
    """The rule of each channel; None for those that ``series`` says nothing of.

    Args:
        series: of a config.
        names: of the channels there are.
        key: what ``series`` is called in the config, for the message.

    Raises:
        ConfigError: it names a channel that is not there.
    """
    if series is None or isinstance(series, SeriesSection):
        return (series,) * len(names)
    if unknown := [name for name in series if name not in names]:
        raise ConfigError(
            [f"{key}: names the channels {', '.join(unknown)}, expected of {', '.join(names)}; correct the names"]
        )
    return tuple(series.get(name) for name in names)


def told_apart(rules: Sequence[SeriesSection | None]) -> bool:
    """Whether channels may share a folder: each has a rule, and no two the same."""
    return None not in rules and all(one not in rules[:place] for place, one in enumerate(rules))
