"""A small student that learns from a trained model: the config's network with a share of its features.

Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): beside the labels, the student is asked for the teacher's
probabilities, softened by a temperature T. Their cross term is T^2 times the mean over voxels of KL(teacher || student), over
classes that exclude each other; for regions the mean over regions of that of two outcomes. The teacher sees the same
augmented patches, so its answers fit them. State, budget, resume and validation are those of any other run.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.config.network_sections import DynUNetSection, NetworkSection, UNetSection
from medseg.config.sections import DistilSection
from medseg.durable import sha256_json
from medseg.errors import InputError, UsageError
from medseg.inference.engine import SHARED_BY_AN_ENSEMBLE
from medseg.inference.model import Model
from medseg.preparation.plan import Plan
from medseg.training.inputs import TrainingInputs
from medseg.training.losses import Loss
from medseg.training.state import TrainState
from medseg.training.trainer import Trainer

_LOG = logging.getLogger(__name__)
_FEWEST = 4
_GROUPS = 8  # of group norm, which divides the features


def run_key(teacher: Sequence[Model], section: DistilSection) -> str:
    """Short text that tells runs with other teachers or settings apart; part of the run folder's name."""
    return sha256_json([[model.sha256 for model in teacher], section.model_dump(mode="json")])[:12]


def student_network(section: NetworkSection, plan: Plan, width: float) -> NetworkSection:
    """The same network with ``width`` times the features of every stage, 4 at least (multiples of 8 with group norm).

    Raises:
        InputError: the network is of a kind without a list of features.
    """
    if not isinstance(section, UNetSection | DynUNetSection):
        raise InputError(f"network.kind: is {section.kind}, expected unet or dynunet to be made narrower; change it")
    step = _GROUPS if isinstance(section, UNetSection) and section.norm == "group" else 1
    wide = section.features or plan.features
    features = tuple(max(_FEWEST, step, step * round(width * count / step)) for count in wide)
    return section.model_copy(update={"features": features})


def check_teacher(teacher: Sequence[Model], plan: Plan, *, fold: int | None) -> None:
    """Refuses a teacher that can't teach.

    Raises:
        UsageError: it was trained on cases that the student is validated on.
        InputError: it sees scans, or names classes, in another way than the prepared data.
    """
    for model in teacher:
        for name in (*SHARED_BY_AN_ENSEMBLE, "previous_channels"):
            own, wanted = getattr(model.plan, name), getattr(plan, name)
            if own != wanted:
                raise InputError(
                    f"{model.folder.name}: {name} of the teacher's plan is {own}, expected {wanted} as in the prepared data; "
                    "name a teacher that was trained on these"
                )
        if fold is not None and model.info.get("training", {}).get("fold") != fold:
            raise UsageError(
                f"{model.folder.name}: the teacher was trained on held-out cases of fold {fold}, expected none of them; "
                "set data.fold=null, or name the model of this fold"
            )


def teaching_networks(teacher: Sequence[Model], device: torch.device) -> list[nn.Module]:
    """Each member's network with its own weights, frozen, on the device."""
    networks = []
    for model in teacher:
        network = copy.deepcopy(model.ready()) if model.stream is not None else model.ready()
        networks.append(network.to(device).eval().requires_grad_(requires_grad=False))
    return networks


def with_teacher(networks: Sequence[nn.Module]) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that puts the teacher's logits behind the student's finest: (B, 2 K, ...); only while it trains."""

    def join(student: nn.Module, inputs: tuple[Tensor, ...], outputs: Any) -> Any:
        if not student.training:
            return outputs
        with torch.no_grad():
            taught = torch.stack([network(inputs[0]).float() for network in networks]).mean(dim=0)
        if isinstance(outputs, Tensor):
            return torch.cat((outputs.float(), taught), dim=1)
        return [torch.cat((outputs[0].float(), taught), dim=1), *outputs[1:]]

    return join


class DistillationLoss:
    """The run's own loss, and how far the student's probabilities are from the teacher's.

    Args:
        labels: the loss against labels.
        outputs: K of the student.
        share: of the teacher's term, the rest is the labels'.
        temperature: T, that logits are divided by.
        regions: whether the outputs are regions that overlap.
    """

    def __init__(self, labels: Loss, *, outputs: int, share: float, temperature: float, regions: bool) -> None:
        self._labels, self._outputs, self._share = labels, outputs, share
        self._temperature, self._regions = temperature, regions

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss against labels does."""
        return self._labels.needs_whole_batch

    def sums(self, logits: Tensor, classes: Tensor, known: Tensor | None = None) -> Tensor:
        """The labels' sums, then the sum of the divergence over voxels, and their number.

        Args:
            logits: (B, 2 K, ...), the student's and the teacher's; (B, K, ...) of a head without a teacher.
            classes: as in ``Loss``.
            known: likewise.
        """
        student, taught = logits[:, : self._outputs], logits[:, self._outputs :]
        labels = self._labels.sums(student, classes, known)
        if taught.shape[1] == 0:
            return torch.cat((labels, labels.new_zeros(2)))
        divergence = self._divergence(student.float(), taught.float())
        count = logits.shape[0] * logits[0, 0].numel()
        return torch.cat((labels, torch.stack((divergence, divergence.new_tensor(float(count)))).to(labels.dtype)))

    def _divergence(self, student: Tensor, taught: Tensor) -> Tensor:
        warm = self._temperature
        if not self._regions:
            own, other = functional.log_softmax(student / warm, 1), functional.log_softmax(taught / warm, 1)
            return warm**2 * functional.kl_div(own, other, reduction="sum", log_target=True)
        total = student.new_zeros(())
        for sign in (1.0, -1.0):  # inside, outside
            own, other = functional.logsigmoid(sign * student / warm), functional.logsigmoid(sign * taught / warm)
            total = total + functional.kl_div(own, other, reduction="sum", log_target=True)
        return warm**2 * total / self._outputs

    def value(self, sums: Tensor) -> Tensor:
        """Scalar; of a head without a teacher the labels' alone."""
        labels, (divergence, count) = self._labels.value(sums[:-2]), sums[-2:]
        both = (1 - self._share) * labels + self._share * divergence / count.clamp_min(1)
        return torch.where(count > 0, both, labels)


class DistillationTrainer(Trainer):
    """A run whose student also follows a teacher; ``functools.partial`` gives it teacher and settings.

    Args:
        inputs, architecture, parts: as ``Trainer``, of the student.
        teacher: from ``load_models``.
        settings: share, temperature.
    """

    def __init__(
        self,
        inputs: TrainingInputs,
        architecture: dict[str, Any],
        *,
        teacher: Sequence[Model],
        settings: DistilSection,
        **parts: Any,
    ) -> None:
        super().__init__(inputs, architecture, **parts)
        self._networks = teaching_networks(teacher, self.device)
        self.loss = DistillationLoss(
            self.loss,
            outputs=self.plan.output_count,
            share=settings.share,
            temperature=settings.temperature,
            regions=self.plan.regions is not None,
        )
        self._origin = f"distilled from {' '.join(model.sha256 for model in teacher)}, width {settings.width:g}"

    def new_state(self, start_weights: Callable[[nn.Module], None] | None = None) -> TrainState:
        """As the parent's, with the teacher behind the student."""
        state = super().new_state(start_weights)
        state.network.register_forward_hook(with_teacher(self._networks))
        return state

    def save_model(self, folder: Path, state: TrainState) -> None:
        """As the parent's; ``events`` of the training name the teacher."""
        if self._origin not in state.progress.events:
            state.progress.events.append(self._origin)
        super().save_model(folder, state)
