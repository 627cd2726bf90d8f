import pytest
import torch

from medseg.config.train_sections import OptimiserSection
from medseg.training.schedule import build_optimiser, learning_rate


def test_cosine_worked_out_on_paper():
    section = OptimiserSection(learning_rate=1.0, warmup_fraction=0.1)
    assert [learning_rate(section, step, 100) for step in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert learning_rate(section, 55, 100) == pytest.approx(0.5)
    assert learning_rate(section, 99, 100) < 0.001


def test_poly_ends_near_zero():
    section = OptimiserSection(kind="sgd", learning_rate=0.01, schedule="poly", warmup_fraction=0.0)
    assert learning_rate(section, 500, 1000) == pytest.approx(0.01 * 0.5**0.9)


def test_norms_and_biases_do_not_decay():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.InstanceNorm2d(2, affine=True))
    decays = {
        g["weight_decay"]: len(g["params"])
        for g in build_optimiser(OptimiserSection(), network.parameters()).param_groups
    }
    assert decays == {0.01: 1, 0.0: 3}
