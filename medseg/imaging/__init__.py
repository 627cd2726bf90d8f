"""Scans in and masks out: strict readers, the one atomic writer, geometry and resampling.

Arrays are (C, X, Y, Z), affines RAS+ in mm. Images and label maps go through different functions and can't be confused.
"""

from medseg.imaging.formats import FORMATS, Format, is_scan, suffix_of
from medseg.imaging.geometry import (
    AxisChange,
    apply_axes,
    changed_affine,
    changed_shape,
    contiguous,
    cropped_affine,
    grid_difference,
    orientation_code,
    ras_change,
    resized_affine,
    spacing_xyz_mm,
    undo_axes,
)
from medseg.imaging.labels import IGNORE, from_classes, to_classes
from medseg.imaging.limits import Limits
from medseg.imaging.reading import read_header, read_label_map, read_volume
from medseg.imaging.regions import Regions, index_labels, regions_of
from medseg.imaging.regridding import resample_labels_to_grid, resample_to_grid
from medseg.imaging.resampling import (
    resample_image,
    resample_labels,
    resampled_shape,
    scores_to_classes,
    scores_to_sets,
    separate_axis,
)
from medseg.imaging.volume import Header, LabelMap, Volume
from medseg.imaging.writing import write_label_map, write_volume

__all__ = [
    "FORMATS",
    "IGNORE",
    "AxisChange",
    "Format",
    "Header",
    "LabelMap",
    "Limits",
    "Regions",
    "Volume",
    "apply_axes",
    "changed_affine",
    "changed_shape",
    "contiguous",
    "cropped_affine",
    "from_classes",
    "grid_difference",
    "index_labels",
    "is_scan",
    "orientation_code",
    "ras_change",
    "read_header",
    "read_label_map",
    "read_volume",
    "regions_of",
    "resample_image",
    "resample_labels",
    "resample_labels_to_grid",
    "resample_to_grid",
    "resampled_shape",
    "resized_affine",
    "scores_to_classes",
    "scores_to_sets",
    "separate_axis",
    "spacing_xyz_mm",
    "suffix_of",
    "to_classes",
    "undo_axes",
    "write_label_map",
    "write_volume",
]
