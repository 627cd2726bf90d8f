import pytest

from medseg.errors import ManifestError
from medseg.manifest.faults import Faults
from medseg.manifest.label_tables import parse_label_table

LABELS = {"background": (0,), "liver": (1,), "tumour": (2,)}


def parsed(raw):
    faults = Faults("dataset.json")
    table = parse_label_table(raw, LABELS, faults)
    faults.raise_any()
    return table


def test_what_is_given_is_kept():
    entry = {
        "colour": [0, 128, 255],
        "code": "10200004",
        "scheme": "SCT",
        "meaning": "Liver",
        "category": ["123037004", "SCT", "Anatomical structure"],
        "aliases": ["Leber"],
    }
    assert parsed({"liver": entry}) == {"liver": entry}
    assert parsed(None) == {}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], r"label_table is \[\], expected an object"),
        ({"lever": {}}, r"label_table.lever: is no label, expected one of liver, tumour.*liver"),
        ({"background": {}}, "is no label"),
        ({"liver": 3}, "is 3, expected an object with any of colour, code"),
        ({"liver": {"color": [1, 2, 3]}}, r"key 'color' is unknown.*colour"),
        ({"liver": {"colour": [1, 2]}}, r"colour is \[1, 2\], expected \[red, green, blue\]"),
        ({"liver": {"colour": [0, 0, 256]}}, "each 0 to 255"),
        ({"liver": {"code": "1" * 17}}, "expected text of 1 to 16 characters"),
        ({"liver": {"meaning": "Liver"}}, "has a scheme or meaning without a code"),
        ({"liver": {"category": ["a", "b"]}}, r"expected \[code, scheme, meaning\]"),
        ({"liver": {"aliases": "Leber"}}, "aliases is 'Leber', expected a list of names"),
    ],
)
def test_faults_name_the_label(raw, message):
    with pytest.raises(ManifestError, match=message):
        parsed(raw)
