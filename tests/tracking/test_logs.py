import logging
import re
import warnings
from pathlib import Path

import pytest

from medseg.errors import EnvironmentFault
from medseg.tracking.logs import set_up_logging, tear_down_logging


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    names = (None, "medseg", "pipelines", "__main__")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    tear_down_logging()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    assert not [h for h in root.handlers if hasattr(h, "_medseg_handler")]


def test_file_has_everything_of_ours_and_warnings_of_others(tmp_path, capsys):
    path = tmp_path / "logs" / "train.log"
    set_up_logging(path)
    logging.getLogger("medseg.training").debug("step %d", 1)
    logging.getLogger("medseg.training").info("epoch")
    logging.getLogger("matplotlib.font_manager").info("chatter")
    logging.getLogger("nibabel").warning("slow")
    tear_down_logging()
    lines = path.read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "DEBUG medseg.training: step 1",
        "INFO medseg.training: epoch",
        "WARNING nibabel: slow",
    ]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", lines[0])
    assert capsys.readouterr().err.splitlines() == ["INFO epoch", "WARNING slow"]


def test_verbose_shows_debug_on_the_console(capsys):
    set_up_logging(None, verbose=True)
    logging.getLogger("medseg").debug("detail")
    assert "DEBUG detail" in capsys.readouterr().err


def test_warnings_go_to_the_log_without_paths(tmp_path):
    path = tmp_path / "train.log"
    set_up_logging(path)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("from /scans/Doe/x.nii", stacklevel=1)
        tear_down_logging()
    text = path.read_text()
    assert "UserWarning: from <path>" in text
    assert "Doe" not in text


def test_a_second_call_replaces_the_first(tmp_path, capsys):
    set_up_logging(tmp_path / "a.log")
    set_up_logging(tmp_path / "b.log")
    logging.getLogger("medseg").info("once")
    assert (tmp_path / "a.log").read_text() == ""
    assert capsys.readouterr().err == "INFO once\n"


def test_control_characters_and_paths_stay_out(tmp_path, capsys):
    path = tmp_path / "x.log"
    set_up_logging(path)
    logging.getLogger("medseg").info("case %s in %s", "a\n\x1b[31mforged\udc80", "/scans/Doe")
    for text in (path.read_text(), capsys.readouterr().err):
        assert text.endswith("case a\\n\\x1b[31mforged\\udc80 in <path>\n")


def test_a_log_file_that_cant_be_opened_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"x\.log: can't be written"):
        set_up_logging(tmp_path / "file" / "x.log")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said_once(capsys):
    set_up_logging(Path("/dev/full"))
    for _ in range(3):
        logging.getLogger("medseg").info("line")
    assert capsys.readouterr().err.count("can't be written any more") == 1
