from dataclasses import dataclass

import pytest
import torch
from torch import nn

from medseg.training.distributed import ALONE
from medseg.training.validation import Interrupted, timing_sample, validation_dice, window_count
from tests.training.processes import run_together
from tests.training.small_run import CPU, plan, write_prepared


class Threshold(nn.Module):
    """Logits that say organ where the image is above a half; exact on the cases of the small run but for their noise."""

    def forward(self, image):
        return torch.cat((0.5 - image, image - 0.5), dim=1)


def dice(processes, folder):
    cases = list(write_prepared(folder).cases.values())
    return validation_dice(
        Threshold().eval(), cases, plan=plan(), overlap=0.5, device=CPU, precision=None, processes=processes
    )


def test_a_threshold_finds_the_organ(tmp_path):
    assert dice(ALONE, tmp_path) == {"organ": pytest.approx(1.0, abs=1e-3)}


def test_processes_share_the_cases_and_all_get_the_same_mean(tmp_path):
    assert run_together(2, dice, tmp_path) == [dice(ALONE, tmp_path)] * 2


def interrupted(processes, folder):
    cases = list(write_prepared(folder).cases.values())
    try:
        validation_dice(
            Threshold().eval(), cases, plan=plan(), overlap=0.5, device=CPU, precision=None, processes=processes,
            stop=lambda: processes.rank == 1,
        )  # fmt: skip
    except Interrupted:
        return "interrupted"


def test_a_stop_of_one_process_stops_the_validation_of_all(tmp_path):
    write_prepared(tmp_path)
    assert run_together(2, interrupted, tmp_path) == ["interrupted"] * 2


def test_a_stop_is_asked_for_before_each_window(tmp_path):
    cases = list(write_prepared(tmp_path).cases.values())
    network, asked = Threshold().eval(), []

    def stop():
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Interrupted, match=r"^$"):
        validation_dice(network, cases, plan=plan(), overlap=0.5, device=CPU, precision=None, stop=stop)
    assert not network._forward_pre_hooks


@dataclass
class Sized:
    id: str
    shape_xyz: tuple


def test_windows_worked_out_on_paper():
    # patch 8, step 4: 12 voxels take 2 windows, 8 one, 20 four
    assert window_count((12, 12, 8), plan()) == 4
    assert window_count((20, 8, 5), plan()) == 4


def test_few_windows_are_all_timed_and_of_many_about_a_quarter():
    small = [Sized("a", (12, 12, 8)), Sized("b", (8, 8, 8))]
    assert timing_sample(small, plan()) == (small, 1.0)
    many = [Sized(name, (40, 40, 8)) for name in "abcdefgh"]  # 81 windows each
    chosen, share = timing_sample(many, plan())
    assert ([case.id for case in chosen], share) == (["a", "b"], 0.25)
    one = [Sized("a", (80, 80, 80))]
    assert timing_sample(one, plan()) == (one, 1.0)
