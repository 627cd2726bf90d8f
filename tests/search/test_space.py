import numpy as np
import pytest

from medseg.errors import ConfigError
from medseg.search.space import Range, candidate_config, draw_candidates, load_space

SPACE = """\
train.optimiser.learning_rate: {log: [1e-4, 1e-2]}
train.foreground_share: {uniform: [0.2, 0.8]}
prepare.batch_size: {integer: [2, 4]}
train.loss.kind: [dice_ce, dice_focal]
"""


def space(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(path)


def test_draws_lie_in_their_ranges_and_use_them(tmp_path):
    drawn = draw_candidates(space(tmp_path, SPACE), 200, seed=1)
    assert drawn[0] == {}
    rates = np.array([d["train.optimiser.learning_rate"] for d in drawn[1:]])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    assert np.median(np.log10(rates)) == pytest.approx(-3, abs=0.2)  # even in the logarithm
    assert {d["prepare.batch_size"] for d in drawn[1:]} == {2, 3, 4}
    assert {d["train.loss.kind"] for d in drawn[1:]} == {"dice_ce", "dice_focal"}
    assert np.mean([d["train.foreground_share"] for d in drawn[1:]]) == pytest.approx(0.5, abs=0.05)


def test_a_candidate_depends_on_seed_and_number_alone(tmp_path):
    ranges = space(tmp_path, SPACE)
    assert draw_candidates(ranges, 9, seed=1)[:4] == draw_candidates(ranges, 4, seed=1)
    assert draw_candidates(ranges, 4, seed=1) != draw_candidates(ranges, 4, seed=2)


def test_values_keep_three_digits():
    assert len(str(Range("uniform", (0.2, 0.8)).draw(np.random.default_rng(0)))) <= 5


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds no keys"),
        ("- a\n", "holds no keys"),
        ("data.fold: [0, 1]\n", r"space\.yaml:1: data\.fold: can't be searched"),
        ("train.budget.minutes: {log: [1, 2]}\n", "can't be searched"),
        ("train.seed: {}\n", "is no range"),
        ("train.foreground_share: []\n", "empty list"),
        ("train.foreground_share: {gauss: [0, 1]}\n", "is no range"),
        ("train.foreground_share: {uniform: [1, 0]}\n", "the lower one first"),
        ("train.foreground_share: {uniform: [a, b]}\n", "expected two numbers"),
        ("train.optimiser.learning_rate: {log: [0, 1]}\n", "expected a positive number"),
        ("prepare.batch_size: {integer: [1.5, 4]}\n", "two whole numbers"),
        ("train.x: [1]\ntrain.x: [2]\n", "train.x"),
    ],
)
def test_faults_are_named(tmp_path, text, fault):
    with pytest.raises(ConfigError, match=fault):
        space(tmp_path, text)


def test_a_missing_space_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read"):
        load_space(tmp_path / "none.yaml")


def test_a_candidate_is_a_checked_config(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ndata:\n  manifest: m.json\n")
    config = candidate_config(path, ("seed=7",), {"train.optimiser.learning_rate": 0.002, "network.kind": "unet"})
    assert (config.seed, config.train.optimiser.learning_rate) == (7, 0.002)
    with pytest.raises(ConfigError, match=r"train\.optimiser\.momentum"):
        candidate_config(path, (), {"train.optimiser.momentum": 2.0})
