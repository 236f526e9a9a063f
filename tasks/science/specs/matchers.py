"""The table of matchers and their options. The algorithms are in `tasks.science.alignment`.

A matcher is written as its name, followed by the options that differ from their defaults: `activation`,
`activation/reading=pre`, `weight/restarts=5`. `parse_matcher` reads that form, and `MatcherChoice.text` writes the one
text of a choice, which ids are made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from tasks.science.specs.bounds import MAX_NUMBER, MAX_RESTARTS, BoundError
from tasks.science.specs.checks import shown

OptionValue = int | str


@dataclass(frozen=True)
class Option:
    """An option of a matcher: one of `choices`, or without any a positive whole number of at most `largest`."""

    default: OptionValue
    choices: tuple[str, ...] = ()
    largest: int = MAX_NUMBER


@dataclass(frozen=True)
class Matcher:
    """A row of the table: the matcher's description, whether it needs data, and its options."""

    description: str
    needs_data: bool
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])


_READING = Option("post", ("post", "pre", "published"))
_SOLVER = Option("scipy", ("scipy", "lapx", "lapjv"))

MATCHERS: Mapping[str, Matcher] = {
    "none": Matcher("B is left as it is", needs_data=False),
    "activation": Matcher(
        "units correlate most over all samples, with exact moments",
        needs_data=True,
        options={"reading": _READING, "solver": _SOLVER},
    ),
    "activation-published": Matcher(
        "the same with the authors' estimator: mean of the standard deviations of batches, 1e-4 added to their product",
        needs_data=True,
        options={"reading": _READING, "batch": Option(500), "solver": _SOLVER},
    ),
    "weight": Matcher(
        "largest inner product of the weights, by coordinate descent over the axes (Git Re-Basin)",
        needs_data=False,
        options={"restarts": Option(3, largest=MAX_RESTARTS), "solver": _SOLVER},
    ),
    "random": Matcher("B's units are shuffled: a control", needs_data=False),
}
"""Every matcher by its name.

`reading`: units are observed after their nonlinearity (`post`), before it (`pre`), or, in networks where the authors
did neither, where they did (`published`: ResNet20 with BatchNorm, ResNet18 for small images). `batch`: images per batch
of the published estimator. `restarts`: orders of the axes that weight matching tries. `solver`: scipy, lapx (extra
`fast`) or lapjv (extra `compiled`, in float32). Solvers may break ties between dead units differently, so the solver
is a choice that enters ids, and not the one that happens to be installed."""


@dataclass(frozen=True)
class MatcherChoice:
    """A matcher with a value for each of its options."""

    name: str
    options: Mapping[str, OptionValue]

    @property
    def needs_data(self) -> bool:
        return MATCHERS[self.name].needs_data

    @property
    def overrides(self) -> dict[str, OptionValue]:
        """The options that differ from their defaults, in the order of the table."""
        defaults = MATCHERS[self.name].options
        return {name: self.options[name] for name in defaults if self.options[name] != defaults[name].default}

    @property
    def text(self) -> str:
        """The canonical form: the name, and the options that differ from their defaults."""
        changed = ",".join(f"{name}={value}" for name, value in self.overrides.items())
        return f"{self.name}/{changed}" if changed else self.name

    @property
    def options_json(self) -> str:
        return json.dumps(dict(self.options), sort_keys=True)


def parse_matcher(text: str) -> MatcherChoice:
    """Return the choice that `text` names. Raises ValueError for an unknown matcher, option or value."""
    name, _, assignments = text.partition("/")
    if name not in MATCHERS:
        raise ValueError(f"there is no matcher {shown(name)}; known: {', '.join(MATCHERS)}")
    known = MATCHERS[name].options
    options: dict[str, OptionValue] = {option: known[option].default for option in known}
    given: set[str] = set()
    for assignment in assignments.split(",") if "/" in text else []:
        option, equals, value = assignment.partition("=")
        if option not in known or not equals:
            names = ", ".join(known) or "it has none"
            raise ValueError(f"matcher {name}: {shown(assignment)} sets no option; known: {names}")
        if option in given:
            raise ValueError(f"matcher {name}: {option} is given twice")
        given.add(option)
        options[option] = _read_value(f"matcher {name}: {option}", known[option], value)
    if name == "activation-published" and options["batch"] == 1:
        raise ValueError(f"matcher {name}: a batch of 1 image has no standard deviation, give at least 2")
    return MatcherChoice(name, options)


def _read_value(owner: str, option: Option, value: str) -> OptionValue:
    if option.choices:
        if value not in option.choices:
            raise ValueError(f"{owner} must be one of {', '.join(option.choices)}, got {shown(value)}")
        return value
    if not (value.isascii() and value.isdecimal()) or not value.strip("0"):
        raise ValueError(f"{owner} must be a positive whole number, got {shown(value)}")
    # Compared by their digits first: Python does not read very long numbers.
    if len(value) > len(str(MAX_NUMBER)) or int(value) > option.largest:
        raise BoundError(f"{owner} must be at most {option.largest}, got {shown(value)}")
    return int(value)


def published_modules(network: object) -> frozenset[str]:
    """Return the modules at whose outputs the authors of REPAIR observed the units of this network.

    Raises ValueError for networks that they read as `post` does, and for networks that they did not read.
    """
    modules = getattr(network, "published_readings", None)
    if not isinstance(modules, frozenset):
        raise ValueError(
            "reading=published is for ResNet20 with BatchNorm and ResNet18 for small images, which the authors read "
            f"elsewhere than `post` does; this {type(network).__name__} is neither: take reading=post or reading=pre"
        )
    return cast(frozenset[str], modules)
