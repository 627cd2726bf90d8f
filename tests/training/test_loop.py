import copy
import hashlib

import numpy as np
import pytest
import torch

from medseg.config.train_sections import (
    BudgetSection,
    EarlyStoppingSection,
    LossSection,
    OptimiserSection,
    TrainSection,
)
from medseg.errors import DamagedFileError, InputError
from medseg.networks.build import build_network
from medseg.training.batch import Batch
from medseg.training.loop import fit
from medseg.training.losses import build_loss
from medseg.training.schedule import build_optimiser
from medseg.training.state import Progress, TrainState, load_state, save_state
from medseg.training.validation import Interrupted

STEPS = 12


def section(**optimiser):
    return TrainSection(budget=BudgetSection(steps=STEPS, steps_per_epoch=5), optimiser=OptimiserSection(**optimiser))


def new_state(kind="adamw", steps=STEPS):
    torch.manual_seed(1)
    network = build_network(
        {
            "kind": "unet", "dimensions": 2, "channels": 1, "classes": 2, "features": [4, 8],
            "strides": [[1, 1, 1], [2, 2, 1]], "kernel_sizes": [[3, 3, 1]] * 2, "dropout": 0.2,
        }
    )  # fmt: skip
    optimiser = build_optimiser(OptimiserSection(kind=kind), network.parameters())
    return TrainState(network, copy.deepcopy(network).eval(), optimiser, Progress(steps=steps))


def batches(step):
    rng = np.random.default_rng(step)
    images = torch.from_numpy(rng.normal(size=(2, 1, 8, 8)).astype(np.float32))
    return Batch(images, (images[:, 0] > 0).to(torch.uint8), ("a", "b"))


LOSS = build_loss(LossSection(), class_count=2, batch_dice=True)


def train(state, kind="adamw", given=None, **arguments):
    return fit(state, batches, section=given or section(kind=kind), loss=LOSS, seed=3, precision=None, **arguments)


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
    state = new_state(steps=60)
    steps = fit(
        state, lambda step: batches(step % 2), section=section(learning_rate=0.02), precision=None, seed=3,
        loss=LOSS,
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

    epochs = list(fit(state, broken, section=section(), loss=LOSS, seed=3, precision=None))
    assert digest(state) == before
    assert state.progress.skipped == STEPS
    assert "case_7, case_9" in caplog.text
    assert "train/loss" not in epochs[-1].metrics()
    state.progress.step, state.progress.steps = 0, 1000
    state.progress.skipped_cases["case_9"] += 1
    with pytest.raises(InputError, match="not finite in 21 steps, most often with cases case_9 in 22, case_7 in 21"):
        list(fit(state, broken, section=section(), loss=LOSS, seed=3, precision=None))


def test_validation_runs_on_the_average_and_leaves_training_mode_on():
    state, seen = new_state(), []

    def validate(network):
        seen.append((network is state.average, network.training))
        return {"a": 0.5, "b": 0.75}

    epochs = list(train(state, validate=validate))
    assert seen == [(True, False)] * 3
    assert epochs[0].metrics()["validation/dice"] == pytest.approx(0.625)
    assert state.network.training


def test_a_stop_amid_validation_makes_up_for_it_after_the_next_start(tmp_path):
    whole, calls = new_state(), []
    list(train(whole, validate=lambda _: {"a": 0.5}))

    def interrupted(_):
        calls.append(1)
        raise Interrupted

    first = new_state()
    results = []
    for result in train(first, validate=interrupted):
        save_state(tmp_path, first)
        results.append((result.step, result.complete))
    assert results == [(5, False)]
    second = new_state()
    assert load_state(tmp_path, second)
    epochs = [(e.step, e.complete) for e in train(second, validate=lambda _: {"a": 0.5})]
    assert epochs == [(5, True), (10, True), (12, True)]
    assert digest(second) == digest(whole)
    assert second.progress.history == whole.progress.history


def test_the_state_is_saved_before_a_long_validation():
    state = new_state()
    given = section().model_copy(update={"save_minutes": 1e-9})
    results = [(e.step, e.complete) for e in train(state, given=given, validate=lambda _: {"a": 0.5})]
    assert results[4:6] == [(5, False), (5, True)]


def early(**values):
    given = section()
    return given.model_copy(
        update={
            "early_stopping": EarlyStoppingSection(**values),
            "budget": BudgetSection(steps=100, steps_per_epoch=5),
        }
    )


def test_early_stopping_cools_down_once_the_set_aside_cases_gain_no_more():
    scores = iter([0.1, 0.5, 0.5004, 0.4, 0.3, 0.9, 0.9])
    state = new_state(steps=100)
    given = early(patience_epochs=2, cooldown=0.25)
    epochs = [e for e in train(state, given=given, judge=lambda _: next(scores)) if e.complete]
    # best in epoch 2, patience over with epoch 4 after 20 steps, 25 % more of them
    assert [e.step for e in epochs] == [5, 10, 15, 20, 25]
    assert state.progress.legs[-1] == (20, 25, epochs[3].learning_rate)
    assert "no gain on set-aside cases since epoch 2; ends at 25" in state.progress.events[0]
    assert epochs[1].metrics()["inner/dice"] == 0.5
    assert epochs[-1].learning_rate == pytest.approx(epochs[3].learning_rate / 5)


def test_early_stopping_is_the_same_after_a_stop(tmp_path):
    def judge(network):
        return [0.1, 0.5, 0.5, 0.4][min(3, state.progress.step // 5 - 1)]

    given = early(patience_epochs=2)
    state = whole = new_state(steps=100)
    list(train(whole, given=given, judge=judge))
    state = new_state(steps=100)
    for _ in train(state, given=given, judge=judge, stop=lambda: state.progress.step in (7, 15)):
        save_state(tmp_path, state)
    for _ in range(3):
        state = new_state(steps=100)
        assert load_state(tmp_path, state)
        for _ in train(state, given=given, judge=judge, stop=lambda s=state: s.progress.step == 21):
            save_state(tmp_path, state)
    assert digest(state) == digest(whole)
    assert state.progress.legs == whole.progress.legs
    assert whole.progress.steps == 22


def slow_machine(monkeypatch, seconds, **budget):
    """Trains where each step takes ``seconds`` though it was timed at one, with a minute for 60 of them."""
    now = [0.0]
    monkeypatch.setattr("medseg.training.loop.time.monotonic", lambda: now[0])
    state = new_state(steps=58)
    state.progress.pace = {"step": 1.0, "validation": 0.0, "save": 0.0}
    given = section().model_copy(update={"budget": BudgetSection(minutes=1.0, steps_per_epoch=10, **budget)})

    def made(step):
        now[0] += seconds
        return batches(step)

    list(fit(state, made, section=given, loss=LOSS, seed=3, precision=None))
    return state.progress, now[0]


def test_a_slower_machine_takes_longer_and_says_so(monkeypatch, caplog):
    progress, seconds = slow_machine(monkeypatch, 1.5)
    assert (progress.step, seconds) == (58, pytest.approx(87.0))
    assert "1.500 s a step in place of 1.000; the run will take about 45 % longer than its 1 minutes" in caplog.text
    assert caplog.text.count("slower than when the budget was planned") == 1
    assert progress.events == []


def test_a_hard_budget_ends_in_time_on_a_decayed_rate(monkeypatch):
    progress, seconds = slow_machine(monkeypatch, 1.5, hard=True)
    assert 57 <= seconds <= 60
    assert progress.steps == progress.step == progress.legs[-1][1]
    assert "budget.hard cut the run from 58 to" in progress.events[0]
    assert progress.history[-1]["learning_rate"] < 1e-4


def test_a_hard_budget_leaves_a_machine_in_time_alone(monkeypatch):
    progress, _ = slow_machine(monkeypatch, 1.0, hard=True)
    assert (progress.step, progress.events) == (58, [])
