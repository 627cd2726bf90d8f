import json

from medseg.cli import audit
from medseg.imaging import read_label_map, write_label_map
from tests.experiment import write_experiment


def test_the_verb_prints_what_to_look_at_and_takes_the_fold_predictions(tmp_path, capsys):
    made = write_experiment(tmp_path, training=6, testing=1)
    for case in made.held_out:
        label = read_label_map(made.data / "labels" / f"{case}.nii.gz")
        path = made.work / "predictions" / "fold_0" / f"{case}.nii.gz"
        write_label_map(label, path, like=label.header)
    flags = [*made.flags(), "--processes", "1", "--top", "3", "--set", "tracking.enabled=false"]
    assert audit.main(flags) == 0
    printed = capsys.readouterr().out
    assert "7 cases" in printed
    assert "lesion" in printed
    assert json.loads((made.work / "audit" / "audit.json").read_text())["cases"] == 7
    assert json.loads((made.work / "audit" / "stage.json").read_text())["stage"] == "audit"


def test_an_unreadable_case_is_told_by_the_exit_code(tmp_path, capsys):
    made = write_experiment(tmp_path, training=3, testing=0)
    (made.data / "images" / "case_01.nii.gz").write_bytes(b"no scan")
    assert audit.main([*made.flags(), "--processes", "1", "--set", "tracking.enabled=false"]) == 4
    assert "unreadable" in capsys.readouterr().out
