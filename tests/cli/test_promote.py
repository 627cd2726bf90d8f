"""The verb with a registry in memory; `test_promoted_model.py` has MLflow's own."""

import types
from dataclasses import replace

import pytest

from medseg.cli import promote
from medseg.cli.promote import DECISION_TAG
from medseg.errors import EnvironmentFault
from medseg.evaluation import comparing
from medseg.tracking import address, process
from medseg.tracking.registry import RegisteredVersion


class FakeRegistry:
    """Versions 1 and 2 of ``liver``, of which 2 is the candidate."""

    def __init__(self, champion=None, sets=None):
        self.versions = {n: RegisteredVersion("liver", n, f"{n}" * 64, "somewhere") for n in (1, 2)}
        self.aliases = {"candidate": 2} | ({"champion": champion} if champion else {})
        self.sets = sets or {1: {"testing": "run 1"}, 2: {"testing": "run 2"}}
        self.tags = {1: {}, 2: {}}

    def find(self, model):
        number = self.aliases.get(model.alias) if model.alias else model.version
        return self.versions.get(number) if model.name == "liver" else None

    def get(self, model):
        found = self.find(model)
        if found is None:
            raise EnvironmentFault("not there")
        return found

    def find_model(self, name, sha256):
        return next((one for one in self.versions.values() if one.sha256 == sha256), None)

    def scores(self, version):
        return self.sets[version.version]

    def fetch_scores(self, version, run_id, folder):
        (folder / "from").write_text(f"{version.version} {run_id}")
        return folder

    def name_champion(self, version):
        self.aliases["champion"] = version.version

    def tag(self, version, tags):
        self.tags[version.version] |= tags


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(registry, *flags, better=True, work=tmp_path):
        judged = []

        def judge(champion_folder, challenger_folder, *, metric):
            judged.append([(folder / "from").read_text() for folder in (champion_folder, challenger_folder)] + [metric])
            return types.SimpleNamespace(better=better, reason="dice +0.0100: the challenger is better or not")

        monkeypatch.setattr(promote, "Registry", lambda *_, **__: registry)
        monkeypatch.setattr(comparing, "judge", judge)
        monkeypatch.setattr(process, "set_environment", lambda: None)
        code = promote.main(["liver", "--work", str(work), *flags])
        return code, judged

    return run


def test_the_first_one_becomes_the_champion(run, capsys):
    registry = FakeRegistry()
    assert run(registry) == (0, [])
    assert registry.aliases["champion"] == 2
    assert registry.tags[2][DECISION_TAG] == "promoted: there was no champion"
    assert "models:/liver/2: is the champion now; there was none before" in capsys.readouterr().out


def test_a_better_one_takes_its_place(run, capsys):
    registry = FakeRegistry(champion=1)
    assert run(registry) == (0, [["1 run 1", "2 run 2", "dice"]])
    assert registry.aliases["champion"] == 2
    assert registry.tags[2][DECISION_TAG].startswith("promoted against version 1 on testing: dice +0.0100")
    assert registry.tags[1][DECISION_TAG] == "succeeded by version 2"
    assert "is the champion now, against version 1" in capsys.readouterr().out


def test_another_is_refused_with_3_and_the_reason_is_kept(run, capsys):
    registry = FakeRegistry(champion=1)
    code, judged = run(registry, "--metric", "nsd", better=False)
    assert (code, judged) == (3, [["1 run 1", "2 run 2", "nsd"]])
    assert registry.aliases["champion"] == 1
    assert registry.tags[2][DECISION_TAG].startswith("refused against version 1 on testing: dice +0.0100")
    assert "models:/liver/2: is not promoted against version 1 on testing" in capsys.readouterr().err


def test_the_champion_itself_needs_no_test(run, capsys):
    registry = FakeRegistry(champion=2)
    assert run(registry) == (0, [])
    assert "is the champion already" in capsys.readouterr().out


def test_a_champion_that_changed_meanwhile_is_not_replaced(run, capsys):
    registry = FakeRegistry(champion=1)
    first = registry.find
    seen = []

    def find(model):
        seen.append(model)
        found = first(model)
        return replace(found, version=7) if model.alias == "champion" and len(seen) > 2 else found

    registry.find = find
    assert run(registry)[0] == 6
    assert registry.aliases["champion"] == 1
    assert "has another champion since a moment ago" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sets", "flags", "code", "message"),
    [
        ({1: {}, 2: {"testing": "b"}}, (), 3, "models:/liver/1: has no scores, expected some to compare by"),
        ({1: {"testing": "a"}, 2: {"fold_0": "b"}}, (), 3, "version 1: testing; version 2: fold_0"),
        ({1: {"testing": "a"}, 2: {"testing": "b"}}, ("--on", "fold_0"), 3, "models:/liver/1: has no scores on fold_0"),
        ({n: {"a": "x", "b": "y"} for n in (1, 2)}, (), 2, "both have scores on a, b; choose one with --on SET"),
    ],
)
def test_without_one_set_of_cases_nothing_is_compared(run, capsys, sets, flags, code, message):
    assert run(FakeRegistry(champion=1, sets=sets), *flags) == (code, [])
    assert message in capsys.readouterr().err


def test_a_set_can_be_chosen(run):
    registry = FakeRegistry(champion=1, sets={n: {"a": "x", "b": f"y{n}"} for n in (1, 2)})
    assert run(registry, "--on", "b") == (0, [["1 y1", "2 y2", "dice"]])


def test_usage(run, capsys, monkeypatch, tmp_path):
    assert run(FakeRegistry(), "--scores", "x")[0] == 2
    assert "--scores is given without --model" in capsys.readouterr().err
    assert run(FakeRegistry(), "--model", str(tmp_path / "none"))[0] == 3
    assert "holds no model.json" in capsys.readouterr().err
    monkeypatch.setattr(address, "mlflow_is_installed", lambda: False)
    assert run(FakeRegistry())[0] == 5
    assert "needs mlflow" in capsys.readouterr().err
