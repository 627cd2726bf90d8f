"""Our plans beside those of nnU-Net 2.8.1, which benchmarks/nnunet_plans.py wrote down: four real sets and random ones."""

import json
from pathlib import Path

import pytest

from benchmarks.compare_plans import compared, differences, fingerprint_of, in_nnunets_terms, our_plan, table

SETS = json.loads(Path(__file__).with_name("nnunet_plans.json").read_text())


@pytest.mark.parametrize("facts", SETS, ids=[facts["name"] for facts in SETS])
def test_every_preset_and_configuration_is_nnunets(facts):
    results = list(compared(facts, fingerprint_of(facts)))
    assert len(results) == sum(
        name in plan for plan in facts["plans"].values() for name in ("2d", "3d_fullres", "3d_lowres")
    )
    assert {(preset, name): different for preset, name, _, _, different in results if different} == {}


def test_the_low_resolution_has_a_cascade_where_nnunet_has_one():
    lowres = [facts for facts in SETS if "3d_lowres" in facts["plans"]["plain"]]
    assert lowres
    for facts in lowres:
        made = our_plan(facts, fingerprint_of(facts), "plain", "3d_lowres")
        assert made.cascade is ("3d_cascade_fullres" in facts["plans"]["plain"])


def test_the_comparison_notices_a_difference():
    facts = SETS[0]
    ours = in_nnunets_terms(our_plan(facts, fingerprint_of(facts), "plain", "3d_fullres"))
    theirs = facts["plans"]["plain"]["3d_fullres"]
    assert differences(ours, theirs) == {}
    assert differences(ours | {"batch_size": 9}, theirs) == {"batch_size": (9, 7)}
    assert differences(ours | {"spacing": [1.0, 1.0, 1.1]}, theirs) == {"spacing": ([1.0, 1.0, 1.1], [1.0, 1.0, 1.0])}
    changed = {
        **facts,
        "plans": {"plain": {**facts["plans"]["plain"], "2d": {**facts["plans"]["plain"]["2d"], "batch_size": 1}}},
    }
    text, wrong = table([(changed, fingerprint_of(facts))])
    assert wrong == 1
    assert "batch_size: 292, 1" in text
