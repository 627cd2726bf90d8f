"""Scans that are, and are not, like those of training: one kind of difference at a time."""

from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import ModelError
from medseg.imaging import Header, Volume
from medseg.inference.contract import ChannelContract, InputContract, check_scan, check_volumes, least_contract
from tests.inference.stand_ins import plan_for

CONTRACT = InputContract(
    cases=20,
    planar=False,
    orientation="RAS",
    channels=(ChannelContract(name="CT", absolute=True, percentiles=((-1000.0, -990.0), (0.0, 40.0), (200.0, 400.0))),),
    spacing_xyz_mm=((0.8, 1.0), (0.8, 1.0), (2.0, 4.0)),
    extent_xyz_mm=((40.0, 60.0), (40.0, 60.0), (40.0, 80.0)),
    axes=("RAS",),
    oblique_degrees=5.0,
    oriented=True,
    modalities=("CT",),
    volume_ml={"organ": (1.0, 2.0), "cyst": (0.1, 1.0)},
    present={"organ": 1.0, "cyst": 0.25},
)
# Values in [-995, 300] whose median is 20: the 0.5, 50 and 99.5 percentiles lie within the contract.
VALUES = np.concatenate([np.full(100, -995.0), np.full(3900, 20.0), np.full(96, 300.0)])


def scan(spacing=(1.0, 1.0, 3.0), shape=(50, 50, 20), *, values=VALUES, signs=(1, 1, 1), **header):
    array = np.resize(values, shape).astype(np.float32)[None]
    affine = np.diag([*np.multiply(spacing, signs), 1.0])
    codes = {"qform_code": 1, "sform_code": 1, "modality": "CT"}
    return Volume(array, affine, Header(shape=shape, affine=affine, **(codes | header)))


def rotated(degrees):
    volume = scan()
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    affine = turn @ volume.affine
    return Volume(volume.array, affine, replace(volume.header, affine=affine))


def test_a_scan_like_those_of_training_is_ok():
    assert check_scan(scan(), CONTRACT).status == "ok"
    # Turned axes are turned back before the network sees them.
    assert check_scan(scan(signs=(-1, -1, 1)), CONTRACT).status == "ok"
    assert check_scan(scan(modality=""), CONTRACT).status == "ok"
    assert check_scan(scan(spacing=(9, 9, 9)), None).status == "ok"


def test_a_model_without_a_contract_still_refuses_another_kind_of_scan():
    least = least_contract(plan_for())
    assert check_scan(scan(spacing=(9, 9, 9), modality="MR"), least).status == "ok"
    for volume, reason in ((scan(planar=True), "is a picture"), (scan(values=[5.0]), "every voxel is 5")):
        verdict = check_scan(volume, least)
        assert (verdict.status, reason in verdict.reasons[0]) == ("refuse", True)


@pytest.mark.parametrize(
    ("volume", "status", "reason"),
    [
        (scan(modality="MR"), "refuse", "modality MR, expected CT"),
        (scan(planar=True), "refuse", "is a picture"),
        (scan(values=[5.0]), "refuse", "every voxel is 5"),
        (scan(values=[1.0, np.nan]), "refuse", "NaN"),
        (
            scan(spacing=(1.5, 1, 3), shape=(34, 50, 20)),
            "warn",
            "voxel size along x: is 1.5 mm, training scans have 0.8 to 1",
        ),
        (scan(spacing=(0.001, 0.001, 0.003)), "refuse", "voxel size along x: is 0.001 mm"),
        (scan(shape=(50, 50, 40)), "warn", "field of view along z: is 120 mm, training scans have 40 to 80"),
        (scan(shape=(50, 50, 3)), "refuse", "field of view along z: is 9 mm"),
        (scan(qform_code=0, sform_code=0), "warn", "does not say how its axes lie"),
        (rotated(20), "warn", "20° oblique"),
        (scan(values=VALUES + 1024), "warn", "the median is 1044"),
        (scan(values=VALUES / 100 + 5000), "refuse", "runs from 4990 to 5003"),
    ],
)
def test_each_kind_of_difference_is_named(volume, status, reason):
    verdict = check_scan(volume, CONTRACT)
    assert verdict.status == status
    assert any(reason in text for text in verdict.reasons), verdict.reasons
    assert verdict.softened().status == "warn"


def test_channels_and_axes_that_are_never_turned():
    two = Volume(np.repeat(scan().array, 2, axis=0), scan().affine, scan().header)
    assert check_scan(two, CONTRACT).reasons == ("scan: has 2 channels, expected 1 (CT)",)
    native = replace(CONTRACT, orientation="native")
    verdict = check_scan(scan(signs=(-1, 1, 1)), native)
    assert (verdict.status, "axes are LAS, expected RAS" in verdict.reasons[0]) == ("refuse", True)


def test_a_scan_normalised_by_its_own_values_is_only_warned_about():
    relative = replace(CONTRACT, channels=(replace(CONTRACT.channels[0], absolute=False),))
    assert check_scan(scan(values=VALUES / 100 + 5000), relative).status == "warn"


def test_sizes_of_structures():
    assert check_volumes({"organ": 1.5, "cyst": 0.5}, CONTRACT) == ()
    assert check_volumes({"organ": 0.0, "cyst": 0.0}, CONTRACT) == (
        "organ: is empty, all training cases have it",
        "cyst: is empty, 25% of training cases have it",
    )
    tiny, large = check_volumes({"organ": 0.05, "cyst": 3.0}, CONTRACT)
    assert tiny == "organ: is tiny, 0.05 ml, training cases have 1 to 2"
    assert large == "cyst: is 3 ml, training cases have 0.1 to 1"
    assert check_volumes({"organ": 0.0}, None) == ("organ: is empty",)
    assert check_volumes({}, CONTRACT, pixels={"organ": 3000}) == (
        "organ: is 3 thousand pixels, training cases have 1 to 2",
    )


def test_a_contract_survives_its_file_and_a_newer_one_is_refused():
    assert InputContract.from_plain(CONTRACT.plain()) == CONTRACT
    with pytest.raises(ModelError, match="contract has format 2, expected 1"):
        InputContract.from_plain(CONTRACT.plain() | {"format": 2})
    with pytest.raises(ModelError, match="can't be read"):
        InputContract.from_plain({"format": 1, "channels": []})
