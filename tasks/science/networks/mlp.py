"""The multilayer perceptron of the paper: Linear and ReLU, `depth` times, then one Linear to the classes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tasks.science.networks.initialization import Initialization
from tasks.science.permutation import Axis, PermutationSpec, Slot


class MLP(nn.Module):
    """`depth` hidden layers of `width` neurons. Images are flattened to `n_in` values; logits have shape (n, n_out).

    With normalization `batch` every hidden layer is Linear without bias, BatchNorm, ReLU; the output stays plain. That
    is how the `batch-fused` form is trained: `fold_batch_norm` turns its weights into those of the plain network.
    """

    initialization: Initialization = "he-normal"

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
        """The hidden Linear layers, front to back: what REPAIR corrects. The logits are not among them."""
        return tuple(f"hidden.{i}.linear" for i in range(self.depth))

    @property
    def layer_axes(self) -> dict[str, str]:
        """For each of `hidden_linears` the axis that its units lie on."""
        return {f"hidden.{i}.linear": f"hidden.{i}" for i in range(self.depth)}

    def permutation_spec(self) -> PermutationSpec:
        """One axis per hidden layer: the rows of its Linear, its BatchNorm, and the columns of the next Linear; read
        after the ReLU."""
        per_unit = ["linear.bias"]
        if self.normalization == "batch":
            per_unit = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
        consumers = [*self.hidden_linears[1:], "output"]
        return PermutationSpec(
            tuple(
                Axis(
                    name=f"hidden.{i}",
                    size=self.width,
                    slots=(
                        Slot(f"hidden.{i}.linear.weight", 0),
                        *(Slot(f"hidden.{i}.{tensor}", 0) for tensor in per_unit),
                        Slot(f"{consumer}.weight", 1),
                    ),
                    read=f"hidden.{i}.relu",
                )
                for i, consumer in enumerate(consumers)
            )
        )


def _layer(n_in: int, n_out: int, normalization: str) -> nn.Sequential:
    if normalization == "none":
        return nn.Sequential(OrderedDict(linear=nn.Linear(n_in, n_out), relu=nn.ReLU()))
    return nn.Sequential(
        OrderedDict(linear=nn.Linear(n_in, n_out, bias=False), norm=nn.BatchNorm1d(n_out), relu=nn.ReLU())
    )
