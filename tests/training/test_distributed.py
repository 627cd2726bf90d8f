import copy
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from medseg.config.train_sections import BudgetSection, LossSection, OptimiserSection, TrainSection
from medseg.errors import ChangedError, EnvironmentFault, InputError
from medseg.networks.build import build_network
from medseg.training.batch import Batch
from medseg.training.distributed import ALONE, joined_processes, own_device, share_batch_norms
from medseg.training.loop import fit
from medseg.training.losses import build_loss
from medseg.training.schedule import build_optimiser
from medseg.training.state import Progress, TrainState
from tests.training.processes import GONE, run_together

STEPS, SIZE = 50, 5
CPU = torch.device("cpu")


def new_state(processes, norm, kind):
    torch.manual_seed(1)
    network = build_network(
        {
            "kind": "unet", "dimensions": 2, "channels": 1, "classes": 3, "features": [4, 8], "norm": norm,
            "strides": [[1, 1, 1], [2, 2, 1]], "kernel_sizes": [[3, 3, 1]] * 2,
        }
    )  # fmt: skip
    network = share_batch_norms(network, processes)
    optimiser = build_optimiser(OptimiserSection(kind=kind), network.parameters())
    return TrainState(network, copy.deepcopy(network).eval(), optimiser, Progress(steps=STEPS))


def whole_batch(step):
    rng = np.random.default_rng(step)
    images = torch.from_numpy(rng.normal(size=(SIZE, 1, 16, 16)).astype(np.float32))
    images[:, :, 4:12, 4:12] += 1.5 * torch.arange(SIZE).view(-1, 1, 1, 1)  # samples differ: a mean of parts would show
    classes = (images[:, 0] > 1).to(torch.uint8) + (images[:, 0] > 3).to(torch.uint8)
    return Batch(images, classes, tuple("abcde"))


def share_of(processes, step):
    batch = whole_batch(step)
    part = slice(SIZE * processes.rank // processes.count, SIZE * (processes.rank + 1) // processes.count)
    return Batch(batch.images[part], batch.classes[part], batch.case_ids[part])


def curve(processes, norm="instance", kind="sgd", micro_batch=None, batch_dice=True):
    """Loss of each of 50 steps, and the weights after them."""
    section = TrainSection(
        budget=BudgetSection(steps=STEPS, steps_per_epoch=1),
        optimiser=OptimiserSection(kind=kind, learning_rate=0.01, momentum=0.9),
        micro_batch=micro_batch,
    )
    state = new_state(processes, norm, kind)
    loss = build_loss(LossSection(), class_count=3, batch_dice=batch_dice)
    epochs = fit(
        state,
        lambda step: share_of(processes, step),
        section=section,
        loss=loss,
        seed=3,
        precision=None,
        processes=processes,
    )
    losses = [epoch.train_loss for epoch in epochs]
    return losses, {name: tensor.numpy() for name, tensor in state.average.state_dict().items()}


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("instance", "sgd"),
        pytest.param("batch", "sgd", marks=pytest.mark.slow),
        pytest.param("instance", "adamw", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_curve_of_one(norm, kind):
    alone, _ = curve(ALONE, norm, kind)
    (first, weights), (second, others) = run_together(2, curve, norm, kind)
    assert first == second
    assert all(np.array_equal(weights[name], others[name]) for name in weights)
    assert first == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < 0.8 * alone[0]


@pytest.mark.slow
def test_three_processes_in_micro_batches_give_it_too():
    alone, _ = curve(ALONE)
    for losses, _ in run_together(3, curve, "instance", "sgd", 1):
        assert losses == pytest.approx(alone, rel=1e-4)


def talk(processes):
    numbers = processes.add_up(torch.tensor([1.0, float(processes.rank)])).tolist()
    same_clock = len(set(processes.gather(processes.clock()))) == 1
    return (
        numbers,
        processes.any(processes.rank == 1),
        processes.any(0),
        processes.from_first(processes.rank),
        same_clock,
    )


def test_what_processes_tell_each_other():
    assert run_together(2, talk) == [([2.0, 1.0], True, False, 0, True)] * 2


def refuse(processes, listed):
    def work():
        raise ChangedError(["a: was 1", "b: was 2"]) if listed else InputError("x: is y")

    try:
        processes.only_first(work)
    except (ChangedError, InputError) as error:
        return type(error).__name__, getattr(error, "faults", str(error))


def test_a_refusal_of_the_first_is_everybodys():
    assert run_together(2, refuse, True) == [("ChangedError", ("a: was 1", "b: was 2"))] * 2
    assert run_together(2, refuse, False) == [("InputError", "x: is y")] * 2


def die(processes):
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        processes.clock()
        processes.gather(1)
    except EnvironmentFault as error:
        return str(error)


def test_a_process_that_is_gone_is_told_in_words():
    told, killed = run_together(2, die)
    assert "another process of this run is gone" in told
    assert killed == GONE


def test_alone_nothing_is_joined(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with joined_processes(CPU) as processes:
        assert processes is ALONE
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_processes(CPU) as processes:
        assert processes is ALONE


def test_processes_that_can_not_be_joined_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(EnvironmentFault, match="2 processes were announced"), joined_processes(CPU):
        pass


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert own_device(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert own_device(CPU) == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(EnvironmentFault, match="process 2 has no GPU, found 2"):
        own_device(torch.device("cuda"))


def normed(processes):
    torch.manual_seed(0)
    values = torch.randn(5, 2, 3, 3, dtype=torch.float32) * 2 + 3
    first, last = 5 * processes.rank // processes.count, 5 * (processes.rank + 1) // processes.count
    mine = values[first:last].requires_grad_()
    norm = nn.Sequential(nn.BatchNorm2d(2))
    norm[0].weight.data.copy_(torch.tensor([0.5, 2.0]))
    norm = share_batch_norms(norm, processes)
    (norm(mine) ** 3).sum().backward()
    processes.add_up_gradients(norm.parameters())
    tensors = [mine.grad, norm[0].weight.grad, norm[0].bias.grad, norm[0].running_mean, norm[0].running_var]
    return [tensor.numpy() for tensor in tensors], list(norm.state_dict())


def test_shared_batch_norm_is_torchs_over_the_whole_batch():
    (one, names), shares = normed(ALONE), run_together(2, normed)
    assert np.concatenate([share[0][0] for share in shares]) == pytest.approx(one[0], rel=1e-3, abs=1e-4)
    for share, found in shares:
        assert found == names
        for mine, whole in zip(share[1:], one[1:], strict=True):
            assert mine == pytest.approx(whole, rel=1e-4)
