import numpy as np
import pytest
import torch
from torch.nn import functional

from medseg.config.train_sections import LossSection
from medseg.errors import ConfigError
from medseg.networks.build import build_network
from medseg.training.losses import build_loss, supervised_loss, supervised_sums, supervised_value
from tests.training.overfit import least_dice, masks, masks_after_infer, overfit, tensors, toy_cases, toy_plan

KINDS = LossSection.model_fields["kind"].annotation.__args__
NESTED = [[False, True, True], [False, False, True]]  # combinations 1 (outer alone) and 2 (outer and inner)


def loss_of(kind, *, batch_dice=True, regions=None, **section):
    return build_loss(LossSection(kind=kind, **section), class_count=3, batch_dice=batch_dice, regions=regions)


def batch_of(channels, *, size=(6, 5), count=4, dtype=torch.float64):
    torch.manual_seed(5)
    logits = torch.randn(count, channels, *size, dtype=dtype, requires_grad=True)
    return logits, torch.randint(0, 3, (count, *size), dtype=torch.uint8)


def test_equal_to_monai_where_definitions_coincide():
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits, classes = torch.randn(2, 3, 6, 5, 4), torch.randint(0, 3, (2, 6, 5, 4))
    shared = {"softmax": True, "to_onehot_y": True, "include_background": False}
    for batch in (False, True):
        theirs = {
            "dice_ce": losses.DiceCELoss(**shared, batch=batch),
            "dice": losses.DiceLoss(**shared, batch=batch),
            "jaccard": losses.DiceLoss(**shared, batch=batch, jaccard=True),
            "tversky": losses.TverskyLoss(**shared, batch=batch, alpha=0.3, beta=0.7),
            "generalised_dice": losses.GeneralizedDiceLoss(**shared, batch=batch, smooth_nr=1e-9, smooth_dr=1e-9),
        }
        for kind, their in theirs.items():
            ours = supervised_loss(logits, classes, loss_of(kind, batch_dice=batch))
            assert float(ours) == pytest.approx(float(their(logits, classes[:, None])), rel=2e-5), kind
    focal = losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)(logits, classes[:, None])
    # MONAI divides by the classes too: its one-hot rows hold one term and K - 1 zeros.
    assert float(supervised_loss(logits, classes, loss_of("focal"))) == pytest.approx(3 * float(focal), rel=1e-5)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("regions", [None, NESTED])
@pytest.mark.parametrize("kind", KINDS)
def test_splitting_a_batch_changes_neither_loss_nor_gradient(kind, regions, partial, batch_dice):
    loss = loss_of(kind, batch_dice=batch_dice, regions=regions, label_smoothing=0.1, class_weights=None)
    logits, classes = batch_of(3 if regions is None else 2)
    coarse = torch.randn(4, logits.shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    heads = (logits, coarse, coarse.detach()[..., :2])
    classes[0, :2] = 255
    classes[1] = 255  # a patch nobody labelled
    known = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.bool) if partial else None
    whole = supervised_loss(heads, classes, loss, known)
    gradients = torch.autograd.grad(whole, (logits, coarse), retain_graph=True)
    assert torch.isfinite(whole)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    for size in (1, 2):
        parts = [
            supervised_sums(
                [head[i : i + size] for head in heads],
                classes[i : i + size],
                None if known is None else known[i : i + size],
                loss,
            )
            for i in range(0, 4, size)
        ]
        total = torch.stack(parts).sum(0).detach()
        assert float(supervised_value(total, loss)) == pytest.approx(float(whole.detach()), rel=1e-10, abs=1e-12)
        for part in parts:
            supervised_value(part + (total - part).detach(), loss).backward(retain_graph=True)
        for tensor, gradient in zip((logits, coarse), gradients, strict=True):
            assert torch.allclose(tensor.grad, gradient, rtol=1e-9, atol=1e-12)
            tensor.grad = None


@pytest.mark.parametrize("regions", [None, NESTED])
@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_no_whole_batch_needs_only_the_labels_sums(kind, regions):
    loss = loss_of(kind, batch_dice=False, regions=regions)
    assert not loss.needs_whole_batch
    logits, classes = batch_of(3 if regions is None else 2)
    classes[0, :2] = 255
    whole = torch.autograd.grad(supervised_loss(logits, classes, loss), logits)[0]
    # The others' sums from logits of zeros: wrong where they depend on the network, right where on labels alone.
    foreseen = supervised_sums(torch.zeros_like(logits), classes, None, loss)
    own = supervised_sums(torch.zeros_like(logits[:1]), classes[:1], None, loss)
    local = supervised_sums(logits[:1], classes[:1], None, loss)
    gradient = torch.autograd.grad(supervised_value(local + (foreseen - own), loss), logits)[0]
    assert torch.allclose(gradient[:1], whole[:1], rtol=1e-9, atol=1e-12)


def test_only_overlaps_over_the_batch_need_it_whole():
    assert loss_of("dice_ce").needs_whole_batch
    assert not loss_of("ce").needs_whole_batch
    assert not loss_of("dice_ce", dice_weight=0).needs_whole_batch


def test_a_batch_nobody_labelled_costs_nothing():
    for kind in KINDS:
        loss = loss_of(kind, dice_weight=0 if kind not in ("dice", "tversky", "jaccard", "generalised_dice") else 1)
        logits = torch.randn(2, 3, 6, 5, requires_grad=True)
        value = supervised_loss(logits, torch.full((2, 6, 5), 255, dtype=torch.uint8), loss)
        assert float(value.detach()) == pytest.approx(0, abs=1e-6)
        value.backward()
        assert torch.isfinite(logits.grad).all()
    nothing_known = torch.tensor([[1, 0, 0]] * 2, dtype=torch.bool)
    value = supervised_loss(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4), loss_of("dice_ce"), nothing_known)
    assert float(value) == 0  # background or anything else: always true


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 3, 300, 300, dtype=torch.float16)
    sums = supervised_sums(logits, torch.zeros(1, 300, 300, dtype=torch.uint8), None, loss_of("dice_ce"))
    assert sums.dtype == torch.float32
    assert torch.isfinite(sums).all()


class MeanLogit:
    """Keeps what it is asked."""

    needs_whole_batch = False

    def __init__(self):
        self.seen = []

    def sums(self, logits, classes, known=None):
        self.seen.append(tuple(classes.shape))
        return logits.mean()[None]

    def value(self, sums):
        return sums[0]


def test_heads_are_weighted_1_to_one_half_and_the_coarsest_left_out():
    loss = MeanLogit()
    outputs = [torch.full((1, 2, n, n), value) for n, value in ((8, 1.0), (4, 4.0), (2, 100.0))]
    total = supervised_loss(outputs, torch.zeros(1, 8, 8, dtype=torch.uint8), loss)
    assert float(total) == pytest.approx((1 * 1.0 + 0.5 * 4.0) / 1.5)
    assert loss.seen == [(1, 8, 8), (1, 4, 4)]
    assert float(supervised_loss(outputs[:1], torch.zeros(1, 8, 8), loss)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_falls_with_a_better_answer(kind):
    torch.manual_seed(3)
    loss = loss_of(kind)
    classes = torch.randint(0, 3, (1, 8, 8))
    right = functional.one_hot(classes.long(), 3).movedim(-1, 1).float()
    values = [float(supervised_loss(share * right, classes, loss)) for share in (5, 1, -1)]
    assert values == sorted(values)
    regions = loss_of(kind, regions=NESTED)
    members = torch.tensor(NESTED).float()
    right = members[:, classes].movedim(0, 1) * 2 - 1
    values = [float(supervised_loss(share * right, classes, regions)) for share in (5, 1, -1)]
    assert values == sorted(values)


def test_weights_that_name_no_class_are_refused():
    section = LossSection(class_weights={"tumor": 2.0})
    with pytest.raises(
        ConfigError, match=r"class_weights: names tumor, expected classes of the manifest \(background, tumour"
    ):
        build_loss(section, class_count=2, batch_dice=True, class_names=("background", "tumour"))


def test_class_weights_count_in_dice_and_cross_entropy():
    names = ("background", "a", "b")
    logits, classes = batch_of(3)

    def value(kind, weights):
        section = LossSection(kind=kind, class_weights=weights)
        return float(
            supervised_loss(
                logits, classes, build_loss(section, class_count=3, batch_dice=True, class_names=names)
            ).detach()
        )

    expected = functional.cross_entropy(
        logits, classes.long(), weight=torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64)
    )
    assert value("ce", {"b": 3.0}) == pytest.approx(float(expected.detach()))
    only_a, only_b = value("dice", {"b": 0.0}), value("dice", {"a": 0.0})
    assert value("dice", {"b": 3.0}) == pytest.approx((only_a + 3 * only_b) / 4)


# High for 60 steps: a loss of overlaps alone hardly moves a class that is not found yet, intersection over union least of all.
RATE = 4e-2
RATES = {"jaccard": 0.12, "topk_ce": 2e-2}


def toy_network(dimensions, outputs=3):
    torch.manual_seed(0)
    z = 1 if dimensions == 2 else 2
    return {
        "kind": "unet", "dimensions": dimensions, "channels": 1, "classes": outputs, "features": [8, 16, 16],
        "strides": [[1, 1, 1], [2, 2, z], [2, 2, z]], "kernel_sizes": [[3, 3, 1 if z == 1 else 3]] * 3,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_learns_two_cases_and_draws_the_same_after_infer(kind, dimensions, tmp_path):
    architecture = toy_network(dimensions)
    network = build_network(architecture)
    loss = loss_of(kind)
    rate = RATES.get(kind, RATE)
    overfit(network, dimensions, rate=rate, objective=lambda outputs, classes: supervised_loss(outputs, classes, loss))
    predicted = masks(network, dimensions)
    assert least_dice(predicted, toy_cases(dimensions)[1]) >= 0.9
    found = masks_after_infer(tmp_path / "model", network, architecture, toy_plan(dimensions))
    assert np.array_equal(found, predicted)


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
def test_overlapping_regions_are_learnt_and_come_back_as_labels(dimensions, tmp_path):
    plan = toy_plan(dimensions, labels={"background": (0,), "organ": (1, 2), "core": (2,)})
    architecture = toy_network(dimensions, plan.output_count)
    network = build_network(architecture)
    loss = loss_of("dice_ce", regions=plan.regions.members)
    overfit(network, dimensions, rate=RATE, objective=lambda outputs, classes: supervised_loss(outputs, classes, loss))
    found = masks_after_infer(tmp_path / "model", network, architecture, plan)
    assert least_dice(found, toy_cases(dimensions)[1]) >= 0.9
    images, _ = tensors(*toy_cases(dimensions), dimensions)
    with torch.no_grad():
        logits = torch.cat([network(image[None]) for image in images]).movedim(1, 0).numpy()
    assert np.array_equal(found, plan.regions.decide(logits).reshape(found.shape))


@pytest.mark.slow
def test_a_class_nobody_looked_for_is_learnt_from_the_other_case():
    """The first case is labelled for the organ only: its core is called background."""
    _, truth = toy_cases(2)
    told = torch.from_numpy(np.where((truth == 2) & (np.arange(2) == 0)[:, None, None, None], 0, truth)[..., 0])
    known = torch.tensor([[True, True, False], [True, True, True]])
    dice = {}
    for name, asked in (("marginal", known), ("naive", None)):
        network, loss = build_network(toy_network(2)), loss_of("dice_ce")

        def objective(outputs, _, loss=loss, asked=asked):
            return supervised_loss(outputs, told, loss, asked)

        overfit(network, 2, rate=RATE / 2, objective=objective)
        found = masks(network, 2)[0] == 2
        dice[name] = 2 * (found & (truth[0] == 2)).sum() / (found.sum() + (truth[0] == 2).sum())
    assert dice["marginal"] > 0.5
    assert dice["naive"] < 0.1
