"""The multilayer perceptron of the paper: Linear and ReLU, `depth` times, then one Linear to the classes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from tasks.science.permutation import Axis, PermutationSpec, Slot


class MLP(nn.Module):
    """`depth` hidden layers of `width` neurons. Images are flattened to `n_in` values; logits have shape (n, n_out)."""

    def __init__(self, n_in: int, width: int, depth: int, n_out: int) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        sizes = [n_in] + [width] * depth
        self.hidden = nn.Sequential(
            *(
                nn.Sequential(OrderedDict(linear=nn.Linear(sizes[i], sizes[i + 1]), relu=nn.ReLU()))
                for i in range(depth)
            )
        )
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
        """One axis per hidden layer: the rows of its Linear and the columns of the next; read after the ReLU."""
        consumers = [*self.hidden_linears[1:], "output"]
        return PermutationSpec(
            tuple(
                Axis(
                    name=f"hidden.{i}",
                    size=self.width,
                    slots=(Slot(f"{linear}.weight", 0), Slot(f"{linear}.bias", 0), Slot(f"{consumer}.weight", 1)),
                    read=f"hidden.{i}.relu",
                )
                for i, (linear, consumer) in enumerate(zip(self.hidden_linears, consumers, strict=True))
            )
        )
