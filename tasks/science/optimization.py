"""What a training step does with gradients: the learning rate at each step, and the updates of a stack of seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from tasks.science.networks.normalization import LayerNorm2d
from tasks.science.recipe import Recipe
from tasks.science.specs import State

ADAM_BETA_2 = 0.999

_SCALER = ("scale", "_growth_tracker")
"""What a gradient scaler changes as it goes."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, LayerNorm2d)
_SHORTCUTS = {"shortcut", "downsample"}

_OF_ALL = ("step",)
"""What an optimizer remembers of a parameter as one number for the whole stack."""


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Linear from `warmup_from` to the peak over the warm-up, then down to 0 at the end of training, linearly or along
    a cosine; `step` counts from 0."""
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup * total
    if step < warmup:
        return recipe.warmup_from + (recipe.learning_rate - recipe.warmup_from) * step / warmup
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    return recipe.learning_rate * (total - step) / (total - warmup)


def decayed_parameters(network: nn.Module, recipe: Recipe) -> dict[str, bool]:
    """Every parameter of `network` by name, in its order: whether the recipe's weight decay reaches it."""
    spared: set[str] = set()
    for path, module in network.named_modules():
        if isinstance(module, _NORMS) and recipe.decayed_norms != "all":
            on_shortcut = not _SHORTCUTS.isdisjoint(path.split("."))
            if recipe.decayed_norms == "none" or not on_shortcut:
                spared |= {f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return {name: name not in spared for name, _ in network.named_parameters()}


@torch.no_grad()
def finite_seeds(tensors: Iterable[Tensor]) -> list[bool]:
    """For each seed whether all of its values are finite; every tensor has a leading dimension of seeds."""
    finite = [tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in tensors]
    return torch.stack(finite).all(0).tolist()


@torch.no_grad()
def clip_gradients(gradients: Sequence[Tensor], norm: float) -> None:
    """Shortens, in place, each seed's gradient to the Euclidean length `norm` over all of its parameters, where it is
    longer; every tensor has a leading dimension of seeds. Source: Pascanu et al. 2013, arXiv 1211.5063."""
    # Seed by seed, for a sum over rows of a stack may round otherwise than that of one row alone.
    squares = [
        torch.stack([gradient[index].square().sum() for gradient in gradients]).sum()
        for index in range(len(gradients[0]))
    ]
    factors = (norm / torch.stack(squares).sqrt()).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factors.reshape(-1, *[1] * (gradient.ndim - 1)))


class Updates:
    """The updates of a stack of seeds: `backward` with their losses, then `step`, once per batch.

    `weights` holds every parameter of `network` with a leading dimension of seeds, and is updated in place. Where the
    recipe skips steps that are not finite, each seed has an optimizer of its own over its part of the stack, and in
    float16 a scale of its own for its loss: a step that one seed skips leaves its weights and the optimizer's memory of
    it as they were, and changes nothing of the others. Otherwise one optimizer moves the stack as a whole. A skipped
    step has run forward, so running statistics have seen its batch, as under any gradient scaler.
    """

    def __init__(self, recipe: Recipe, network: nn.Module, weights: State) -> None:
        decayed = decayed_parameters(network, recipe)
        self._names = list(decayed)
        self._parameters = [weights[name] for name in decayed]
        self._skips = recipe.skip_nonfinite
        self._clip_norm = recipe.clip_norm
        n_seeds = len(self._parameters[0])
        parts = [self._parameters]
        if self._skips:
            parts = [[parameter.detach()[index] for parameter in self._parameters] for index in range(n_seeds)]
        self._parts = parts
        self._optimizers = [_make_optimizer(recipe, part, list(decayed.values())) for part in parts]
        scaled = recipe.precision == "float16"
        self._scalers = [GradScaler(self._parameters[0].device.type, enabled=scaled) for _ in parts]
        self.n_skipped = [0] * n_seeds
        """How many steps each seed has skipped."""

    def memory(self, index: int) -> State:
        """What the updates of one seed depend on beside its weights and the step: the optimizer's memory of every
        parameter, as `momentum_buffer/<parameter>`, and in float16 the state of its loss' scale. Copies."""
        optimizer = self._optimizers[index if self._skips else 0]
        part = self._parts[index if self._skips else 0]
        kept: State = {}
        for name, parameter in zip(self._names, part, strict=True):
            for kind, value in optimizer.state.get(parameter, {}).items():
                stacked = not self._skips and kind not in _OF_ALL
                kept[f"{kind}/{name}"] = (value[index] if stacked else value).detach().cpu().clone()
        scaled = self._scalers[index if self._skips else 0].state_dict()
        for kind in _SCALER if scaled else ():
            kept[f"{kind}/"] = torch.tensor(scaled[kind], dtype=torch.float64)
        return kept

    def recall(self, memories: Sequence[Mapping[str, Tensor]]) -> None:
        """Goes on from `memories`, one per seed in their order, each as `memory` gave it after equally many steps."""
        groups = [[memory] for memory in memories] if self._skips else [list(memories)]
        for part, optimizer, scaler, group in zip(self._parts, self._optimizers, self._scalers, groups, strict=True):
            for key in group[0]:
                kind, _, name = key.partition("/")
                values = [memory[key] for memory in group]
                if kind in _SCALER:
                    continue
                parameter = part[self._names.index(name)]
                shared = self._skips or kind in _OF_ALL
                value = values[0].clone() if shared else torch.stack(values)
                # An optimizer counts its steps on the CPU, wherever its parameters are.
                optimizer.state[parameter][kind] = value if kind in _OF_ALL else value.to(parameter.device)
            if scaled := scaler.state_dict():
                scaler.load_state_dict(
                    {**scaled, "scale": float(group[0]["scale/"]), "_growth_tracker": int(group[0]["_growth_tracker/"])}
                )

    def backward(self, losses: Tensor) -> None:
        """Takes the gradients of `losses` (n_seeds,): each seed's is that of its own loss."""
        for parameter in self._parameters:
            parameter.grad = None
        if self._skips:
            losses = torch.stack([scaler.scale(loss) for scaler, loss in zip(self._scalers, losses, strict=True)])
        losses.sum().backward()

    def step(self, rate: float) -> None:
        """Moves every seed at the learning rate `rate`, but those that skip."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if self._skips:
            moves = finite_seeds(gradients)
            for index, part in enumerate(self._parts):
                for parameter, gradient in zip(part, gradients, strict=True):
                    parameter.grad = gradient[index]
        else:
            moves = [True]
        for optimizer, scaler in zip(self._optimizers, self._scalers, strict=True):
            scaler.unscale_(optimizer)
        if self._clip_norm:
            clip_gradients(gradients, self._clip_norm)
        for index, (optimizer, scaler) in enumerate(zip(self._optimizers, self._scalers, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            if moves[index]:
                optimizer.step()
            else:
                self.n_skipped[index] += 1
            scaler.update()


def _make_optimizer(recipe: Recipe, parameters: Sequence[Tensor], decayed: Sequence[bool]) -> torch.optim.Optimizer:
    of = list(zip(parameters, decayed, strict=True))
    groups = [
        {"params": [parameter for parameter, decays in of if decays], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter, decays in of if not decays], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.learning_rate, betas=(recipe.momentum, ADAM_BETA_2))
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
