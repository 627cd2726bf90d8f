"""What scores depend on besides the two files: definitions, code, versions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg.durable import sha256_bytes, sha256_json
from medseg.evaluation.instances import IOU_THRESHOLD
from medseg.evaluation.policy import EmptyPolicy, policy_table
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.registry import CASE_METRICS, known_metrics, metric_names
from medseg.evaluation.reliability import BINS
from medseg.evaluation.subgroups import LEAST_PATIENTS
from medseg.evaluation.surface import TOLERANCE_SLACK_MM

# The modules that decide a row's numbers: a change in one of them makes old rows stale.
_DECIDING = (
    "bands.py",
    "case.py",
    "centreline.py",
    "confusion.py",
    "instances.py",
    "lattice.py",
    "masks.py",
    "metric.py",
    "overlap.py",
    "pair.py",
    "postprocessing.py",
    "probabilities.py",
    "reading.py",
    "registry.py",
    "reliability.py",
    "surface.py",
    "surfels.py",
    "thinning.py",
)


@cache
def code_sha256() -> str:
    """Hash of the source of everything that decides a row."""
    folder = Path(__file__).parent
    return sha256_json({name: sha256_bytes((folder / name).read_bytes()) for name in _DECIDING})


@cache
def versions() -> dict[str, str]:
    """Of medseg and of the libraries that compute."""
    return {name: version(name) for name in ("medseg", "numpy", "scipy")}


def settings_sha256(protocol: Protocol) -> str:
    """Hash of what, with the two files, decides a case's rows; the policy for empty masks only decides means."""
    aliases = {"aliases": {name: list(own) for name, own in protocol.aliases.items()}} if protocol.aliases else {}
    return sha256_json(
        aliases
        | {
            "labels": [[name, list(values)] for name, values in protocol.labels.items()],
            "ignore": protocol.ignore,
            "tolerance_mm": dict(protocol.tolerance_mm),
            "metrics": list(protocol.metrics),
            "code": code_sha256(),
            "versions": versions(),
        }
    )


def definitions(policy: EmptyPolicy, metrics: Sequence[str] = metric_names()) -> dict[str, Any]:
    """Every choice a reader needs to compare these scores with others', as plain values; of the metrics that were computed."""
    chosen = known_metrics(metrics)
    return {
        "surface": "boundary voxels: foreground with a face neighbour (6 in 3D, 4 in 2D) outside the mask; "
        "distances between voxel centres, each boundary voxel weighs the same",
        "image_border": "beyond the image is outside: a mask at the border has a surface there",
        "surface_elements": "metrics named surfel: points between 2 x 2 x 2 voxels (2 x 2 in 2D) not all in or all out, "
        "each weighed by the area (length) of its marching-cubes surface; distances from point to point",
        "hd95": "maximum of the two directed 95th percentiles (not pooled), linear interpolation, unweighted",
        "assd": "pooled mean over the boundary voxels of both masks (not MASD, the mean of the two directed means)",
        "nsd": f"distance <= tolerance + {TOLERANCE_SLACK_MM:g} mm, pooled over the boundary voxels of both masks",
        "lesions": f"connected components over faces, edges and corners; matched at IoU > {IOU_THRESHOLD}, or by any voxel in "
        "common where the name says any",
        "probabilities": f"{BINS} bins of equal width; maps as medseg infer --probabilities writes them",
        "spacing": "mm, from the reference's affine, array axes x, y, z",
        "singleton_axes": "squeezed: a single slice is scored in 2D, in its plane's spacing",
        "volume": "voxel count times voxel volume; a picture without physical size has voxels of 1 x 1 x 1 mm",
        "geometry": "shapes equal and corner voxels within 1e-3 mm, else the case is refused",
        "labels": "file values of a class are one region; unknown values are refused",
        "ignore": "voxels with the reference's ignore value are taken out of both masks",
        "aggregation": "per case and class, then over cases; then the mean of the classes' means",
        "statistics": "SD with n - 1; quartiles interpolated linearly; 95 % intervals over patients: of the mean by Hall's "
        "transformed t, combined with Jeffreys' interval of the failures where they count; of the median by order statistics",
        "subgroups": f"by column of the manifest; values of fewer than {LEAST_PATIENTS} patients are counted and not named",
        "empty_masks": {"policy": policy.name, "rule": policy.description, "per_metric": policy_table(policy, chosen)},
        "metrics": {
            metric.name: {"definition": metric.definition, "better": metric.better, "worst": metric.worst}
            for metric in chosen
        },
        "case_metrics": {metric.name: {"definition": metric.definition, "better": "higher"} for metric in CASE_METRICS},
    }
