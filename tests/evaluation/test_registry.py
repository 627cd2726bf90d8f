import math

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.evaluation import score_masks
from medseg.evaluation.policy import POLICIES, policy_table
from medseg.evaluation.protocol import make_protocol
from medseg.evaluation.registry import CASE_METRICS, GROUPS, choose_metrics, known_metrics, metric_names

LABELS = {"background": (0,), "liver": (1,)}


def test_groups_single_metrics_and_families():
    assert choose_metrics(()) == metric_names() == choose_metrics(("default",))
    found = choose_metrics(("surface_elements", "hd99_mm", "dice", "lesion_pq", "nsd_2.5mm"))
    assert found[: len(metric_names())] == metric_names()
    assert found[len(metric_names()) :] == (
        "nsd_surfel", "hd95_surfel_mm", "hd_surfel_mm", "assd_surfel_mm", "masd_surfel_mm", "hd99_mm", "lesion_pq", "nsd_2.5mm"
    )  # fmt: skip
    everything = choose_metrics(("all",))
    assert set(everything) == {metric.name for group in GROUPS.values() for metric in group}
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize(
    "name",
    [
        "hd101_mm",
        "hd0_mm",
        "nsd_0mm",
        "hausdorff",
        "f",
        "nsd_-1mm",
        "hd95mm",
        "",
        "nsd_0.00000001mm",
        "hd99.9999999_mm",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(
        UsageError, match=r"metrics: has '.*', expected a group \(default, surface_elements, .*, all\), a metric"
    ):
        choose_metrics((name,))


def test_families_agree_with_the_metrics_they_are_named_after():
    rng = np.random.default_rng(0)
    prediction, reference = rng.random((2, 9, 8, 7)) < 0.4
    names = ("f1", "hd95_mm", "hd100_mm", "nsd_1.5mm", "nsd_surfel_1.5mm", "hd100_surfel_mm", "surface_elements")
    found = score_masks(prediction, reference, spacing_mm=(0.7, 1, 2), tolerance_mm=1.5, metrics=names)
    assert found["f1"] == pytest.approx(found["dice"])
    assert found["hd100_mm"] == found["hd_mm"]
    assert found["nsd_1.5mm"] == found["nsd"]
    assert found["nsd_surfel_1.5mm"] == found["nsd_surfel"]
    assert found["hd100_surfel_mm"] == found["hd_surfel_mm"]


def test_every_metric_says_what_it_is():
    for metric in (*known_metrics(choose_metrics(("all", "hd99_mm", "f3", "boundary_iou_2mm"))), *CASE_METRICS):
        assert metric.definition
    assert not {"nsd", "hd95_mm"} & {metric.name for metric in GROUPS["surface_elements"]}


def test_policy_of_every_metric_and_situation():
    table = policy_table(POLICIES["standard"], known_metrics(choose_metrics(("all",))))
    share = {"both_empty": "left out", "missed": "0", "spurious": "0"}
    for name in (
        "f2",
        "volume_similarity",
        "nsd_surfel",
        "cldice",
        "boundary_iou",
        "lesion_rq",
        "lesion_pq",
        "lesion_dice",
    ):
        assert table[name] == share
    assert table["specificity"] == dict.fromkeys(("both_empty", "missed", "spurious"), "its value")
    assert table["mcc"] == {"both_empty": "left out", "missed": "0, imputed", "spurious": "0, imputed"}
    assert table["lesion_recall"] == {"both_empty": "left out", "missed": "0", "spurious": "0, imputed"}
    assert table["lesion_sq"] == {"both_empty": "left out", "missed": "0, imputed", "spurious": "0, imputed"}
    for name in ("masd_mm", "hd95_surfel_mm", "assd_surfel_mm", "hd95_pooled_mm"):
        assert table[name]["missed"] == table[name]["spurious"] == "image diagonal, imputed"
    assert table["brier"] == dict.fromkeys(("both_empty", "missed", "spurious"), "its value")
    assert table["ece_masks"]["both_empty"] == "left out"


def test_best_values_of_a_perfect_prediction():
    mask = np.zeros((12, 12, 12), bool)
    mask[3:9, 3:9, 3:9] = True
    found = score_masks(mask, mask, spacing_mm=(1, 1, 1), metrics=("all",))
    for metric in known_metrics(found):
        if metric.better is not None and metric.name not in {m.name for m in GROUPS["calibration"]}:
            assert found[metric.name] == {"higher": 1.0, "lower": 0.0}[metric.better], metric.name
    assert all(math.isnan(found[metric.name]) for metric in GROUPS["calibration"])


def test_protocol_carries_the_choice():
    protocol = make_protocol(labels=LABELS, metrics=("cldice",))
    assert protocol.metrics == (*metric_names(), "cldice")
    assert protocol.plain()["metrics"][-1] == "cldice"
    with pytest.raises(UsageError, match="metrics: has 'volume'"):
        make_protocol(labels=LABELS, metrics=("volume",))
