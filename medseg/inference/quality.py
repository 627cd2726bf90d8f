"""How good a mask is expected to be, without its truth: uncertainty and expected Dice per structure, and what is odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medseg.imaging import Volume
from medseg.imaging.volume import FloatArray
from medseg.inference.appearance import seen_image
from medseg.inference.calibration import Calibration, read_calibration, risk_of
from medseg.inference.contract import InputContract, Verdict, check_scan, check_volumes, least_contract
from medseg.inference.disagreement import Voted, VotingEngine
from medseg.inference.engine import Engine
from medseg.inference.ensemble import MaskMaker
from medseg.inference.measures import Measures
from medseg.inference.model import Model
from medseg.inference.probability_maps import map_names, voting, write_maps
from medseg.inference.uncertainty import Evidence, gather_evidence

__all__ = ["CaseQuality", "Judge", "assess", "map_names", "write_maps"]


@dataclass(frozen=True, kw_only=True)
class CaseQuality:
    """What is known of one mask without its truth; per class name without background.

    Attributes:
        expected_dice: None where the model brings no calibration, or a structure is neither found nor always there.
        dice_bound: what the Dice exceeds with the calibration's coverage (0.9).
        uncertainty: mean entropy over the structure, 0 (certain) to 1; None where it is empty or was not measured.
        disagreement: how unlike the members' masks of a structure are (`disagreement_of_structures`); empty unless asked for.
        risk: 1 minus the mean expected Dice, or the mean uncertainty where that is unknown; what reviews are sorted by.
        flags: what is odd about the mask, as sentences: empty or tiny structures, volumes outside the training range.
        evidence: what the estimate was made of.
    """

    expected_dice: Mapping[str, float | None] = field(default_factory=dict)
    dice_bound: Mapping[str, float | None] = field(default_factory=dict)
    uncertainty: Mapping[str, float | None] = field(default_factory=dict)
    disagreement: Mapping[str, float] = field(default_factory=dict)
    risk: float | None = None
    flags: tuple[str, ...] = ()
    evidence: Evidence | None = None

    def reported(self) -> CaseQuality:
        """The same without the evidence, which only the sidecar keeps."""
        return replace(self, evidence=None)


class Judge:
    """One run's judge of scans and masks: the model's contract and calibration, loaded once. Safe to share by threads.

    Args:
        engine: whose scans and masks are judged.

    Raises:
        ModelError: the model's contract or calibration is damaged or of a newer medseg.
    """

    def __init__(self, engine: MaskMaker) -> None:
        self._engine, section = engine, engine.section
        self._level, self._measure = section.contract, section.quality
        models = engine.models
        self.contract = contract_of_model(models[0])
        self._least = least_contract(engine.plan)
        self.calibration = calibration_of(models) if section.quality else None

    def check(self, volume: Volume) -> Verdict:
        """See `check_scan`; refusals are warnings with ``infer.contract: warn``, and nothing is looked at with ``off``."""
        if self._level == "off":
            return Verdict()
        verdict = check_scan(volume, self.contract or self._least)
        return verdict if self._level == "refuse" else verdict.softened()

    def assess(self, scores: Any, grid: Any, measures: Measures, *, image: Any = None) -> CaseQuality:
        """The quality of a mask.

        Args:
            scores: what the engine's ``scores`` gave.
            grid: what its ``prepare`` gave beside the array.
            measures: of the finished mask.
            image: what its ``prepare`` gave, or `seen_image` of it; None leaves out what the scan looks like.
        """
        return self._judged(self._evidence(scores, grid, image) if self._measure else None, measures)

    def again(self, kept: Mapping[str, Any], measures: Measures) -> CaseQuality:
        """The quality of a mask that was made before, from what its sidecar keeps (`plain`), by today's calibration."""
        return self._judged(evidence_from_plain(kept) if self._measure else None, measures)

    @staticmethod
    def plain(quality: CaseQuality) -> dict[str, Any]:
        """What a sidecar keeps (``extra["quality"]``): only what follows from scan and model, not from the calibration."""
        return {} if quality.evidence is None else asdict(quality.evidence)

    def _evidence(self, scores: Any, grid: Any, image: Any = None) -> Evidence:
        slabs, spacing = _slabs(self._engine, scores, grid)
        regions = self._engine.plan.regions is not None
        names = self._engine.class_names
        # Only there the slabs' grid is the network's.
        seen = seen_image(image) if type(self._engine) in (Engine, VotingEngine) else None
        evidence = gather_evidence(slabs, class_names=names, spacing_xyz_mm=spacing, regions=regions, image=seen)
        if not isinstance(scores, Voted):
            return evidence
        unlike = {
            name: value for name, value in voting(self._engine).disagreements(scores).items() if value is not None
        }
        structures = {
            name: {**own, **({"disagreement": unlike[name]} if name in unlike else {})}
            for name, own in evidence.structures.items()
        }
        return replace(evidence, structures=structures)

    def _judged(self, evidence: Evidence | None, measures: Measures) -> CaseQuality:
        flags = self._flags(measures)
        if evidence is None:
            return CaseQuality(flags=flags)
        estimates = {name: self._estimate(evidence, name, count) for name, count in measures.voxels.items()}
        expected = {name: None if one is None else one[0] for name, one in estimates.items()}
        uncertainty = {name: evidence.structures.get(name, {}).get("entropy") for name in measures.voxels}
        return CaseQuality(
            expected_dice=expected,
            dice_bound={name: None if one is None else one[1] for name, one in estimates.items()},
            uncertainty=uncertainty,
            disagreement={
                name: own["disagreement"] for name, own in evidence.structures.items() if "disagreement" in own
            },
            risk=risk_of(expected, uncertainty),
            flags=flags,
            evidence=evidence,
        )

    def _estimate(self, evidence: Evidence, name: str, voxels: int) -> tuple[float, float] | None:
        """(expected Dice, bound) of a class; 0 where it is empty although every training case has it."""
        if self.calibration is None:
            return None
        if voxels == 0:
            always = self.contract is not None and self.contract.present.get(name) == 1
            return (0.0, 0.0) if always else None
        return self.calibration.estimate(evidence.structures, name)

    def _flags(self, measures: Measures) -> tuple[str, ...]:
        if self._level == "off":
            return ()
        pixels = None if measures.volume_ml else measures.voxels
        return check_volumes(measures.volume_ml, self.contract, pixels=pixels)


def assess(scores: Any, grid: Any, measures: Measures, *, judge: Judge) -> CaseQuality:
    """See `Judge.assess`."""
    return judge.assess(scores, grid, measures)


def contract_of_model(model: Model) -> InputContract | None:
    """The input contract in a model's folder; None where it has none.

    Raises:
        ModelError: it can't be read.
    """
    plain = model.info.get("contract")
    return None if plain is None else InputContract.from_plain(plain)


def calibration_of(models: Sequence[Model]) -> Calibration | None:
    """The calibration of a model folder, single or ensemble, that was loaded as ``models``.

    Models of several folders that are averaged have none, whatever each of them has for itself.

    Raises:
        ModelError: it is damaged, or of another model.
    """
    folders = {model.folder.parent if len(models) > 1 else model.folder for model in models}
    return read_calibration(folders.pop()) if len(folders) == 1 else None


def evidence_from_plain(value: Mapping[str, Any]) -> Evidence | None:
    """The inverse of `Judge.plain`; None where nothing was kept."""
    if not value:
        return None
    return Evidence(
        structures=value["structures"],
        inside=tuple(value["inside"]),
        outside=tuple(value["outside"]),
        voxel_ml=float(value["voxel_ml"]),
    )


def _slabs(engine: MaskMaker, scores: Any, grid: Any) -> tuple[Iterator[FloatArray], tuple[float, float, float]]:
    """(probabilities slab by slab, voxel size of their grid): the network's own grid where there is one: it costs less."""
    if type(engine) in (Engine, VotingEngine):
        assert isinstance(engine, Engine)
        return (slab for _, slab in engine.slabs(scores, grid, prepared=True)), grid.prepared_spacing_xyz_mm
    first = grid[0] if isinstance(grid, tuple) else grid
    return (slab for _, slab in engine.slabs(scores, grid)), first.spacing_xyz_mm
