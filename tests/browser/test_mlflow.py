"""A browser opens MLflow's pages of a small experiment; `mlflow.mjs` looks at them and keeps screenshots.

They go to the folder named in MEDSEG_SCREENSHOTS, else to `artifacts/mlflow` beside this file.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.durable import read_json
from medseg.tracking.address import read_sent, store_address
from medseg.tracking.tracker import SWITCH
from tests.experiment import write_experiment
from tests.reliability.tracking_server import Server, one_thread_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VERBS = ("prepare", "train", "infer", "evaluate")
SETTINGS = ("tracking.images=true", "tracking.registered_model=small", "evaluate.report=true")
# All in one process, and MLflow is loaded once, at the end: four of each would cost more than the browser.
STAGES = """
import json, sys
from medseg.cli.main import main
for command in json.loads(sys.argv[1]):
    code = main(command)
    if code:
        sys.exit(f"medseg {command[0]}: {code}")
"""


def _missing():
    if CHROMIUM is None:
        return "chromium is not installed: apt-get install chromium"
    if shutil.which("node") is None:
        return "node is not installed: apt-get install nodejs"
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        return "playwright-core is not installed: npm ci --prefix tests/browser"
    return None


def _run_id(work, stage):
    return read_sent(work / "tracking" / read_json(stage / "tracking.json")["key"], store_address(work, {})).run_id


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    if reason := _missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("review")
    made = write_experiment(folder)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    commands = [[verb, *made.flags(), *settings] for verb in VERBS]
    for some, switch in ((commands, {SWITCH: "off"}), ([["sync", "--work", str(made.work)]], {})):
        command = [sys.executable, "-c", STAGES, json.dumps(some)]
        done = subprocess.run(
            command, env=one_thread_environment() | switch, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    server = Server(store_address(made.work, {}).uri, folder, None)
    server.start()
    try:
        asked = {
            "base": server.uri,
            "experiment": "1",
            "name": "small",
            "set": "testing",
            "model": "small",
            "run": _run_id(made.work, made.work / "scores" / "testing"),
            "training": _run_id(made.work, made.work / "runs" / "fold_0"),
            "chromium": CHROMIUM,
            "output": os.environ.get("MEDSEG_SCREENSHOTS") or str(HERE / "artifacts" / "mlflow"),
        }
        command = ["node", str(HERE / "mlflow.mjs"), json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
        assert done.returncode == 0, done.stderr
    finally:
        server.kill()
    return json.loads(done.stdout.splitlines()[-1])


def test_no_page_fails_and_nothing_leaves_the_machine(seen):
    assert seen["errors"] == []
    assert seen["left_loopback"] == []


def test_the_list_shows_the_scores_and_the_experiment_its_description(seen):
    assert "testing/dice" in seen["list"]
    assert "small" in seen["list"]
    assert "Mean Dice" in seen["experiment"]
    assert "95 % interval" in seen["experiment"]


def test_a_training_has_charts_and_a_scored_set_says_where_it_fails(seen):
    assert seen["charts"] >= 3
    assert "Where it fails" in seen["scores"]
    assert "test_00" in seen["scores"]
    assert "medseg evaluate --config" in seen["scores"]


def test_the_pictures_go_from_the_worst_case_to_the_best(seen):
    assert min(seen["picture"]) >= 200
    assert seen["steps"] == 2  # one per case of the testing list
    assert seen["changed"]


def test_the_table_of_cases_and_the_report_are_shown(seen):
    assert seen["cases"].split()[:4] == ["case", "class", "dice", "nsd"]
    assert "test_00" in seen["cases"]
    assert "Scores of testing" in seen["report"]


def test_the_version_has_its_alias_and_its_scores(seen):
    assert "candidate" in seen["version"]
    assert "testing.dice" in seen["version"]
    assert "medseg infer SCANS --model models:/small@champion --work WORK" in seen["version"]
