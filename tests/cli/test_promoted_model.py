"""MLflow's registry: a worse model is refused, a better one taken, and the alias predicts what `infer` does."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medseg.evaluation.aggregate import summarise
from medseg.evaluation.case import ClassScores
from medseg.evaluation.protocol import make_protocol
from medseg.evaluation.registry import metric_names
from medseg.evaluation.report import Scores, write_scores
from medseg.imaging import read_label_map
from medseg.tracking.process import sender_environment
from tests.inference.stand_ins import write_model
from tests.synthetic import affine_of, scan_on, write_scan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PREDICT = """
import json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/organ@champion")
scans, output = json.loads(sys.argv[2]), sys.argv[3]
masks = model.predict(scans, params={"output": output})
assert model.predict(pandas.DataFrame({"scan": scans}), params={"output": output}) == masks
assert model.predict(pandas.Series(scans[:1]), params={"output": output}) == masks[:1]
assert len(model.predict(scans[:1])) == 1  # into a temporary folder
print(json.dumps(masks))
"""


def _scores(folder, dices):
    def row(dice):
        values = dict.fromkeys(metric_names()) | {"dice": dice}
        counts = {"true_positive": 1, "false_positive": 0, "false_negative": 0}
        return (ClassScores(class_name="organ", situation="present", diagonal_mm=9.0, values=values, **counts),)

    rows = {f"case_{k:02d}": row(dice) for k, dice in enumerate(dices)}
    protocol = make_protocol(labels={"background": (0,), "organ": (1,)})
    scores = Scores(
        name="testing", rows=rows, classes=summarise(rows, ["organ"], protocol.policy), missing=(), extra=(), failed={},
        inputs=dict.fromkeys(rows, ("p" * 64, "r" * 64)), protocol=protocol,
    )  # fmt: skip
    folder.mkdir(parents=True)
    write_scores(scores, folder)


def _environment():
    environment = sender_environment() | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment.pop("MEDSEG_TRACKING", None)
    environment.pop("MLFLOW_TRACKING_URI", None)
    return environment


def _medseg(*arguments):
    command = [sys.executable, "-m", "medseg.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("registry") / "work"
    for number, name in enumerate(("first", "worse", "better")):
        write_model(work / "runs" / name / "model", seed=number)
    rng = np.random.default_rng(3)
    base = rng.uniform(0.7, 0.8, 12)
    _scores(work / "first" / "testing", base)
    _scores(work / "worse" / "testing", base - 0.05 + rng.normal(0, 0.01, 12))
    _scores(work / "better" / "testing", base + 0.05 + rng.normal(0, 0.01, 12))
    return work


def _promote(work, name):
    flags = ("--model", work / "runs" / name / "model", "--scores", work / name / "testing", "--device", "cpu")
    return _medseg("promote", "organ", "--work", work, *flags)


@pytest.fixture(scope="module")
def promoted(work):
    return {name: _promote(work, name) for name in ("first", "worse", "better")}


def test_a_worse_model_is_refused_and_a_better_one_taken(promoted, work):
    assert (promoted["first"].returncode, promoted["worse"].returncode, promoted["better"].returncode) == (0, 3, 0), {
        name: done.stderr for name, done in promoted.items()
    }
    assert "models:/organ/2: is not promoted against version 1 on testing: dice -0.0" in promoted["worse"].stderr
    assert "models:/organ/3: is the champion now, against version 1 on testing: dice +0.0" in promoted["better"].stdout
    again = _medseg("promote", "organ", "--work", work)
    assert (again.returncode, again.stdout) == (0, "models:/organ/3: is the champion already\n")
    back = _medseg("promote", "models:/organ/1", "--work", work)
    assert back.returncode == 3
    assert "models:/organ/1: is not promoted against version 3" in back.stderr


def test_the_alias_predicts_what_infer_does_with_pickles_forbidden(promoted, work, tmp_path):
    assert promoted["better"].returncode == 0
    scans = []
    for number in range(10):
        made = scan_on((20, 18, 12), affine_of((1, 1, 1.5), None, (3.0 * number, -5, 7)), seed=number)
        scans.append(str(write_scan(made, tmp_path / "data", case_id=f"case_{number}", suffix=".nii.gz")[0]))
    folder, named, masks = tmp_path / "folder", tmp_path / "named", tmp_path / "masks"
    flags = ("--contract", "off", "--device", "cpu")
    by_folder = _medseg("infer", *scans, "--model", work / "runs" / "better" / "model", "--output", folder, *flags)
    assert by_folder.returncode == 0, by_folder.stderr
    by_name = _medseg("infer", *scans, "--model", "models:/organ@champion", "--work", work, "--output", named, *flags)
    assert by_name.returncode == 0, by_name.stderr
    uri = f"sqlite:///{work.resolve() / 'mlflow.db'}"
    command = [sys.executable, "-c", PREDICT, uri, json.dumps(scans), str(masks)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    paths = json.loads(done.stdout.splitlines()[-1])
    assert [Path(path).name for path in paths] == [Path(path).name for path in scans]
    for path in paths:
        name = Path(path).name
        expected = (folder / name).read_bytes()
        assert (named / name).read_bytes() == expected
        assert (masks / name).read_bytes() == expected
    assert len({read_label_map(masks / Path(path).name).array.tobytes() for path in paths}) > 1
    with (masks / "report.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 10


def test_a_name_that_is_not_there_and_a_tracker_that_is_away(promoted, work, tmp_path):
    made = scan_on((20, 18, 12), affine_of((1, 1, 1.5), None, (0, 0, 0)), seed=1)
    scan = write_scan(made, tmp_path, case_id="a", suffix=".nii.gz")[0]
    arguments = ("infer", scan, "--work", work, "--output", tmp_path / "masks", "--device", "cpu", "--model")
    unknown = _medseg(*arguments, "models:/organ@nobody")
    assert unknown.returncode == 3
    assert "models:/organ@nobody: is not in the registry" in unknown.stderr
    away = _medseg(*arguments, "models:/organ@champion", "--tracker", "http://127.0.0.1:9")
    assert away.returncode == 5
    assert "registry: can't be asked (the tracker refuses the connection)" in away.stderr
    assert not list((tmp_path).glob("masks/*.nii.gz"))
