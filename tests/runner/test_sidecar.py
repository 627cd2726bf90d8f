import hashlib
import json

import pytest

from medseg.errors import InputError
from medseg.runner.sidecar import Origin, is_done, read_sidecar, sidecar_path, write_sidecar

ORIGIN = Origin(inputs={"image": "aa"}, settings={"model": "bb"})


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "case_1.nii.gz"
    path.write_bytes(b"mask")
    write_sidecar(path, ORIGIN, versions={"medseg": "1"}, extra={"seconds": 1.5})
    return path


def test_name_and_round_trip(output):
    assert sidecar_path(output).name == "case_1.nii.gz.sidecar.json"
    sidecar = read_sidecar(output)
    assert sidecar.origin == ORIGIN
    assert sidecar.output_sha256 == hashlib.sha256(b"mask").hexdigest()
    assert (sidecar.versions, sidecar.extra) == ({"medseg": "1"}, {"seconds": 1.5})


def test_done_only_if_all_agrees(output):
    assert is_done(output, ORIGIN)
    assert not is_done(output, Origin(inputs={"image": "ab"}, settings={"model": "bb"}))
    assert not is_done(output, Origin(inputs={"image": "aa"}, settings={}))


def test_flipped_bit_is_not_done(output):
    output.write_bytes(b"nask")
    assert not is_done(output, ORIGIN)


def test_missing_output_or_sidecar_is_not_done(output):
    sidecar_path(output).unlink()
    assert not is_done(output, ORIGIN)
    assert read_sidecar(output) is None
    output.unlink()
    assert not is_done(output, ORIGIN)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 1}', '{"format": 1, "origin": 3}', "\x00\x01"],
    ids=["empty", "cut", "list", "no origin", "odd origin", "binary"],
)
def test_broken_sidecar_is_not_done(output, text):
    sidecar_path(output).write_text(text)
    assert not is_done(output, ORIGIN)


def test_newer_format_is_refused(output):
    content = json.loads(sidecar_path(output).read_text())
    sidecar_path(output).write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(InputError, match=r"case_1.nii.gz.sidecar.json: has format 2, expected at most 1"):
        is_done(output, ORIGIN)
