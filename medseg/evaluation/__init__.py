"""Scores of masks against references: overlap, volumes, surface distances, and what empty masks count for."""

from medseg.evaluation.case import ClassScores, score_classes, score_label_maps, score_masks
from medseg.evaluation.experiment import CaseSet, folder_set, manifest_set
from medseg.evaluation.matching import CasePaths, match_folders, match_references
from medseg.evaluation.pair import MaskPair
from medseg.evaluation.protocol import Protocol, make_protocol
from medseg.evaluation.report import Scores, case_table, flat_metrics, score_lines, terminal_table
from medseg.evaluation.stage import EvaluateReport, run_evaluate
from medseg.evaluation.surface import SurfaceDistances, surface_distances

__all__ = [
    "CasePaths",
    "CaseSet",
    "ClassScores",
    "EvaluateReport",
    "MaskPair",
    "Protocol",
    "Scores",
    "SurfaceDistances",
    "case_table",
    "flat_metrics",
    "folder_set",
    "make_protocol",
    "manifest_set",
    "match_folders",
    "match_references",
    "run_evaluate",
    "score_classes",
    "score_label_maps",
    "score_lines",
    "score_masks",
    "surface_distances",
    "terminal_table",
]
