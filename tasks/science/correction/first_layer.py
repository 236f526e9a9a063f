"""Values of the first layer of a plain MLP for every network on the line between two endpoints.

Images do not change along a path, so the first layer's pre-activations are linear in alpha: (1 - alpha) z_A +
alpha z_B. Two products serve every alpha. Those of an endpoint are kept for all paths that end in it; the permuted
endpoint has the same rows in another order. At 28x28 and 64 units that layer is half of a network's work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK_IMAGES = 2000
"""Images whose values are computed together: those of 128 units stay in a core's second-level cache of 1 MB."""

KEPT_LAYER_BYTES = 2**26
"""Most bytes of values that an endpoint keeps of one set of images: 60,000 images at 279 units.

Larger values are not kept: the first layer of a network so wide is a small part of its work.
"""


def chunks_of(examples: Tensor) -> tuple[Tensor, ...]:
    """Return `examples` (n_examples, ...) in the chunks that are computed together, whatever else is computed."""
    return examples.split(CHUNK_IMAGES)


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """The first layer of one endpoint, with its units in the order `order` (n_units,) where that is given.

    Its reordered copies share the values that it keeps.
    """

    name: str
    weight: Tensor
    bias: Tensor
    order: Tensor | None = None
    _kept: dict[int, tuple[Tensor, list[Tensor]]] = field(default_factory=dict)
    """Values by the id of their images, which are held so that no others get that id."""

    def reordered(self, order: Tensor) -> FirstLayer:
        """Return this layer with unit order[i] at position i."""
        chained = order if self.order is None else self.order[order]
        return FirstLayer(self.name, self.weight, self.bias, chained, self._kept)

    def keeps(self, images: Tensor) -> bool:
        """Return whether values of these images are kept, by size alone: no result depends on earlier computations."""
        return len(images) * self.weight.shape[0] * self.weight.element_size() <= KEPT_LAYER_BYTES

    def values(self, images: Tensor) -> Iterator[Tensor]:
        """Yield pre-activations (n_units, at most `CHUNK_IMAGES`) of `images` by chunk; the caller may change them."""
        return (values.clone() if self.order is None else values for values in self.read(images))

    def read(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the same as `values`, in tensors that may be the kept ones: they must not be changed."""
        if self.keeps(images):
            if id(images) not in self._kept:
                self._kept[id(images)] = images, [self._make(chunk) for chunk in chunks_of(images)]
            made = iter(self._kept[id(images)][1])
        else:
            made = map(self._make, chunks_of(images))
        return made if self.order is None else (values.index_select(0, self.order) for values in made)

    def _make(self, images: Tensor) -> Tensor:
        return torch.addmm(self.bias[:, None], self.weight, images.flatten(1).T)


@dataclass(frozen=True, eq=False)
class Between:
    """The first layer of the network at `alpha` between two endpoints."""

    a: FirstLayer
    b: FirstLayer
    alpha: float

    def keeps(self, images: Tensor) -> bool:
        """Return whether both endpoints keep values of these images; they are of one size."""
        return self.a.keeps(images)

    def values(self, images: Tensor) -> Iterator[Tensor]:
        """Yield pre-activations as endpoints do; at alpha 0 and 1 they are those of the endpoints, to the bit."""
        if self.alpha in (0, 1):
            yield from (self.b if self.alpha else self.a).values(images)
            return
        for a, b in zip(self.a.read(images), self.b.read(images), strict=True):
            yield torch.lerp(a, b, self.alpha)
