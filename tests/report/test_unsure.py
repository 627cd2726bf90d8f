import numpy as np
import pytest

from medseg.evaluation import run_evaluate
from medseg.evaluation.experiment import folder_set
from medseg.imaging.nifti import write_nifti
from medseg.report.content import gather
from medseg.report.experiment import folder_inputs, scored_folders
from medseg.report.markdown import markdown
from medseg.report.page import page
from medseg.report.stage import make_report
from medseg.report.unsure import UnsureRow, beside_dice, class_means, read_unsure
from tests.report.scored_cases import AFFINE

HEAD = "case,class,voxels,wrong_share,mean_entropy,entropy_wrong,entropy_right,auroc,auprc,uce\n"


def test_the_table_is_read_and_damage_passed_over(tmp_path):
    assert read_unsure(tmp_path) == ()
    path = tmp_path / "uncertainty.csv"
    path.write_text(f"{HEAD}a,organ,9,0.5,0.4,0.6,0.2,0.9,0.8,0.1\na,lesion,0,,,,,,,\nb,organ,9,0,0.2,,0.2,,,0.1\n")
    rows = read_unsure(tmp_path)
    assert rows == (
        UnsureRow(case="a", class_name="organ", mean_entropy=0.4, entropy_wrong=0.6, entropy_right=0.2, auroc=0.9),
        UnsureRow(case="b", class_name="organ", mean_entropy=0.2, entropy_wrong=None, entropy_right=0.2, auroc=None),
    )
    assert class_means(rows, "organ") == (2, [pytest.approx(0.3), 0.6, pytest.approx(0.2), 0.9])
    assert class_means(rows, "lesion") == (0, [None] * 4)
    path.write_text("case,class\na,organ\n")
    assert read_unsure(tmp_path) == ()
    path.write_bytes(b"\xff\xfe\x00")
    assert read_unsure(tmp_path) == ()


def test_the_report_shows_entropy_where_it_is_wrong_and_lesions(scored):
    (scored / "p" / "maps").mkdir()
    # Certain where nothing is, 51/255 = 0.2 in the first 14 columns, 0.8 beyond: the moved mask is unsure where it is wrong.
    entropy = np.zeros((30, 28, 12), np.uint8)
    entropy[:14], entropy[14:] = 51, 204
    write_nifti(entropy, AFFINE, scored / "p" / "maps" / "bad_entropy.nii.gz", like=None, slope=1 / 255)
    cases = folder_set(
        "set", predictions=scored / "p", references=scored / "r", labels="organ=1+2", metrics="default,instances"
    )
    run_evaluate(cases, output=scored / "scores", processes=1)
    again = scored_folders(scored / "scores", predictions=scored / "p", references=scored / "r")
    content = gather(folder_inputs(scored / "scores", again))
    # Columns 4 to 9 are missed (0.2), 10 to 13 right (0.2), 14 to 19 too much (0.8): 16 in all. Of 12 wrong against right
    # ones half are equal and half less sure: AUROC 0.75.
    (row,) = content.unsure
    assert (row.case, row.class_name) == ("bad", "organ")
    assert row.mean_entropy == pytest.approx((10 * 0.2 + 6 * 0.8) / 16, abs=1e-3)
    assert (row.entropy_wrong, row.entropy_right, row.auroc) == pytest.approx((0.5, 0.2, 0.75), abs=1e-3)
    ((pair,),) = beside_dice(content.unsure, content.table).values()
    assert pair == (row.mean_entropy, pytest.approx(0.4))
    text = page(content)
    assert 'id="uncertainty"' in text
    assert 'id="lesions"' in text
    assert "Mean entropy beside Dice" in text
    said = markdown(content)
    assert "| organ | 1 | 0.425 | 0.500 | 0.200 | 0.750 |" in said
    # Three true lesions, two predicted: both share voxels with the truth, one has an IoU above 0.5.
    assert "| organ | 3 | 2 | 2 | 2 | 0.500 | 0.333 | 0.400 | 1.000 | 0.400 | 0.250 |" in said


def test_without_maps_and_lesions_there_is_no_section(reported):
    text = (reported / "scores" / "report.html").read_text()
    assert 'id="uncertainty"' not in text
    assert 'id="lesions"' not in text


def test_a_new_table_makes_the_report_anew(scored, monkeypatch):
    monkeypatch.setattr("medseg.report.stage.page", lambda _content: "")
    inputs = folder_inputs(scored / "scores", None)
    assert make_report(inputs).made
    assert not make_report(inputs).made
    (scored / "scores" / "uncertainty.csv").write_text(f"{HEAD}bad,organ,9,0.5,0.4,0.6,0.2,0.9,0.8,0.1\n")
    assert make_report(inputs).made
