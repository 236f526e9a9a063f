"""Grids that several studies share, with the recipe that made the authors' saved points first where that is known."""

from __future__ import annotations

from flows.presets.preset import Grid
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.recipes import R20_SHORT, RECIPES


def _words(family: str, *words: str) -> dict[str, Recipe]:
    return {word: RECIPES[family][word].recipe for word in words}


R20_RECIPES = {norm: _words(f"resnet20-{norm}", "r20-saved", "table1") for norm in ("batch", "layer", "fixup")}


def r20(normalization: str, *widths: int) -> Grid:
    """ResNet20 on CIFAR-10."""
    return Grid(("cifar10",), (("resnet20", normalization),), widths, R20_RECIPES[normalization])


R20_WIDTH = (r20("batch", 1, 2, 4, 8, 16, 32), r20("layer", 1, 2, 4, 8, 16, 32), r20("fixup", 1, 2, 4, 8, 16))

R20_DATASETS = (
    Grid(("cifar10", "fashion_mnist"), (("resnet20", "batch"),), (1, 2, 4, 8, 16), R20_RECIPES["batch"]),
    Grid(
        ("mnist", "svhn"), (("resnet20", "batch"),), (1, 2, 4, 8, 16),
        _words("resnet20-mnist-svhn", "r20-saved", "table1"),
    ),
)  # fmt: skip

MLP_WIDTHS = (32, 64, 128, 256, 512, 1024, 2048)

MLP_WIDTH = (
    Grid(
        ("fashion_mnist", "mnist"), (("mlp", "none"),), MLP_WIDTHS, _words("mlp", "mlp", "table1", "table1-skip"), (11,)
    ),
    # What the networks of CIFAR-10 and SVHN were hardly trained with is translation.
    Grid(
        ("cifar10", "svhn"), (("mlp", "none"),), MLP_WIDTHS,
        {"mlp": RECIPES["mlp"]["mlp-still"].recipe, **_words("mlp", "table1", "table1-skip")}, (11,),
    ),
)  # fmt: skip


def mlp_depth(*depths: int) -> Grid:
    """MLPs of width 128 on MNIST, whose BatchNorm is folded before they are aligned."""
    return Grid(("mnist",), (("mlp", "batch-fused"),), (128,), _words("mlp-depth", "mlp-batch", "table1"), depths)


VGG_RECIPES = _words("vgg", "vgg-saved", "table1", "vgg-demo")

VGG_NETWORKS = tuple(
    (f"vgg{depth}", normalization) for normalization in ("batch", "none") for depth in (11, 13, 16, 19)
)

VGG_DEPTH = Grid(("cifar10",), VGG_NETWORKS, (1,), VGG_RECIPES)

R18_CIFAR = Grid(("cifar10",), (("resnet18", "batch"),), (1,), _words("resnet18", "r18-saved", "r18-demo"))

OVER_TIME = (
    Grid(
        ("fashion_mnist",), (("resnet20", "batch"),), (1,),
        {"r20-short": R20_SHORT, **_words("resnet20-batch", "table1")},
    ),
    Grid(("fashion_mnist",), (("mlp", "none"),), (128,), _words("mlp", "mlp", "table1"), (11,)),
)  # fmt: skip
"""Ours. With `--recipe table1` all of a study's epochs fit both; that of ResNet20 needs a GPU or another precision."""

IMAGENET = (
    Grid(("imagenet",), (("resnet18", "batch"),), (1,), _words("imagenet", "r18-imagenet", "table1")),
    Grid(("imagenet",), (("resnet50", "batch"), ("wide-resnet50-2", "batch")), (1,), _words("imagenet", "table1")),
)
