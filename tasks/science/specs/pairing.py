"""Two endpoints of a cell and the matcher that aligns them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import spec_id
from tasks.science.specs.matchers import MatcherChoice, parse_matcher
from tasks.science.specs.measurement import ALL_SAMPLES, Measurement, Samples, evaluation_set, statistics_set


@dataclass(frozen=True)
class Member:
    """An endpoint of a pair, with the digest of its weights."""

    seed: int
    endpoint_id: str
    weights_sha256: str

    def moments_id(self, cell: Cell, samples: Samples, *, blocks: bool) -> str:
        """Return the id of its moments as an endpoint of `cell`, with `blocks` also of residual blocks' outputs."""
        spec = self._network(cell) | {"moments": True, "statistics": statistics_set(cell, samples)}
        return spec_id(("correct",), spec | ({"blocks": True} if blocks else {}), cell.revisions)

    def evaluation_id(self, cell: Cell, measurement: Measurement) -> str:
        """Return the id of its evaluation, as it was trained, as an endpoint of `cell`."""
        return spec_id(("evaluate",), self._network(cell) | evaluation_set(cell, measurement))

    def _network(self, cell: Cell) -> dict[str, Any]:
        return {"network": cell.network, "weights": self.weights_sha256}


@dataclass(frozen=True)
class Pairing:
    """Two endpoints of a cell, A and B as `DataSpec.pairs` has them, and the matcher that aligns B with A.

    `samples` are what the matcher sees. Under the control `permuted-self` B is A with its units shuffled.
    """

    cell: Cell
    a: Member
    b: Member
    matcher: str
    samples: Samples = ALL_SAMPLES
    permuted_self: bool = False

    def __post_init__(self) -> None:
        # One text for one choice: options at their defaults are left out.
        object.__setattr__(self, "matcher", parse_matcher(self.matcher).text)

    @property
    def control(self) -> str:
        """The name of the control that it is; empty for a pair of the study."""
        if self.permuted_self:
            return "permuted-self"
        return "random-permutation" if self.choice.name == "random" else ""

    @property
    def choice(self) -> MatcherChoice:
        """The matcher and all of its options."""
        return parse_matcher(self.matcher)

    @property
    def n_statistics(self) -> int | None:
        """The number of images that the matcher sees; None for one that needs no data."""
        n_train = self.cell.data.n_train
        return min(self.samples.statistics or n_train, n_train) if self.choice.needs_data else None

    @cached_property
    def id(self) -> str:
        """Keyed by weights instead of seeds, so that a permutation is never applied to other weights."""
        spec: dict[str, Any] = {
            "network": self.cell.network,
            "a": self.a.weights_sha256,
            "b": self.b.weights_sha256,
            "matcher": self.matcher,
        }
        if self.permuted_self:
            spec["control"] = self.control
        if self.cell.epoch is not None or self.cell.origin is not None:
            # Another cell may have the same weights: initial weights are the same at any learning rate, and a file may
            # be imported as two cells. Each cell has pairs of its own.
            spec["cell"] = self.cell.id
        if self.matcher == "none":
            return spec_id((), spec)
        if self.choice.needs_data:
            spec["statistics"] = statistics_set(self.cell, self.samples)
        return spec_id(("match",), spec)
