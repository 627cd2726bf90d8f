"""Distillation: the loss on paper, who may teach, and a student that follows its teacher."""

import math
from dataclasses import replace

import pytest
import torch

from medseg.config.network_sections import FCNSection, UNetSection
from medseg.config.sections import DistilSection
from medseg.config.train_sections import LossSection
from medseg.errors import InputError, UsageError
from medseg.exchange.distillation import (
    DistillationLoss,
    check_teacher,
    run_key,
    student_network,
    teaching_networks,
    with_teacher,
)
from medseg.training.losses import build_loss
from tests.inference.stand_ins import plan_for, threshold_model

CE = build_loss(LossSection(kind="ce"), class_count=2, batch_dice=False)


def loss(**changes):
    values = {"outputs": 2, "share": 1.0, "temperature": 1.0, "regions": False}
    return DistillationLoss(CE, **(values | changes))


def logits(*rows):
    """(1, K, voxels) from one row of voxels per channel."""
    return torch.tensor([rows], dtype=torch.float32)


def test_the_divergence_on_paper():
    # The student says 1/2 and 1/2, the teacher 3/4 and 1/4: KL = 3/4 log(3/2) + 1/4 log(1/2).
    classes = torch.zeros(1, 2, dtype=torch.uint8)
    both = logits([0.0, 0.0], [0.0, 0.0], [math.log(3), math.log(3)], [0.0, 0.0])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    own = loss()
    assert own.value(own.sums(both, classes)).item() == pytest.approx(expected)
    # Half of it and half of the cross-entropy of class 0, log 2.
    half = loss(share=0.5)
    assert half.value(half.sums(both, classes)).item() == pytest.approx(0.5 * expected + 0.5 * math.log(2))
    # At T = 2 logits are halved and the term counts four times.
    warm = loss(temperature=2.0)
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    softened = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert warm.value(warm.sums(both, classes)).item() == pytest.approx(softened)


def test_regions_have_two_outcomes_each():
    labels = build_loss(LossSection(kind="ce"), class_count=2, batch_dice=False, regions=[[False, True]])
    own = DistillationLoss(labels, outputs=1, share=1.0, temperature=1.0, regions=True)
    value = own.value(own.sums(logits([0.0], [math.log(3)]), torch.zeros(1, 1, dtype=torch.uint8)))
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_sums_of_parts_add_up_and_a_head_without_a_teacher_has_its_labels():
    both = torch.linspace(-2, 3, 80).reshape(4, 4, 5).sin() * 3
    classes = (both[:, 0] > 0).to(torch.uint8)
    own = loss(share=0.5)
    parts = own.sums(both[:1], classes[:1]) + own.sums(both[1:], classes[1:])
    assert parts.tolist() == pytest.approx(own.sums(both, classes).tolist(), rel=1e-5)
    alone = both[:, :2]
    assert own.value(own.sums(alone, classes)).item() == CE.value(CE.sums(alone, classes)).item()


def test_a_narrower_network():
    plan = plan_for()
    wide = UNetSection(features=(8, 16, 31))
    assert student_network(wide, plan, 0.5).features == (4, 8, 16)
    assert student_network(wide, plan, 0.1).features == (4, 4, 4)
    assert student_network(wide.model_copy(update={"norm": "group"}), plan, 0.5).features == (8, 8, 16)
    assert student_network(UNetSection(), plan_for(features=(8, 32)), 0.5).features == (4, 16)
    with pytest.raises(InputError, match="expected unet or dynunet"):
        student_network(FCNSection(), plan, 0.5)


def test_the_teacher_is_heard_in_training_only():
    student = torch.nn.Conv1d(1, 2, 1)
    student.register_forward_hook(with_teacher([lambda x: x.expand(-1, 2, -1), lambda x: 3 * x.expand(-1, 2, -1)]))
    x = torch.ones(1, 1, 4)
    assert student.eval()(x).shape == (1, 2, 4)
    answer = student.train()(x)
    assert answer.shape == (1, 4, 4)
    assert answer[:, 2:].tolist() == [[[2.0] * 4] * 2]


def test_who_may_teach():
    teacher = threshold_model()
    check_teacher([teacher], teacher.plan, fold=None)
    with pytest.raises(UsageError, match="held-out cases of fold 0"):
        check_teacher([teacher], teacher.plan, fold=0)
    with pytest.raises(InputError, match="spacing_xyz_mm of the teacher's plan"):
        check_teacher([teacher], plan_for((2.0, 1.0, 1.0)), fold=None)
    assert not any(p.requires_grad for network in teaching_networks([teacher], "cpu") for p in network.parameters())
    settings = DistilSection()
    assert run_key([teacher], settings) != run_key([replace(teacher, sha256="b")], settings)
    assert run_key([teacher], settings) != run_key([teacher], DistilSection(width=0.25))


@pytest.mark.slow
def test_a_student_is_distilled_and_draws_masks(tmp_path, monkeypatch):
    import medseg
    from medseg.cli.main import main
    from tests.experiment import write_experiment

    made = write_experiment(tmp_path, training=4, testing=0, steps=4)
    monkeypatch.chdir(tmp_path)
    for verb in ("prepare", "train", "distil", "distil"):
        assert main([verb, *made.flags()]) == 0
    (folder,) = (made.work / "distilled").glob("fold_0-*/model")
    student, teacher = medseg.load(folder), medseg.load(made.work / "runs" / "fold_0" / "model")
    counts = [sum(p.numel() for p in one.models[0].network.parameters()) for one in (student, teacher)]
    assert counts[0] < counts[1]
    assert any("distilled from" in event for event in student.models[0].info["training"]["events"])
    assert student.predict(next((made.data / "images").iterdir())).array.ndim == 3
