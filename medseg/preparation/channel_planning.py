"""How each channel's intensities are normalised, by nnU-Net's rules, and the sentence that says why."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.config.sections import Normalisation, PrepareSection
from medseg.errors import ConfigError, InputError
from medseg.manifest.cases import Channel
from medseg.preparation.fingerprint import Fingerprint, Intensities
from medseg.preparation.plan import ChannelPlan

_MASK_BELOW = 0.75
_MASKABLE = ("zscore", "percentile")
_RGB_NAMES = frozenset({"rgb", "rgb_to_0_1", "r", "g", "b", "red", "green", "blue"})
_SCHEMES = {"ct": "ct", "nonorm": "none", "none": "none", "rescale_to_0_1": "range", **dict.fromkeys(_RGB_NAMES, "rgb")}


def plan_channels(
    fingerprint: Fingerprint, channels: Sequence[Channel], section: PrepareSection
) -> tuple[tuple[ChannelPlan, ...], str]:
    """One plan per channel, and the reason for all of them.

    A channel's name decides (CT, RGB and its parts, nonorm, rescale_to_0_1; anything else is a z-score) unless the config
    does. Statistics come from the nonzero mask only where the crop to nonzero keeps under 75 % of the median scan.

    Raises:
        InputError: a CT channel without any foreground voxel.
        ConfigError: the config names a channel that is not there.
    """
    given = section.normalisation
    if isinstance(given, dict) and (unknown := sorted(given.keys() - {c.name for c in channels})):
        raise ConfigError(
            [f"prepare.normalisation: names {', '.join(unknown)}, expected of {', '.join(c.name for c in channels)}"]
        )
    masked = fingerprint.median_crop_share < _MASK_BELOW
    if section.mask_normalisation is not None:
        masked = section.mask_normalisation
    # A set without any foreground has no sketches at all.
    known = fingerprint.intensities or (None,) * len(channels)
    plans, sentences = [], []
    for channel, intensities in zip(channels, known, strict=True):
        wish: Normalisation = given.get(channel.name, "auto") if isinstance(given, dict) else given
        scheme = _SCHEMES.get(channel.name.casefold(), "zscore") if wish == "auto" else wish
        plans.append(_channel_plan(channel, scheme, intensities, masked=masked))
        sentences.append(f"{channel.name}: {scheme} " + ("by its name" if wish == "auto" else "as the config asks"))
    share = f"the crop to nonzero keeps {fingerprint.median_crop_share:.0%} of the median scan"
    if section.mask_normalisation is not None:
        share = "the config asks for it" if masked else f"{share}, and the config asks for whole scans"
    mask = f"statistics inside the nonzero mask, because {share}" if any(p.use_mask for p in plans) else share
    return tuple(plans), "; ".join([*sentences, mask]) + "."


def _channel_plan(channel: Channel, scheme: str, intensities: Intensities | None, *, masked: bool) -> ChannelPlan:
    if scheme == "ct" and intensities is None:
        raise InputError(f"{channel.name}: has no foreground voxels to take CT statistics from; check the labels")
    known = intensities if scheme == "ct" else None
    return ChannelPlan(
        name=channel.name,
        unit=channel.unit,
        series=channel.series,
        scheme=scheme,  # type: ignore[arg-type]
        use_mask=masked and scheme in _MASKABLE,
        low=known.low if known else 0.0,
        high=known.high if known else 0.0,
        mean=known.mean if known else 0.0,
        std=known.std if known else 1.0,
    )
