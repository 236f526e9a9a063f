"""Updates of a group of seeds by their gradients: weight decay, clipping, skipped steps, optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from tasks.science.networks.normalization import LayerNorm2d
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State

ADAM_BETA_2 = 0.999

_SCALER = ("scale", "_growth_tracker")
"""The entries of a gradient scaler's state that change with steps."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, LayerNorm2d)
_SHORTCUTS = {"shortcut", "downsample"}

_OF_ALL = ("step",)
"""The entries of an optimizer's memory of a parameter that are one number for the whole stack."""


def decayed_parameters(network: nn.Module, recipe: Recipe) -> dict[str, bool]:
    """Return, for every parameter of `network` by name in its order, whether the recipe's weight decay reaches it."""
    spared: set[str] = set()
    for path, module in network.named_modules():
        if isinstance(module, _NORMS) and recipe.decayed_norms != "all":
            on_shortcut = not _SHORTCUTS.isdisjoint(path.split("."))
            if recipe.decayed_norms == "none" or not on_shortcut:
                spared |= {f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return {name: name not in spared for name, _ in network.named_parameters()}


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return for each seed whether all of its values are finite, (n_seeds,) bool on the device of the tensors.

    Every tensor has a leading dimension of seeds.
    """
    finite = [tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in tensors]
    return torch.stack(finite).all(0)


def finite_seeds(tensors: Iterable[Tensor]) -> list[bool]:
    """Return `are_finite` as a list, which waits for a GPU."""
    return are_finite(tensors).tolist()


@torch.no_grad()
def clip_gradients(gradients: Sequence[Tensor], norm: float) -> None:
    """Shorten each seed's gradient, in place, to the Euclidean length `norm` over all parameters where it is longer.

    Every tensor has a leading dimension of seeds. Source: Pascanu et al. 2013, arXiv 1211.5063.
    """
    # Seed by seed, for a sum over rows of a stack may round otherwise than that of one row alone.
    squares = [
        torch.stack([gradient[index].square().sum() for gradient in gradients]).sum()
        for index in range(len(gradients[0]))
    ]
    factors = (norm / torch.stack(squares).sqrt()).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factors.reshape(-1, *[1] * (gradient.ndim - 1)))


class Updates:
    """The updates of a group of seeds: `backward` with their losses, then `step`, once per batch.

    `parts` hold every parameter of `network`: one part for each seed or, where `stacked`, one part for all with a
    leading dimension of seeds. They are updated in place. One optimizer moves a stack as a whole, unless the recipe
    skips steps that are not finite: then, as where seeds are apart, each seed has its own optimizer, and in float16 its
    own scale of the loss. A step that one seed skips leaves its weights and optimizer memory as they were, and changes
    nothing of the others. A skipped step has run forward, so running statistics have seen its batch, as under any
    gradient scaler.

    `fused` optimizers, the default on a GPU, move all parameters in one launch and are told on the device whether to
    skip, so that no step waits for the GPU; they round differently from those that a CPU uses.
    """

    def __init__(
        self, recipe: Recipe, network: nn.Module, parts: Sequence[State], *, stacked: bool, fused: bool | None = None
    ) -> None:
        decayed = decayed_parameters(network, recipe)
        self._names = list(decayed)
        self._leaves = [[part[name] for name in decayed] for part in parts]
        self._stacked = stacked
        self._skips = recipe.skip_nonfinite
        self._clip_norm = recipe.clip_norm
        first = self._leaves[0][0]
        n_seeds = len(first) if stacked else len(parts)
        self._one_for_all = stacked and not self._skips
        self._moved = self._leaves
        if stacked and self._skips:
            self._moved = [[leaf.detach()[index] for leaf in self._leaves[0]] for index in range(n_seeds)]
        self._fused = first.is_cuda if fused is None else fused
        self._optimizers = [
            _make_optimizer(recipe, moved, list(decayed.values()), self._fused) for moved in self._moved
        ]
        scaled = recipe.precision == "float16"
        self._scalers = [GradScaler(first.device.type, enabled=scaled) for _ in self._moved]
        self._n_skipped = torch.zeros(n_seeds, dtype=torch.int64, device=first.device)

    @property
    def n_skipped(self) -> list[int]:
        """The number of steps that each seed has skipped."""
        return self._n_skipped.tolist()

    def memory(self, index: int) -> State:
        """Return copies of what the updates of one seed depend on besides its weights and the step.

        These are the optimizer's memory of every parameter, as `momentum_buffer/<parameter>`, and in float16 the state
        of the loss scale.
        """
        place = 0 if self._one_for_all else index
        kept: State = {}
        for name, parameter in zip(self._names, self._moved[place], strict=True):
            for kind, value in self._optimizers[place].state.get(parameter, {}).items():
                of_stack = self._one_for_all and kind not in _OF_ALL
                kept[f"{kind}/{name}"] = (value[index] if of_stack else value).detach().cpu().clone()
        scaled = self._scalers[place].state_dict()
        for kind in _SCALER if scaled else ():
            kept[f"{kind}/"] = torch.tensor(scaled[kind], dtype=torch.float64)
        return kept

    def recall(self, memories: Sequence[Mapping[str, Tensor]], n_skipped: Sequence[int]) -> None:
        """Go on from `memories` and skipped steps, one per seed in their order, all taken after equally many steps."""
        self._n_skipped.copy_(torch.tensor(n_skipped))
        groups = [list(memories)] if self._one_for_all else [[memory] for memory in memories]
        for moved, optimizer, scaler, group in zip(self._moved, self._optimizers, self._scalers, groups, strict=True):
            for key in group[0]:
                kind, _, name = key.partition("/")
                values = [memory[key] for memory in group]
                if kind in _SCALER:
                    continue
                parameter = moved[self._names.index(name)]
                of_stack = self._one_for_all and kind not in _OF_ALL
                value = torch.stack(values) if of_stack else values[0].clone()
                # An optimizer that is not fused counts its steps on the CPU, wherever its parameters are.
                on_cpu = kind in _OF_ALL and not self._fused
                optimizer.state[parameter][kind] = value if on_cpu else value.to(parameter.device)
            if scaled := scaler.state_dict():
                scaler.load_state_dict(
                    {**scaled, "scale": float(group[0]["scale/"]), "_growth_tracker": int(group[0]["_growth_tracker/"])}
                )

    def backward(self, losses: Tensor) -> None:
        """Compute the gradients of `losses` (n_seeds,), each seed's from its own loss."""
        for leaves in self._leaves:
            for leaf in leaves:
                leaf.grad = None
        if self._skips:
            losses = torch.stack([scaler.scale(loss) for scaler, loss in zip(self._scalers, losses, strict=True)])
        losses.sum().backward()

    def step(self, rate: float | Tensor) -> None:
        """Move every seed at the learning rate `rate`, except those that skip.

        A rate that is a tensor of no dimension may change its value under a recorded step.
        """
        looks = self._skips or self._clip_norm
        stacks = [self._gradients(leaves) for leaves in self._leaves] if looks else []
        finite = None
        if self._skips:
            finite = torch.cat([are_finite(stack) for stack in stacks])
            if self._stacked:
                for index, moved in enumerate(self._moved):
                    for parameter, gradient in zip(moved, stacks[0], strict=True):
                        parameter.grad = gradient[index]
        for optimizer, scaler in zip(self._optimizers, self._scalers, strict=True):
            scaler.unscale_(optimizer)
        if self._clip_norm:
            for stack in stacks:
                clip_gradients(stack, self._clip_norm)
        self._move(rate, finite)
        for scaler in self._scalers:
            scaler.update()

    def _gradients(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of `leaves` with a leading dimension of seeds."""
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        return gradients if self._stacked else [gradient[None] for gradient in gradients]

    def _move(self, rate: float | Tensor, finite: Tensor | None) -> None:
        moves = [True] * len(self._optimizers)
        if finite is not None:
            self._n_skipped += ~finite
            if self._fused:
                for optimizer, is_finite in zip(self._optimizers, finite, strict=True):
                    vars(optimizer)["found_inf"] = (~is_finite).float()
            else:
                moves = finite.tolist()
        for optimizer, does_move in zip(self._optimizers, moves, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
                if "capturable" in group and self._n_skipped.is_cuda:
                    # Adam warns where it may be recorded and is not, and raises where it is and may not.
                    group["capturable"] = torch.cuda.is_current_stream_capturing()
            if does_move:
                optimizer.step()


def _make_optimizer(
    recipe: Recipe, parameters: Sequence[Tensor], decayed: Sequence[bool], fused: bool
) -> torch.optim.Optimizer:
    of = list(zip(parameters, decayed, strict=True))
    groups = [
        {"params": [parameter for parameter, decays in of if decays], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter, decays in of if not decays], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.learning_rate, betas=(recipe.momentum, ADAM_BETA_2), fused=fused)
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, fused=fused)
    if fused and recipe.momentum:
        # A fused first step that is skipped would leave the momentum without any value.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
