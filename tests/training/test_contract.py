"""The contract of a few cases, worked out on paper."""

from medseg.preparation.facts import CaseFacts, FactsJournal
from medseg.preparation.fingerprint import CaseGeometry
from medseg.preparation.scan_facts import ScanFacts
from medseg.training.contract import contract_of, training_contract
from tests.inference.stand_ins import plan_for
from tests.training.small_run import write_prepared


def facts(spacing, shape, voxels, *, axes="RAS", modality="MR", low=1.0):
    return CaseFacts(
        key="k",
        geometry=CaseGeometry((4, 4, 4), spacing, 0.5),
        shape_xyz=shape,
        class_voxels=voxels,
        scan=ScanFacts(
            axes=axes, oblique_degrees=2.0, oriented=True, modality=modality, percentiles=((low, 50.0, 99.0),)
        ),
    )


def test_ranges_of_two_cases():
    cases = [
        (facts((1.0, 1.0, 2.0), (10, 20, 30), {0: 90, 1: 500}), None),
        (facts((0.5, 1.0, 4.0), (20, 20, 10), {0: 90, 1: 1000, 2: 10}, axes="LPS", low=-3.0), None),
    ]
    contract = contract_of(cases, plan_for(scheme="zscore"))
    assert contract.spacing_xyz_mm == ((0.5, 1.0), (1.0, 1.0), (2.0, 4.0))
    assert contract.extent_xyz_mm == ((10.0, 10.0), (20.0, 20.0), (40.0, 60.0))
    assert contract.volume_ml == {"organ": (1.0, 2.0), "lesion": (0.02, 0.02)}
    assert contract.present == {"organ": 1.0, "lesion": 0.5}
    assert (contract.axes, contract.modalities, contract.oblique_degrees) == (("LPS", "RAS"), ("MR",), 2.0)
    (channel,) = contract.channels
    assert (channel.absolute, channel.percentiles[0]) == (False, (-3.0, 1.0))


def test_a_case_that_was_not_looked_through_for_a_class_says_nothing_of_it():
    contract = contract_of([(facts((1.0,) * 3, (9, 9, 9), {0: 9, 1: 5}), ("organ",))], plan_for(scheme="ct"))
    assert contract.present == {"organ": 1.0}
    assert contract.channels[0].absolute


def test_prepared_data_without_facts_gives_none_and_with_them_a_contract(tmp_path):
    prepared = write_prepared(tmp_path)
    assert training_contract(prepared) is None
    FactsJournal(tmp_path / "facts.jsonl").add("a", facts((1.0,) * 3, (9, 9, 9), {0: 9, 1: 5}))
    assert training_contract(prepared).cases == 1
