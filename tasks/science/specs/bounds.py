"""Upper bounds of the numbers that a study may ask for: generous, and far below what would fill a machine's memory.

Numbers come from command lines, files, forms and stores of unknown origin. Each is compared with its bound before it is
used, so that an absurd number is refused at once.
"""

from __future__ import annotations


class BoundError(ValueError):
    """A number is above its bound, and valid otherwise."""


MAX_NUMBER = 2**31 - 1
"""Seeds, images, batches, and whatever else is counted without being held in memory."""

MAX_DRAW = 2**63 - 1
"""The largest value of a column of whole numbers."""

MAX_WIDTH = 65_536

MAX_DEPTH = 1_000

MAX_EPOCHS = 100_000

MAX_ALPHAS = 10_001

MAX_PIXELS = 4_096
"""Side that images are resized to, and pixels that they are shifted by."""

MAX_LENGTH = 2**24
"""Length of an axis of an example."""

MAX_EXAMPLE_VALUES = 2**26
"""Values of one example."""

MAX_SEEDS = 10_000
"""Seeds of each cell."""

MAX_VALUES = 10_000
"""Combinations of values in a sweep, and values of each factor."""

MAX_CELLS = 10_000
"""Cells of a study."""

MAX_METHODS = 1_000
"""Matchers, and corrections, of a study."""

MAX_RESTARTS = 10_000
"""Restarts of weight matching."""

MAX_PAIRS = 1_000_000
"""Pairs of a study, over all cells."""

MAX_PATHS = 10_000_000
"""Paths of a study, over all pairs, matchers, corrections and measurements."""

MAX_STUDY_BYTES = 2**18
"""Size of a file with a study."""

MAX_REQUEST_BYTES = 2**25
"""Size of a request in a store, which writes out every cell."""
