import pytest

from medseg.errors import UsageError
from medseg.evaluation.flags import parse_labels, parse_tolerance


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("liver=1,tumour=2", {"background": (0,), "liver": (1,), "tumour": (2,)}),
        (" nuclei = 255 ", {"background": (0,), "nuclei": (255,)}),
        ("whole=1+2+4,air=0", {"air": (0,), "whole": (1, 2, 4)}),
        ("whole=1+2,core=2", {"background": (0,), "whole": (1, 2), "core": (2,)}),
    ],
)
def test_labels(text, labels):
    found = parse_labels(text)
    assert list(found.items()) == list(labels.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liver", "--labels: has 'liver', expected name=value"),
        ("liver=1,", "--labels: has '', expected name=value"),
        ("liver=one", "liver is 'one', expected a whole number"),
        ("liver=1,liver=2", "names liver twice"),
        ("liver=1,tumour=1", "tumour has the value 1 of liver"),
        ("liver=1+1", "liver has the value 1 of liver"),
        ("air=0,liver=1+0", "liver has the value 0 of air"),
        ("liver=9", "liver has the value 9 of --ignore"),
        ("background=1", "background is 1, expected it to have the value 0"),
    ],
)
def test_wrong_labels(text, message):
    with pytest.raises(UsageError, match=message.replace("+", r"\+")):
        parse_labels(text, ignore=9)


def test_tolerance():
    assert parse_tolerance("2.5") == 2.5
    assert parse_tolerance("liver=2, tumour=1") == {"liver": 2.0, "tumour": 1.0}


@pytest.mark.parametrize("text", ["", "far", "0", "-1", "nan", "inf", "liver=0"])
def test_wrong_tolerance(text):
    with pytest.raises(UsageError, match=r"--tolerance: is '.*', expected a number of mm above 0"):
        parse_tolerance(text)
