"""The recipes of the weights that ship: optimizers, tasks, and runs of meta-training."""

from collections.abc import Callable

from recipes.art import lstm_art
from recipes.cifar import lstm_cifar2_sub, lstm_cifar5_sub, lstm_cifar10
from recipes.general import general
from recipes.parts import Recipe
from recipes.plain import lstm_mnist, lstm_quadratic
from recipes.robust import robust_mnist

RECIPES: dict[str, Callable[[str | None], Recipe]] = {
    "lstm-quadratic": lstm_quadratic,
    "lstm-mnist": lstm_mnist,
    "robust-mnist": robust_mnist,
    "lstm-cifar10": lstm_cifar10,
    "lstm-cifar5-sub": lstm_cifar5_sub,
    "lstm-cifar2-sub": lstm_cifar2_sub,
    "lstm-art": lstm_art,
    "general": general,
}
