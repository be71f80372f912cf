"""Bytes of tensors, in whatever structure a module takes or returns them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def own_bytes(module: nn.Module, counted: set[int], closed: tuple[type, ...]) -> int:
    """Bytes of the module's direct parameters and buffers, and those of its children of ``closed`` types.

    ``counted`` holds the ids of the tensors of earlier calls: a shared tensor counts once.
    """
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    for child in module.children():
        if isinstance(child, closed):
            own += [*child.parameters(), *child.buffers()]
    total = 0
    for tensor in own:
        if id(tensor) not in counted:
            counted.add(id(tensor))
            total += tensor.numel() * tensor.element_size()
    return total


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings, tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in ``value``."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))
