import copy
import hashlib

import numpy as np
import pytest
import torch

from medseg.config.train_sections import BudgetSection, OptimiserSection, TrainSection
from medseg.errors import DamagedFileError, InputError
from medseg.networks.build import build_network
from medseg.training.batch import Batch
from medseg.training.loop import fit
from medseg.training.losses import build_loss
from medseg.training.schedule import build_optimiser
from medseg.training.state import Progress, TrainState, load_state, save_state

STEPS = 12


def section(**optimiser):
    return TrainSection(budget=BudgetSection(steps=STEPS, steps_per_epoch=5), optimiser=OptimiserSection(**optimiser))


def new_state(kind="adamw"):
    torch.manual_seed(1)
    network = build_network(
        {
            "kind": "unet", "dimensions": 2, "channels": 1, "classes": 2, "features": [4, 8],
            "strides": [[1, 1, 1], [2, 2, 1]], "kernel_sizes": [[3, 3, 1]] * 2, "dropout": 0.2,
        }
    )  # fmt: skip
    optimiser = build_optimiser(OptimiserSection(kind=kind), network.parameters())
    return TrainState(network, copy.deepcopy(network).eval(), optimiser, Progress(steps=STEPS))


def batches(step):
    rng = np.random.default_rng(step)
    images = torch.from_numpy(rng.normal(size=(2, 1, 8, 8)).astype(np.float32))
    return Batch(images, (images[:, 0] > 0).to(torch.uint8), ("a", "b"))


def train(state, kind="adamw", **arguments):
    return fit(
        state, batches, section=section(kind=kind), loss=build_loss(section().loss, batch_dice=True), seed=3, precision=None,
        **arguments,
    )  # fmt: skip


def digest(state):
    values = [*state.network.state_dict().values(), *state.average.state_dict().values()]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in values)).hexdigest()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("killed_after", [1, 5, 7, 11])
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, kind, killed_after):
    whole = new_state(kind)
    epochs = list(train(whole, kind))
    assert [(e.step, e.epoch, e.complete) for e in epochs] == [(5, 1, True), (10, 2, True), (12, 3, True)]

    first = new_state(kind)
    for _ in train(first, kind, stop=lambda: first.progress.step >= killed_after):
        save_state(tmp_path, first)
    second = new_state(kind)
    torch.manual_seed(999)  # whatever the global generator holds
    assert load_state(tmp_path, second)
    assert second.progress.step == killed_after
    list(train(second, kind))
    assert digest(second) == digest(whole)
    assert [h["train_loss"] for h in second.progress.history] == [h["train_loss"] for h in whole.progress.history]


def test_learning_lowers_the_loss():
    state = new_state()
    state.progress.steps = 60
    steps = fit(
        state, lambda step: batches(step % 2), section=section(learning_rate=0.02), precision=None, seed=3,
        loss=build_loss(section().loss, batch_dice=True),
    )  # fmt: skip
    losses = [epoch.train_loss for epoch in steps]
    assert losses[-1] < 0.7 * losses[0]


def test_a_flipped_bit_sends_it_back_to_the_state_before(tmp_path, caplog):
    state = new_state()
    for _ in train(state):
        save_state(tmp_path, state)
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["00000010.json", "00000012.json"]
    newest = tmp_path / "00000012.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    again = new_state()
    assert load_state(tmp_path, again)
    assert again.progress.step == 10
    assert "does not have its checksum; going back" in caplog.text
    (tmp_path / "00000010.safetensors").unlink()
    with pytest.raises(DamagedFileError, match="no saved state is whole"):
        load_state(tmp_path, new_state())


def test_without_a_state_nothing_is_loaded(tmp_path):
    assert not load_state(tmp_path, new_state())


def test_a_loss_that_is_not_finite_changes_no_weight_and_is_named(caplog):
    state = new_state()
    before = digest(state)

    def broken(step):
        batch = batches(step)
        return Batch(batch.images * float("nan"), batch.classes, ("case_7", "case_9"))

    epochs = list(
        fit(state, broken, section=section(), loss=build_loss(section().loss, batch_dice=True), seed=3, precision=None)
    )
    assert digest(state) == before
    assert state.progress.skipped == STEPS
    assert "case_7, case_9" in caplog.text
    assert "train/loss" not in epochs[-1].metrics()
    state.progress.steps = 1000
    with pytest.raises(InputError, match="not finite in 21 steps"):
        list(
            fit(
                state,
                broken,
                section=section(),
                loss=build_loss(section().loss, batch_dice=True),
                seed=3,
                precision=None,
            )
        )


def test_validation_runs_on_the_average_and_leaves_training_mode_on():
    state, seen = new_state(), []

    def validate(network):
        seen.append((network is state.average, network.training))
        return {"a": 0.5, "b": 0.75}

    epochs = list(train(state, validate=validate))
    assert seen == [(True, False)] * 3
    assert epochs[0].metrics()["validation/dice"] == pytest.approx(0.625)
    assert state.network.training
