"""Two endpoints of a cell with a matcher, and the paths between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import check_choice
from tasks.science.specs.corrections import check_correction
from tasks.science.specs.identity import spec_id
from tasks.science.specs.matchers import MatcherChoice, parse_matcher
from tasks.science.specs.measurement import ALL_SAMPLES, Measurement, Samples, statistics_set

ShiftMethod = Literal["logit-shift", "logit-shift/chosen=test"]
"""Of which images the constant on half of an endpoint's logits is the best: of train images that the endpoint was not
trained on, or of the test images that it is judged by."""


Method = Literal["weights", "ensemble", "joint", ShiftMethod]
"""What a path averages; or that it averages nothing and has its two ends alone: the endpoints with their logits
shifted, or networks trained on both halves of the data in place of one."""


@dataclass(frozen=True)
class Member:
    """An endpoint that takes part in a pair, by the weights it really has."""

    seed: int
    endpoint_id: str
    weights_sha256: str

    def moments_id(self, cell: Cell, samples: Samples, *, blocks: bool) -> str:
        """Of its moments as an endpoint of `cell`; with `blocks` those of residual blocks' outputs too."""
        spec: dict[str, Any] = {"network": cell.network, "weights": self.weights_sha256, "moments": True}
        if blocks:
            spec["blocks"] = True
        return spec_id(("correct",), {**spec, "statistics": statistics_set(cell, samples)}, cell.revisions)

    def evaluation_id(self, cell: Cell, measurement: Measurement) -> str:
        """Of its evaluation, as it was trained, as an endpoint of `cell`."""
        spec: dict[str, Any] = {"network": cell.network, "weights": self.weights_sha256}
        spec |= measurement.viewing.changes
        return spec_id(("evaluate",), {**spec, "data": cell.data.fingerprint, "evaluation": measurement.evaluation})


@dataclass(frozen=True)
class Pairing:
    """Two endpoints of a cell, A and B as `DataSpec.pairs` has them, and the matcher that permutes B into alignment
    with A. `samples` are what the matcher sees. Under the control `permuted-self` B is A with its units shuffled.
    """

    cell: Cell
    a: Member
    b: Member
    matcher: str
    samples: Samples = ALL_SAMPLES
    permuted_self: bool = False

    def __post_init__(self) -> None:
        # One text for one choice: an option at its default is left out.
        object.__setattr__(self, "matcher", parse_matcher(self.matcher).text)

    @property
    def control(self) -> str:
        """What it is a control for, by its word; empty for a pair of the study."""
        if self.permuted_self:
            return "permuted-self"
        return "random-permutation" if self.choice.name == "random" else ""

    @property
    def choice(self) -> MatcherChoice:
        """The matcher and all of its options."""
        return parse_matcher(self.matcher)

    @property
    def n_statistics(self) -> int | None:
        """How many images the matcher sees; None for one that needs no data."""
        n_train = self.cell.data.n_train
        return min(self.samples.statistics or n_train, n_train) if self.choice.needs_data else None

    @property
    def id(self) -> str:
        """Keyed by the weights, not by the seeds: never the permutation of other weights than it was found for."""
        spec: dict[str, Any] = {
            "network": self.cell.network,
            "a": self.a.weights_sha256,
            "b": self.b.weights_sha256,
            "matcher": self.matcher,
        }
        if self.permuted_self:
            spec["control"] = self.control
        if self.cell.epoch is not None or self.cell.origin is not None:
            # Early weights may be those of another cell as well, as the initial ones are at any learning rate, and the
            # same file may be imported as two cells; each cell has pairs of its own all the same.
            spec["cell"] = self.cell.id
        if self.matcher == "none":
            return spec_id((), spec)
        if self.choice.needs_data:
            spec["statistics"] = statistics_set(self.cell, self.samples)
        return spec_id(("match",), spec)


@dataclass(frozen=True)
class Path:
    """The curve of one pairing under one correction, over one measurement. With the method `ensemble` outputs are
    averaged instead of weights, and with a logit shift each end is an endpoint with a constant on half of its logits:
    so there is no matcher and no correction. With the method `joint` the ends are `joint`, what the pair is set beside:
    the endpoints of `Cell.joint` with the seeds of A and B."""

    pairing: Pairing
    correction: str
    measurement: Measurement
    method: Method = "weights"
    joint: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        cell = self.pairing.cell
        check_choice("", "method", self.method, Method)
        if self.method == "ensemble" and (self.pairing.matcher, self.correction) != ("none", "none"):
            raise ValueError(
                "an ensemble averages outputs, which no matcher or correction changes, got "
                f"{self.pairing.matcher} and {self.correction}"
            )
        if self.method == "joint" or self.method in get_args(ShiftMethod):
            if (self.pairing.matcher, self.correction) != ("none", "none"):
                raise ValueError(
                    f"the method {self.method} merges nothing, so there is nothing to match or correct, got "
                    f"{self.pairing.matcher} and {self.correction}"
                )
            if not cell.data.halves:
                raise ValueError(f"the method {self.method} needs data in halves, and {cell.data.name} is not")
        joint_seeds = (self.pairing.a.seed, self.pairing.b.seed) if self.method == "joint" else ()
        if tuple(member.seed for member in self.joint) != joint_seeds:
            raise ValueError(
                f"the method {self.method} needs endpoints trained on both halves with seeds {joint_seeds}, "
                f"got {tuple(member.seed for member in self.joint)}"
            )
        check_correction(self.correction, cell.normalization, cell.shipped_architecture)
        if self.pairing.samples != self.measurement.samples:
            raise ValueError(
                f"a path of measurement {self.measurement.name} needs a pairing made from the same images: "
                f"{self.measurement.samples}, got {self.pairing.samples}"
            )

    @property
    def id(self) -> str:
        if self.method != "weights":  # It needs no statistics, so all choices of them share it.
            spec: dict[str, Any] = {
                "merge": self.pairing.id,
                "method": self.method,
                "evaluation": self.measurement.evaluation,
                "data": self.pairing.cell.data.fingerprint,
            }
            spec |= self.measurement.viewing.changes
            if self.method == "ensemble":
                spec["alphas"] = self.measurement.alphas
            if self.joint:
                spec["joint"] = [member.weights_sha256 for member in self.joint]
            return spec_id(("evaluate",), spec)
        spec = {
            "merge": self.pairing.id,
            "correction": self.correction,
            "measurement": self.measurement,
            "data": self.pairing.cell.data.fingerprint,
            # An uncorrected path has its variance ratios from the same samples.
            "statistics": statistics_set(self.pairing.cell, self.measurement.samples),
        }
        return spec_id(("correct", "evaluate"), spec, self.pairing.cell.revisions)
