import math

import pytest

from medseg.errors import UsageError
from medseg.evaluation.policy import POLICIES, counted_value, policy_table
from medseg.evaluation.protocol import make_protocol

LABELS = {"background": (0,), "liver": (1,), "tumour": (2, 3)}


@pytest.mark.parametrize(
    ("policy", "situation", "value", "counted"),
    [
        ("standard", "missed", math.nan, 70.0),
        ("standard", "spurious", math.nan, 70.0),
        ("standard", "both_empty", math.nan, math.nan),
        ("standard", "missed", 0.0, 0.0),
        ("standard", "present", 3.0, 3.0),
        ("exclude", "missed", math.nan, math.nan),
        ("exclude", "spurious", 0.0, 0.0),
    ],
)
def test_what_enters_the_mean(policy, situation, value, counted):
    assert counted_value(value, 70.0, situation, POLICIES[policy]) == pytest.approx(counted, nan_ok=True)


def test_table_says_it_for_every_metric():
    table = policy_table(POLICIES["standard"])
    assert table["dice"] == {"both_empty": "left out", "missed": "0", "spurious": "0"}
    assert table["nsd"] == {"both_empty": "left out", "missed": "0", "spurious": "0"}
    assert table["precision"] == {"both_empty": "left out", "missed": "0, imputed", "spurious": "0"}
    assert table["recall"] == {"both_empty": "left out", "missed": "0", "spurious": "0, imputed"}
    for name in ("hd_mm", "hd95_mm", "assd_mm"):
        assert table[name] == {
            "both_empty": "left out",
            "missed": "image diagonal, imputed",
            "spurious": "image diagonal, imputed",
        }
    assert table["volume_difference_ml"] == {"both_empty": "0", "missed": "its value", "spurious": "its value"}
    assert policy_table(POLICIES["exclude"])["hd_mm"] == dict.fromkeys(("both_empty", "missed", "spurious"), "left out")


def test_tolerances_for_all_or_each():
    assert make_protocol(labels=LABELS, tolerance_mm=2).tolerance_mm == {"liver": 2.0, "tumour": 2.0}
    each = make_protocol(labels=LABELS, tolerance_mm={"tumour": 1.0, "liver": 3.0})
    assert list(each.tolerance_mm.items()) == [("liver", 3.0), ("tumour", 1.0)]
    with pytest.raises(UsageError, match="tolerance_mm: is given for liver, lung, expected exactly liver, tumour"):
        make_protocol(labels=LABELS, tolerance_mm={"liver": 1.0, "lung": 1.0})


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="policy for empty masks: is 'best', expected one of standard, exclude"):
        make_protocol(labels=LABELS, empty="best")
    with pytest.raises(UsageError, match="no class besides the background"):
        make_protocol(labels={"background": (0,)})
