"""Requests: a grid of cells with its seeds, matchers, corrections and measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from tasks.science.specs.bounds import (
    MAX_CELLS,
    MAX_METHODS,
    MAX_NUMBER,
    MAX_PAIRS,
    MAX_PATHS,
    MAX_SEEDS,
    MAX_VALUES,
    BoundError,
)
from tasks.science.specs.cell import Cell, Endpoint, Origin
from tasks.science.specs.checks import check_count, check_types, check_words, is_whole, shown
from tasks.science.specs.corrections import check_correction, is_defined
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import safe_name, spec_id
from tasks.science.specs.matchers import parse_matcher
from tasks.science.specs.measurement import Measurement
from tasks.science.specs.pairing import Member, Pairing
from tasks.science.specs.path import (
    EnsemblePath,
    JointPath,
    LogitShiftPath,
    Path,
    ShiftChoice,
    UnmergedPath,
    WeightPath,
)
from tasks.science.specs.recipe import Recipe

VARIED = (
    *(f.name for spec in (Recipe, Measurement) for f in dataclasses.fields(spec) if f.name != "name"),
    *("epoch", "spawn_seed", "spawn_epoch"),
)
"""Fields that a study may vary beside the factors, which have options of their own."""


@dataclass(frozen=True)
class Request:
    """A call of a study: every pair of `seeds` of every cell, under every matcher and every defined correction."""

    study: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    matchers: tuple[str, ...]
    corrections: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    swept: tuple[str, ...] = ()
    """Fields that the study varies, and that tables have a column for."""
    controls: bool = False
    """Whether the first pair of every cell is also measured under a random permutation, and its A against itself."""
    ensembles: bool = False
    """Whether every pair is also measured with its outputs averaged."""
    logit_shifts: bool = False
    """Whether endpoints of pairs on data in halves are also measured with half of their logits shifted."""
    joint_training: bool = False
    """Whether every seed on data in halves is also trained on both halves at once, and measured beside the pairs."""

    def __post_init__(self) -> None:
        for name in ("cells", "seeds", "matchers", "corrections", "measurements", "swept"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_sizes()
        self._check_fields()
        object.__setattr__(self, "matchers", tuple(parse_matcher(matcher).text for matcher in self.matchers))
        self._check_pairs()
        self._check_halves()
        for correction in self.corrections:
            if not any(self._defines(correction, cell) for cell in self.cells):
                # The first cell's reason stands for all.
                check_correction(correction, self.cells[0].normalization, self.cells[0].architecture)

    def _check_sizes(self) -> None:
        """Raise BoundError if there are more of anything than a study may have, before anything is made of them."""
        check_count("cells", len(self.cells), MAX_CELLS)
        check_count("seeds", len(self.seeds), MAX_SEEDS)
        check_count("matchers", len(self.matchers), MAX_METHODS)
        check_count("corrections", len(self.corrections), MAX_METHODS)
        check_count("measurements", len(self.measurements), MAX_VALUES)
        check_count("swept fields", len(self.swept), len(VARIED))

    def _check_pairs(self) -> None:
        """Raise ValueError if some cell has no pair, and BoundError if all of them have too many."""
        if not all(is_whole(seed, 0, MAX_NUMBER) for seed in self.seeds):
            kind = BoundError if all(is_whole(seed, 0) for seed in self.seeds) else ValueError
            raise kind(f"seeds must be whole numbers from 0 to {MAX_NUMBER}, got {shown(self.seeds)}")
        if len(self.seeds) < 2:
            raise ValueError(
                f"a study needs at least 2 seeds, so that there is a pair to interpolate, got {len(self.seeds)}"
            )
        for name in ("cells", "measurements"):
            if not getattr(self, name):
                raise ValueError(f"study {self.study} has no {name}")
        for cell in self.cells:
            if not cell.data.n_pairs(self.seeds):
                raise ValueError(
                    f"{cell.data.name}: seeds {shown(self.seeds)} are all of one half, and pairs lie across"
                )
        check_count("pairs", self.n_pairs, MAX_PAIRS)
        n_methods = len(self.matchers) * len(self.corrections) * len(self.measurements)
        check_count("paths", self.n_pairs * n_methods, MAX_PATHS)

    def _check_halves(self) -> None:
        if (self.logit_shifts or self.joint_training) and not any(cell.data.halves for cell in self.cells):
            names = ", ".join(dict.fromkeys(cell.data.name for cell in self.cells))
            raise ValueError(
                f"logit shifts and joint training are of data in halves, which {names} has not: "
                "take --no-logit-shifts --no-joint-training, or --dataset cifar100_split"
            )

    def _check_fields(self) -> None:
        """Raise ValueError for a field of the wrong type, which a file of unknown origin may have."""
        check_types("a request's ", self)
        safe_name(self.study)
        for name in ("matchers", "corrections", "swept"):
            for word in getattr(self, name):
                check_words("one of the ", **{name: word})
        for word in self.swept:
            if word not in VARIED:
                raise ValueError(f"a study varies no field {shown(word)}; known: {', '.join(VARIED)}")

    @property
    def id(self) -> str:
        return spec_id((), self)

    @property
    def n_pairs(self) -> int:
        """The number of pairs of all cells; each is measured under every matcher and correction."""
        return sum(cell.data.n_pairs(self.seeds) for cell in self.cells)

    def joint_cell(self, cell: Cell) -> Cell | None:
        """Return the cell trained on both halves beside `cell`; None if nothing is."""
        return cell.joint if self.joint_training and cell.data.halves else None

    @property
    def trained_cells(self) -> tuple[Cell, ...]:
        """The cells that endpoints are trained of, joint ones included, which make no pairs of their own."""
        joint = [joint for cell in self.cells if (joint := self.joint_cell(cell)) is not None]
        return tuple(dict.fromkeys([*self.cells, *joint]))

    def endpoints(self, cell: Cell) -> list[Endpoint]:
        return [Endpoint(cell, seed) for seed in self.seeds]

    def pairings(self, cell: Cell, trained: Sequence[Member]) -> list[Pairing]:
        """Return every matcher on every pair of `trained`, once for all measurements that see the same images."""
        members = {member.seed: member for member in trained}
        pairs = [(members[a], members[b]) for a, b in cell.data.pairs(list(members))]
        pairings: list[Pairing] = []
        for samples in dict.fromkeys(measurement.samples for measurement in self.measurements):
            pairings += [Pairing(cell, a, b, matcher, samples) for matcher in self.matchers for a, b in pairs]
            if self.controls and pairs:
                a, b = pairs[0]
                pairings.append(Pairing(cell, a, b, "random", samples))
                moving = [matcher for matcher in self.matchers if matcher not in ("none", "random")]
                pairings += [Pairing(cell, a, a, matcher, samples, permuted_self=True) for matcher in moving]
        return list(dict.fromkeys(pairings))

    def paths(self, pairings: Sequence[Pairing], joint: Sequence[Member] = ()) -> list[Path]:
        """Return the paths of every kind asked for, of those of `pairings` that the kind is defined for.

        `joint` are the trained endpoints of the joint cell, for `pairings` of a cell that has one.
        """
        found: list[Path] = []
        for measurement in self.measurements:
            seen = [pairing for pairing in pairings if pairing.samples == measurement.samples]
            found += self._weight_paths(seen, measurement)
            found += self._unmerged_paths(
                [pairing for pairing in seen if pairing.matcher == "none"], measurement, joint
            )
        return found

    def _weight_paths(self, pairings: Sequence[Pairing], measurement: Measurement) -> list[WeightPath]:
        return [
            WeightPath(pairing, correction, measurement)
            for correction in self.corrections
            for pairing in pairings
            if self._defines(correction, pairing.cell)
        ]

    def _unmerged_paths(
        self, pairings: Sequence[Pairing], measurement: Measurement, joint: Sequence[Member]
    ) -> list[UnmergedPath]:
        direct = [pairing for pairing in pairings if pairing.matcher == "none"]
        pairs = [(pairing.cell, pairing.a, pairing.b, measurement) for pairing in direct]
        halved = [pair for pair in pairs if pair[0].data.halves]
        whole = {member.seed: member for member in joint}
        found: list[UnmergedPath] = []
        if self.ensembles:
            found += [EnsemblePath(*pair) for pair in pairs]
        if self.logit_shifts:
            found += [LogitShiftPath(*pair, chosen_on) for chosen_on in get_args(ShiftChoice) for pair in halved]
        for cell, a, b, _ in halved:
            if a.seed in whole and b.seed in whole:
                found.append(JointPath(cell, a, b, measurement, whole[a.seed], whole[b.seed]))
        return found

    def corrections_of(self, cell: Cell) -> tuple[str, ...]:
        """Return the corrections that are defined for the cell's networks."""
        return tuple(correction for correction in self.corrections if self._defines(correction, cell))

    def left_out(self) -> list[str]:
        """Return a sentence for every correction that is not defined for some of the cells."""
        lacking: dict[str, list[str]] = {}
        for cell in self.cells:
            for correction in self.corrections:
                if not self._defines(correction, cell):
                    lacking.setdefault(correction, []).append(
                        f"{cell.architecture} with normalization {cell.normalization}"
                    )
        return [
            f"correction {correction} is not defined for {', '.join(dict.fromkeys(networks))}, and left out there"
            for correction, networks in lacking.items()
        ]

    @staticmethod
    def _defines(correction: str, cell: Cell) -> bool:
        return is_defined(correction, cell.normalization, cell.architecture)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Request:
        """Return the request that `dataclasses.asdict` wrote as `fields`. Raises ValueError if there is none."""
        try:
            measurements = [Measurement(**measurement) for measurement in fields["measurements"]]
            cells = [read_cell(cell) for cell in fields["cells"]]
            parts: dict[str, Any] = {"cells": cells, "measurements": measurements}
            return cls(**{**fields, **parts})
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a study request ({error})") from error


def read_cell(fields: Mapping[str, Any]) -> Cell:
    """Return the cell that `dataclasses.asdict` wrote as `fields`.

    Raises KeyError, TypeError or ValueError if they are not a cell.
    """
    origin = fields.get("origin")
    parts: dict[str, Any] = {
        "data": DataSpec(**fields["data"]),
        "recipe": Recipe(**fields["recipe"]),
        "origin": None if origin is None else Origin(**origin),
    }
    return Cell(**{**fields, **parts})
