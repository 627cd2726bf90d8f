import copy

import numpy as np
import pytest
import torch

from medseg.config.train_sections import BudgetSection, LossSection, OptimiserSection, TrainSection
from medseg.networks.build import build_network
from medseg.training import step as step_module
from medseg.training.batch import Batch
from medseg.training.losses import build_loss
from medseg.training.schedule import build_optimiser
from medseg.training.state import Progress, TrainState
from medseg.training.step import train_step


def new_state(dropout=0.0, norm="instance"):
    torch.manual_seed(1)
    network = build_network(
        {
            "kind": "unet", "dimensions": 2, "channels": 1, "classes": 2, "features": [4, 6, 8], "dropout": dropout,
            "norm": norm, "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 1]], "kernel_sizes": [[3, 3, 1]] * 3,
            "deep_supervision": True,
        }
    )  # fmt: skip
    optimiser = build_optimiser(OptimiserSection(kind="sgd"), network.parameters())
    return TrainState(network, copy.deepcopy(network).eval(), optimiser, Progress(steps=10))


def batch(size=5):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(size, 1, 16, 16)).astype(np.float32))
    images[:, :, 4:12, 4:12] += torch.arange(size).view(-1, 1, 1, 1)
    classes = (images[:, 0] > 1).to(torch.uint8)
    classes[0, :4] = 255
    return Batch(images, classes, tuple("abcde"[:size]))


def gradients(monkeypatch, state, micro_batch, *, batch_dice, one_by_one=False, **loss):
    section = TrainSection(
        budget=BudgetSection(steps=10), micro_batch=micro_batch, optimiser=OptimiserSection(gradient_norm=None)
    )
    made = build_loss(LossSection(**loss), class_count=2, batch_dice=batch_dice)
    if one_by_one:
        monkeypatch.setattr(step_module, "_backward_together", step_module._backward_one_by_one)
    value = train_step(state, batch(), section=section, loss=made, rate=0.1, seed=3, precision=None)
    monkeypatch.undo()
    return value, torch.cat([p.grad.flatten() for p in state.network.parameters() if p.grad is not None]).numpy()


@pytest.mark.parametrize("one_by_one", [False, True], ids=["graphs kept", "one graph at a time"])
@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize(
    ("kind", "batch_dice"), [("dice_ce", True), ("dice_ce", False), ("ce", True), ("tversky", True), ("dice", False)]
)
def test_micro_batches_have_the_loss_and_gradient_of_the_whole(monkeypatch, kind, batch_dice, micro_batch, one_by_one):
    value, whole = gradients(monkeypatch, new_state(), None, batch_dice=batch_dice, kind=kind)
    split, parts = gradients(
        monkeypatch, new_state(), micro_batch, batch_dice=batch_dice, kind=kind, one_by_one=one_by_one
    )
    assert split == pytest.approx(value, rel=1e-5)
    assert parts == pytest.approx(whole, rel=1e-3, abs=2e-6)


def test_one_graph_at_a_time_draws_and_remembers_as_kept_graphs_do(monkeypatch):
    kept, once = new_state(0.3, "batch"), new_state(0.3, "batch")
    value, whole = gradients(monkeypatch, kept, 2, batch_dice=True)
    split, parts = gradients(monkeypatch, once, 2, batch_dice=True, one_by_one=True)
    assert split == pytest.approx(value, rel=1e-5)
    assert parts == pytest.approx(whole, rel=1e-3, abs=2e-6)
    for name, buffer in kept.network.named_buffers():
        assert torch.allclose(buffer.float(), dict(once.network.named_buffers())[name].float()), name


@pytest.mark.parametrize("gradient_norm", [None, 12.0])
def test_a_gradient_that_is_not_finite_changes_no_weight(gradient_norm):
    state = new_state()
    before = copy.deepcopy(state.network.state_dict())
    section = TrainSection(budget=BudgetSection(steps=10), optimiser=OptimiserSection(gradient_norm=gradient_norm))
    last = next(iter(state.network.parameters()))
    last.register_hook(lambda gradient: gradient * float("inf"))
    made = build_loss(LossSection(), class_count=2, batch_dice=True)
    value = train_step(state, batch(), section=section, loss=made, rate=0.1, seed=3, precision=None)
    assert np.isnan(value)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.network.state_dict().items())


def test_the_average_follows_weights_and_counts():
    state = new_state(norm="batch")
    section = TrainSection(budget=BudgetSection(steps=10), optimiser=OptimiserSection(ema_decay=0.0))
    made = build_loss(LossSection(), class_count=2, batch_dice=True)
    train_step(state, batch(), section=section, loss=made, rate=0.1, seed=3, precision=None)
    average = state.average.state_dict()
    assert all(torch.equal(average[name], tensor) for name, tensor in state.network.state_dict().items())
