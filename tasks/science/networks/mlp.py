"""The multilayer perceptron of the paper: Linear and ReLU, `depth` times, then one Linear to the classes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tasks.science.networks.initialization import InitialDraw


class MLP(nn.Module):
    """A network of `depth` hidden layers of `width` neurons, from `n_in` values of flattened images to `n_out` logits.

    With normalization `batch` every hidden layer is Linear without bias, BatchNorm, ReLU; the output stays plain. That
    is how the `batch-fused` form is trained: `fold_batch_norm` turns its weights into those of the plain network.
    """

    initialization: InitialDraw = "he-normal"

    def __init__(self, n_in: int, width: int, depth: int, n_out: int, normalization: str = "none") -> None:
        super().__init__()
        if normalization not in ("none", "batch"):
            raise ValueError(f"an MLP has normalization none or batch, got {normalization!r}")
        self.width, self.depth, self.normalization = width, depth, normalization
        sizes = [n_in] + [width] * depth
        self.hidden = nn.Sequential(*(_layer(sizes[i], sizes[i + 1], normalization) for i in range(depth)))
        self.output = nn.Linear(width, n_out)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.hidden(images.flatten(1)))

    @property
    def hidden_linears(self) -> tuple[str, ...]:
        """The hidden Linear layers, front to back, which REPAIR corrects; the layer of the logits is not among them."""
        return tuple(f"hidden.{i}.linear" for i in range(self.depth))

    @property
    def layer_axes(self) -> dict[str, str]:
        """The axis of the units of each of `hidden_linears`."""
        return {f"hidden.{i}.linear": f"hidden.{i}" for i in range(self.depth)}


def _layer(n_in: int, n_out: int, normalization: str) -> nn.Sequential:
    if normalization == "none":
        return nn.Sequential(OrderedDict(linear=nn.Linear(n_in, n_out), relu=nn.ReLU()))
    return nn.Sequential(
        OrderedDict(linear=nn.Linear(n_in, n_out, bias=False), norm=nn.BatchNorm1d(n_out), relu=nn.ReLU())
    )
