import json
import logging
from pathlib import Path

import pytest

from medseg.tracking.privacy import (
    PARAM_CHARACTERS,
    PrivacyFilter,
    Scrubber,
    escape_control,
    safe_name,
    safe_params,
    safe_value,
)


@pytest.fixture
def scrubber():
    return Scrubber(
        home=Path("/home/jdoe"),
        names=("jdoe", "ct-scanner-7", "ct-scanner-7.ward.example"),
        shown={Path("/data/work"): "<work>", Path("/opt/lib/site-packages"): ""},
    )


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("read /home/jdoe/SMITH^JANE/scan.nii.gz", "read <path>"),
        ("read /scans/Jane van Doe/scan.nii.gz: damaged", "read <path>: damaged"),
        ("read '/scans/Jane Doe' now", "read '<path>' now"),
        ('read "/scans/O\'Brien Pat/x.nii" now', 'read "<path>" now'),
        ("PosixPath('/scans/1')", "PosixPath('<path>')"),
        ("two: /a/one and /b/two.", "two: <path> and <path>."),
        ("(/a/one, /b/two)", "(<path>, <path>)"),
        ("file:///scans/Doe/x.nii", "<path>"),
        ("~/scans/Doe", "<path>"),
        (r"C:\scans\Doe\x.nii", "<path>"),
        (r"\\server\scans\Doe", "<path>"),
        ("path=/scans/Doe", "path=<path>"),
        ("/data/work/runs/fold_0/model.json is new", "<work>/runs/fold_0/model.json is new"),
        ("/data/workspace/Doe", "<path>"),
        ('File "/opt/lib/site-packages/torch/nn.py", line 3', 'File "torch/nn.py", line 3'),
        ("by jdoe on CT-SCANNER-7.ward.example", "by <name> on <name>"),
        ("jdoe_run on ct-scanner-7", "<name>_run on <name>"),
        ("http://jdoe:secret@tracker:5000/api", "http://tracker:5000/api"),
        # and what must stay as it is
        ("train/loss 0.5 of 1 / 2, 10 /5", "train/loss 0.5 of 1 / 2, 10 /5"),
        ("see https://docs.example/a/b", "see https://docs.example/a/b"),
        ("scan.nii.gz: spacing is 0, expected more", "scan.nii.gz: spacing is 0, expected more"),
        ("HD95/mm and Dice/1", "HD95/mm and Dice/1"),
        ("", ""),
    ],
)
def test_paths_and_names_go(scrubber, text, clean):
    assert scrubber.line(text) == clean
    assert scrubber.line(clean) == clean


def test_everyday_words_are_no_names():
    scrubber = Scrubber(home=None, names=("root", "ab", "train"), shown={})
    assert scrubber.line("square root ab train") == "square root ab train"


def test_control_characters_are_escaped():
    assert escape_control("a\nb\r\x1b[31m\t\x00\u202e\u2028\udc80é") == r"a\nb\r\x1b[31m\t\x00\u202e\u2028\udc80é"


def _logged(scrubber, log):
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler = Handler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.addFilter(PrivacyFilter(scrubber))
    logger = logging.Logger("medseg.test")  # noqa: LOG001 - one of its own
    logger.addHandler(handler)
    log(logger)
    (line,) = lines
    return line


def test_filter_cleans_arguments_and_keeps_one_line(scrubber):
    line = _logged(scrubber, lambda log: log.warning("case %s: bad", "a\nERROR forged /scans/Doe/x"))
    assert line == r"WARNING case a\nERROR forged <path>: bad"


def test_filter_cleans_exception_text(scrubber):
    def fail(log):
        try:
            int("/home/jdoe/Doe/scan.nii")
        except ValueError:
            log.exception("failed")

    text = _logged(scrubber, fail)
    assert "ValueError: invalid literal for int() with base 10: '<path>'" in text
    assert "Traceback" in text
    for private in ("jdoe", "Doe", str(Path(__file__).parent)):
        assert private not in text


def test_filter_cleans_stack_and_chained_causes(scrubber):
    def fail(log):
        try:
            try:
                Path("/scans/Doe").read_bytes()
            except OSError as error:
                raise RuntimeError("above") from error
        except RuntimeError:
            log.exception("failed", stack_info=True)

    text = _logged(scrubber, fail)
    assert "Doe" not in text
    assert "RuntimeError: above" in text


def test_filter_survives_wrong_arguments(scrubber):
    line = _logged(scrubber, lambda log: log.warning("%d of %d", "/scans/Doe"))  # noqa: PLE1206
    assert line == "WARNING '%d of %d' (its arguments do not fit)"


def test_params_are_flat_text():
    config = {"a": {"b": [1, 2], "c": None, "d": {}}, "e": True, "f": "x", "g": 1e-3}
    assert safe_params(config) == {"a.b": "[1, 2]", "a.c": "null", "a.d": "{}", "e": "true", "f": "x", "g": "0.001"}
    assert safe_params({}) == {}


def test_params_are_cut_and_clean():
    result = safe_params({"long": "x" * 7000, "place": "/scans/Doe/x", "list": ["/scans/Doe"]})
    assert len(result["long"]) == PARAM_CHARACTERS
    assert result["place"] == "<path>"
    assert json.loads(result["list"]) == ["<path>"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("validation/dice tumour", "validation/dice tumour"),
        ("dice[1]%", "dice_1__"),
        ("a//b/../c", "a/b/c"),
        ("../../x", "x"),
        ("", "_"),
        ("é", "_"),
    ],
)
def test_names_are_those_mlflow_takes(name, safe):
    assert safe_name(name) == safe


def test_values_are_cleaned_at_any_depth():
    assert safe_value({"/scans/Doe": [("/scans/Doe", 1)], "n": None}) == {"<path>": [["<path>", 1]], "n": None}
