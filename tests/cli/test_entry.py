import os
import signal
import subprocess
import sys

import pytest

from medseg.cli.entry import run_verb
from medseg.cli.main import main
from medseg.errors import EnvironmentFault, InputError, LockedError, PartialError, UsageError

CONFIG = "name: x\ndata:\n  manifest: m.json\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(CONFIG)
    return path


def run(config, tmp_path, body, *flags):
    return run_verb("train", ["--config", str(config), "--work", str(tmp_path / "w"), *flags], body=body)


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError, 2), (InputError, 3), (PartialError, 4), (EnvironmentFault, 5), (LockedError, 6)],
)
def test_each_error_has_its_exit_code_and_one_line(config, tmp_path, capsys, error, code):
    def body(_):
        raise error("a.nii.gz: is broken; copy it again")

    assert run(config, tmp_path, body) == code
    assert capsys.readouterr().err.splitlines()[-1] == "a.nii.gz: is broken; copy it again"


def test_our_own_fault_is_1_and_a_good_end_0(config, tmp_path):
    assert run(config, tmp_path, lambda _: 0) == 0
    assert run(config, tmp_path, lambda _: 1 // 0) == 1


def test_a_bad_config_is_2_before_anything_is_made(config, tmp_path, capsys):
    config.write_text(CONFIG + "trainn: 1\n")
    assert run(config, tmp_path, lambda _: 0) == 2
    assert "x.yaml:4: trainn: unknown key, did you mean 'train'?" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_paths_come_from_the_config(config, tmp_path):
    seen = []
    run(config, tmp_path, lambda context: seen.append(context) or 0)
    assert seen[0].manifest_path == tmp_path / "m.json"
    assert seen[0].data_root == tmp_path
    assert seen[0].experiment.name == "x"


def test_unknown_verbs_get_a_suggestion(capsys):
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert main(["--help"]) == 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("graceful", [True, False])
def test_signals_end_a_verb_with_their_code(config, tmp_path, signum, code, graceful):
    script = (
        "import sys, time\nfrom medseg.cli.entry import run_verb\n"
        "def body(context):\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(1000):\n"
        "        time.sleep(0.01)\n"
        "        if context.stop: print('saved', flush=True); return 0\n"
        f"sys.exit(run_verb('train', sys.argv[1:], body=body, graceful={graceful}))\n"
    )
    command = [sys.executable, "-c", script, "--config", str(config), "--work", str(tmp_path / "w")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signum)
        assert process.stdout.read() == ("saved\n" if graceful else "")
        assert process.wait(20) == code
