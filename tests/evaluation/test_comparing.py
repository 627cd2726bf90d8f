import json
from dataclasses import replace

import numpy as np
import pytest

from medseg.cli.compare import _split
from medseg.cli.main import main
from medseg.errors import DamagedFileError, InputError, UsageError
from medseg.evaluation import match_folders, run_evaluate
from medseg.evaluation.common_ground import MEAN, comparable
from medseg.evaluation.comparing import (
    compare_pairs,
    detectable_difference,
    holm,
    judge,
    tie_margin,
    wilcoxon_p,
)
from medseg.evaluation.comparison import compare_runs, comparison_json, unique_names
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.protocol import make_protocol
from medseg.evaluation.ranking import kendall_tau
from medseg.evaluation.runs import read_run, scores_folder

LABELS = {"background": (0,), "liver": (1,), "tumour": (2,)}
CASES = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """References, a good and a bad run of eight cases; of case 7 the tumour is absent, and the bad run draws one."""
    from medseg.imaging import LabelMap, write_label_map

    root, generator = tmp_path_factory.mktemp("runs"), np.random.default_rng(3)

    def save(side, k, array):
        (root / side).mkdir(exist_ok=True)
        write_label_map(LabelMap(array, np.eye(4)), root / side / f"c{k}.nii.gz", like=None)

    for k in range(CASES):
        reference = np.zeros((9, 9, 9), np.uint8)
        reference[2:7, 2:7, 2:7] = 1
        if k < 7:
            reference[3:6, 3:6, 3:6] = 2
        save("reference", k, reference)
        for run, noise in (("bad", 0.12), ("good", 0.03)):
            mask = np.where((generator.random(reference.shape) < noise) & (reference > 0), 0, reference)
            if run == "bad":
                mask[0, 0, 0] = 2
            save(run, k, mask.astype(np.uint8))
    for run in ("bad", "good"):
        score(root, run)
    return root


def score(root, run, *, into=None, keep=None, reference="reference", **settings):
    patients = settings.pop("patients", {})
    protocol = make_protocol(labels=settings.pop("labels", LABELS), **settings)
    pairs = tuple(pair for pair in match_folders(root / run, root / reference) if keep is None or pair.case_id in keep)
    cases = CaseSet(name="set", pairs=pairs, protocol=protocol, patients=patients)
    run_evaluate(cases, output=root / (into or f"scores_{run}"), processes=1)
    return root / (into or f"scores_{run}")


def field(root, *names, metrics=("dice",)):
    return comparable([read_run(root / f"scores_{name}", name=name) for name in names], metrics=metrics)


def test_a_verdict(folders):
    verdict = judge(folders / "scores_bad", folders / "scores_good")
    assert verdict.better
    assert verdict.n == 8
    assert verdict.low > 0
    assert verdict.p_value == 2 / 256  # every patient gained, of 2^8 sign patterns two are as far out
    assert "the challenger is better" in verdict.reason
    back = judge(folders / "scores_good", folders / "scores_bad")
    assert not back.better
    assert back.difference == -verdict.difference
    assert not judge(folders / "scores_good", folders / "scores_good").better
    distance = judge(folders / "scores_bad", folders / "scores_good", metric="assd_mm")
    assert distance.better
    assert distance.difference < 0


def test_differences_are_those_of_the_cases(folders):
    pairs = {(one.metric, one.class_name): one for one in compare_pairs(field(folders, "bad", "good"))}
    liver = pairs["dice", "liver"]
    runs = [read_run(folders / f"scores_{name}") for name in ("bad", "good")]
    first, second = ([run.values["dice"]["liver"][f"c{k}"] for k in range(CASES)] for run in runs)
    assert liver.difference == pytest.approx(np.mean(second) - np.mean(first))
    assert (liver.cases, liver.patients, liver.favours) == (8, 8, 1)
    gains = np.subtract(second, first)
    assert (liver.wins, liver.ties, liver.losses) == (
        (gains > 0.01).sum(),
        (abs(gains) <= 0.01).sum(),
        (gains < -0.01).sum(),
    )


def test_a_false_alarm_costs_against_a_mask_that_is_rightly_empty(folders):
    both = field(folders, "bad", "good")
    tumour = both.table("dice", "tumour")
    assert tumour[:, 7].tolist() == [0.0, 1.0]
    assert both.table("dice", MEAN)[:, 7] == pytest.approx(
        [(0 + both.table("dice", "liver")[0, 7]) / 2, (1 + both.table("dice", "liver")[1, 7]) / 2]
    )
    alone = field(folders, "good", "good")
    assert np.isnan(alone.table("dice", "tumour")[:, 7]).all()


def test_patients_are_the_unit(folders):
    patients = {f"c{k}": f"p{k // 2}" for k in range(CASES)}
    first = score(folders, "bad", into="clustered_bad", patients=patients)
    second = score(folders, "good", into="clustered_good", patients=patients)
    verdict = judge(first, second)
    assert (verdict.n, verdict.p_value, verdict.low, verdict.better) == (4, 2 / 16, None, False)
    assert "too few patients for a 95 % interval" in verdict.reason
    assert judge(first, folders / "scores_good").n == 4  # what one of the runs knows holds for both


def test_what_differs_is_refused_or_left_out(folders):
    other = score(folders, "good", into="excluding", empty="exclude")
    with pytest.raises(InputError, match=r"policies for empty masks differ \(champion standard, challenger exclude\)"):
        judge(folders / "scores_bad", other)
    tolerant = score(folders, "good", into="tolerant", tolerance_mm=3.0)
    with pytest.raises(InputError, match="nsd was computed with different tolerances"):
        judge(folders / "scores_bad", tolerant, metric="nsd")
    assert judge(folders / "scores_bad", tolerant).better
    fewer = score(folders, "good", into="fewer", keep={"c1", "c2", "c3"})
    verdict = judge(folders / "scores_bad", fewer)
    assert verdict.n == 3
    assert not verdict.better
    assert "5 of the champion's 8 cases were not compared, and all must be" in verdict.reason
    assert "5 of 8 cases left out: not scored in every run" in verdict.reason
    renamed = score(folders, "good", into="renamed", labels={"background": (0,), "liver": (1,), "lesion": (2,)})
    notes = comparable([read_run(folders / "scores_bad"), read_run(renamed)], metrics=("dice",)).notes
    assert notes == ("left out as not every run has them with the same values: lesion, tumour",)
    verdict = judge(folders / "scores_bad", renamed)
    assert not verdict.better
    assert "of the champion's classes tumour could not be compared, and all must be" in verdict.reason
    with pytest.raises(InputError, match="volume_reference_ml is no metric that can be compared, expected one of dice"):
        judge(folders / "scores_bad", folders / "scores_good", metric="volume_reference_ml")


def test_raters_must_have_been_treated_alike(folders):
    good = read_run(folders / "scores_good", name="good")
    other = replace(good, name="other", content={**good.content, "raters": {"policy": "staple"}})
    with pytest.raises(InputError, match=r"scored against differs \(good first, other staple\)"):
        comparable([good, other], metrics=("dice",))


def test_other_code_is_said(folders):
    good = read_run(folders / "scores_good", name="good")
    other = replace(good, content={**good.content, "identity": {**good.content["identity"], "code_sha256": "x"}})
    assert comparable([good, other], metrics=("dice",)).notes == (
        "scored by different versions of the metrics' code, whose definitions agree",
    )


def test_nothing_to_compare(folders):
    nothing = score(folders, "good", into="nothing", keep={"c7"}, labels={"background": (0, 1), "tumour": (2,)})
    with pytest.raises(InputError, match="no case has a dice in both runs"):
        judge(nothing, nothing)


def test_other_references_are_no_comparison(folders):
    against_itself = score(folders, "good", into="other_references", reference="bad")
    with pytest.raises(InputError, match="8 cases are in all runs and 8 of them have other references"):
        judge(folders / "scores_bad", against_itself)


def test_scores_of_format_1_are_compared_as_a_whole(folders, tmp_path):
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        content = json.loads((folders / f"scores_{name}" / "metrics.json").read_text()) | {"format": 1}
        del content["identity"]["references"]
        (tmp_path / name / "cases.csv").write_bytes((folders / f"scores_{name}" / "cases.csv").read_bytes())
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))
    verdict = judge(tmp_path / "bad", tmp_path / "good")
    assert verdict.better
    assert "an older file does not say which cases are one patient's" in verdict.reason
    fewer = score(folders, "good", into="fewer_2", keep={"c1", "c2"})
    with pytest.raises(InputError, match="tells no reference of a single case"):
        judge(tmp_path / "bad", fewer)


def test_folders_that_are_no_scores(folders, tmp_path):
    with pytest.raises(InputError, match=r"empty: holds no metrics\.json"):
        judge(tmp_path / "empty", tmp_path)
    for name in ("one", "two"):
        score(folders, "good", into=tmp_path / "work" / "scores" / name)
    with pytest.raises(
        UsageError, match="has 2 sets of scores, expected one; name it: work/scores/one, work/scores/two"
    ):
        read_run(tmp_path / "work")
    assert read_run(tmp_path / "work" / "scores" / "one").name == "one"
    reported = score(folders, "good", into=tmp_path / "work" / "crossvalidation" / "scores" / "reported")
    assert scores_folder(tmp_path / "work") == scores_folder(tmp_path / "work" / "crossvalidation") == reported
    path = tmp_path / "work" / "scores" / "one"
    (path / "cases.csv").write_text((path / "cases.csv").read_text().replace("c1", "c9"))
    with pytest.raises(DamagedFileError, match=r"cases.csv is not the one of metrics.json"):
        read_run(path)
    newer = json.loads((path / "metrics.json").read_text()) | {"format": 9}
    (path / "metrics.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match="has format 9, expected 1 to 2"):
        read_run(path)


def test_holm_on_paper():
    # 4 x 0.01, 3 x 0.02, then 2 x 0.03 = 0.06 and 1 x 0.04, which may not fall below 0.06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_wilcoxon_on_paper():
    # All six of one sign: 2 of 2^6 patterns.
    assert wilcoxon_p(np.arange(1.0, 7.0)) == 2 / 64
    assert wilcoxon_p(np.zeros(4)) == 1.0
    assert wilcoxon_p(np.ones(1)) is None


def test_what_n_patients_can_detect():
    # (2.2622 + 0.8834) x SD / sqrt(10) by a table of Student's t with 9 degrees of freedom; these ten have SD 1.
    values = np.array([-1.0, 1.0] * 5) * np.sqrt(0.9)
    assert detectable_difference(values) == pytest.approx((2.2622 + 0.8834) / np.sqrt(10), rel=1e-3)
    assert detectable_difference(np.ones(1)) is None


def test_kendall_on_paper():
    # Of the six pairs of four, one is turned: (5 - 1) / 6.
    assert kendall_tau(np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 3, 4])) == pytest.approx(4 / 6)
    assert kendall_tau(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None


def test_three_runs(folders, tmp_path, capsys):
    perfect = score(folders, "reference", into="scores_perfect")
    runs = [read_run(folders / f"scores_{name}", name=name) for name in ("bad", "good", "perfect")]
    found = compare_runs(runs)
    assert len(found.pairs) == 3 * 3 * 3
    assert found.rankings["dice"].ranks == {"bad": 3.0, "good": 2.0, "perfect": 1.0}
    assert found.rankings["dice"].first["perfect"] == 1.0
    assert found.rankings["dice"].tau == 1.0
    means = [one for one in found.pairs if one.class_name == MEAN]
    assert [one.p_holm for one in means] == pytest.approx(holm([one.p_value for one in means]))
    case, one, other, gap = found.different["bad", "perfect", "dice"][0]
    assert case == "c7"  # the false alarm
    assert gap == other - one > 0.5
    given = [f"bad={folders}/scores_bad", f"good={folders}/scores_good", str(perfect)]
    assert main(["compare", *given, "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "8 cases of 8 patients, second minus first" in text
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    again = replace(runs[2], name="scores_perfect")
    assert written == json.loads(json.dumps(comparison_json(compare_runs([*runs[:2], again]))))
    assert "| bad, good | dice | mean |" in (tmp_path / "out" / "comparison.md").read_text()
    assert str(folders) not in (tmp_path / "out" / "comparison.md").read_text()


def test_one_run_is_no_comparison(folders, capsys):
    assert main(["compare", str(folders / "scores_bad")]) == 2
    assert "was given 1 run, expected two or more" in capsys.readouterr().err


def test_ties_have_a_unit():
    assert [tie_margin(name) for name in ("dice", "hd95_mm", "volume_difference_ml", "volume_difference_percent")] == [
        0.01, 0.5, 0.1, 1.0
    ]  # fmt: skip


def test_names_are_told_apart():
    assert unique_names(["a", "b", "a"]) == ["a-1", "b", "a-2"]


def test_a_metric_that_no_case_has_is_named(folders):
    runs = [
        read_run(score(folders, run, into=f"with_ece_{run}", metrics=("calibration", "hd99_mm")), name=run)
        for run in ("bad", "good")
    ]
    found = compare_runs(runs, metrics=("ece", "hd99_mm"))
    assert found.field.notes == ("no case has ece in every run",)
    assert {one.metric for one in found.pairs} == {"hd99_mm"}
    with pytest.raises(InputError, match="compare: no case has ece in every run, expected one at least"):
        compare_runs(runs, metrics=("ece",))
    with pytest.raises(InputError, match="is not in the scores of plain; run medseg evaluate again with it in"):
        compare_runs([read_run(folders / "scores_bad", name="plain"), runs[0]], metrics=("hd99_mm",))


def test_a_run_is_called_after_its_work_folder(tmp_path):
    for place in ("scores/work/plain/scores/fold_0", "plain/crossvalidation/scores/reported"):
        assert _split(str(tmp_path / place))[0] == "plain"
