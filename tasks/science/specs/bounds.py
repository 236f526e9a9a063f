"""The largest numbers that a study may ask for: generous, and far below what would fill a machine's memory.

Numbers come from command lines, files, forms and stores of strangers. Each is compared with its bound before anything
is made of it, so a number that cannot be meant is refused at once, whatever it would have been multiplied by.
"""

from __future__ import annotations


class BoundError(ValueError):
    """A number is beyond its bound: nothing else is wrong with it."""


MAX_NUMBER = 2**31 - 1
"""Of seeds, images, batches and whatever else is counted without being held in memory."""

MAX_DRAW = 2**63 - 1
"""What a column of whole numbers holds."""

MAX_WIDTH = 65_536

MAX_DEPTH = 1_000

MAX_EPOCHS = 100_000

MAX_ALPHAS = 10_001

MAX_PIXELS = 4_096
"""A side that images are resized to, or the pixels that they are shifted by."""

MAX_LENGTH = 2**24
"""An axis of an example of a data set."""

MAX_EXAMPLE_VALUES = 2**26
"""Values of one example of a data set."""

MAX_SEEDS = 10_000
"""Seeds of each cell."""

MAX_VALUES = 10_000
"""Combinations of values in a sweep, and values of each factor."""

MAX_CELLS = 10_000
"""Cells of a study."""

MAX_METHODS = 1_000
"""Matchers, and corrections, of a study."""

MAX_RESTARTS = 10_000
"""Orders of the axes that weight matching tries."""

MAX_PAIRS = 1_000_000
"""Pairs of a study, over all cells."""

MAX_PATHS = 10_000_000
"""Paths of a study, over all pairs, matchers, corrections and measurements."""

MAX_STUDY_BYTES = 2**18
"""A file with a study."""

MAX_REQUEST_BYTES = 2**25
"""A request in a store: it writes every cell out."""
