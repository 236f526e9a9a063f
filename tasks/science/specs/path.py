"""The kinds of path between two endpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from tasks.science.specs.cell import Cell
from tasks.science.specs.corrections import check_correction
from tasks.science.specs.data import check_halves
from tasks.science.specs.identity import spec_id
from tasks.science.specs.measurement import Measurement, evaluation_set, statistics_set
from tasks.science.specs.pairing import Member, Pairing

Method = Literal["weights", "ensemble", "joint", "logit-shift", "logit-shift/chosen=test"]
"""The kind of a path as tables write it."""

ShiftChoice = Literal["train", "test"]
"""The images that a logit shift is fitted to: train images that the endpoint was not trained on, or the test images
that the endpoint is evaluated on."""


@dataclass(frozen=True)
class WeightPath:
    """The networks whose weights lie between those of A and of the aligned B, under one correction."""

    pairing: Pairing
    correction: str
    measurement: Measurement

    method: ClassVar[Method] = "weights"

    def __post_init__(self) -> None:
        cell = self.pairing.cell
        check_correction(self.correction, cell.normalization, cell.architecture)
        if self.pairing.samples != self.measurement.samples:
            raise ValueError(
                f"a path of measurement {self.measurement.name} needs a pairing made from the same images: "
                f"{self.measurement.samples}, got {self.pairing.samples}"
            )

    @cached_property
    def id(self) -> str:
        cell = self.pairing.cell
        spec = {
            "merge": self.pairing.id,
            "correction": self.correction,
            "measurement": self.measurement,
            "data": cell.data.fingerprint,
            # An uncorrected path has its variance ratios from the same samples.
            "statistics": statistics_set(cell, self.measurement.samples),
        }
        return spec_id(("correct", "evaluate"), spec, cell.revisions)


@dataclass(frozen=True)
class UnmergedPath(ABC):
    """A path on which no weights are averaged, so that no matcher and no correction changes it."""

    cell: Cell
    a: Member
    b: Member
    measurement: Measurement

    correction: ClassVar[str] = "none"

    @property
    @abstractmethod
    def method(self) -> Method: ...

    @cached_property
    def pairing(self) -> Pairing:
        return Pairing(self.cell, self.a, self.b, "none", self.measurement.samples)

    @property
    def ends(self) -> tuple[Member, Member]:
        """The endpoints at alpha 0 and alpha 1."""
        return self.a, self.b

    @cached_property
    def id(self) -> str:
        """The same for all samples that statistics may come from, since none are needed."""
        spec = {"merge": self.pairing.id, "method": self.method, **evaluation_set(self.cell, self.measurement)}
        return spec_id(("evaluate",), spec | self._own_parts)

    @property
    def _own_parts(self) -> dict[str, Any]:
        """The parts of the id that this kind alone has."""
        return {}


@dataclass(frozen=True)
class EnsemblePath(UnmergedPath):
    """The averages of A's and B's outputs."""

    @property
    def method(self) -> Method:
        return "ensemble"

    @property
    def _own_parts(self) -> dict[str, Any]:
        return {"alphas": self.measurement.alphas}


@dataclass(frozen=True)
class LogitShiftPath(UnmergedPath):
    """A and B, each with a constant added to half of its logits; nothing lies between them."""

    chosen_on: ShiftChoice = "train"

    def __post_init__(self) -> None:
        check_halves(self.cell.data, f"the method {self.method}")

    @property
    def method(self) -> Method:
        return "logit-shift" if self.chosen_on == "train" else "logit-shift/chosen=test"


@dataclass(frozen=True)
class JointPath(UnmergedPath):
    """Two networks trained on both halves of the data, set beside A and B, whose seeds they have.

    They are endpoints of `Cell.joint`; nothing lies between them.
    """

    joint_a: Member
    joint_b: Member

    def __post_init__(self) -> None:
        check_halves(self.cell.data, f"the method {self.method}")
        seeds, given = (self.a.seed, self.b.seed), (self.joint_a.seed, self.joint_b.seed)
        if given != seeds:
            raise ValueError(f"joint training beside seeds {seeds} needs endpoints of these seeds, got {given}")

    @property
    def method(self) -> Method:
        return "joint"

    @property
    def ends(self) -> tuple[Member, Member]:
        return self.joint_a, self.joint_b

    @property
    def _own_parts(self) -> dict[str, Any]:
        return {"joint": [member.weights_sha256 for member in self.ends]}


Path = WeightPath | UnmergedPath
"""What is measured of a pair with one measurement: each has a `pairing`, a `method`, a `correction` and an `id`."""
