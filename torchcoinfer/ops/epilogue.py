"""What a packed layer may apply to its output in the same call: an activation function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from torch.nn import functional

from torchcoinfer.errors import ArgumentError

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
}


def check_activation(owner: str, activation: str) -> None:
    """Raises ArgumentError unless the activation function is one that the ops know."""
    if activation not in ACTIVATIONS:
        raise ArgumentError(
            f"{owner}: argument 'activation'", got=repr(activation), expected=f"one of {tuple(ACTIVATIONS)}"
        )


def activated(op: str, y: Tensor, activation: str) -> Tensor:
    """The output with the activation function applied, rounded to its dtype before and after."""
    check_activation(f"torchcoinfer::{op}", activation)
    return ACTIVATIONS[activation](y)
