"""Bytes of tensors, in whatever structure a module takes or returns them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_closed(module: nn.Module) -> bool:
    """Whether hooks inside the module, or a function mode around it, would change what it does.

    Torch's fused transformer layers leave their fast path, which moves the last bits; compiled code would be
    compiled anew with the hooks in it; scripted code runs none.
    """
    if isinstance(module, (nn.TransformerEncoderLayer, nn.MultiheadAttention, torch.jit.ScriptModule)):
        return True
    # torch.compile(module) wraps it in an OptimizedModule, module.compile() sets the other
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def own_bytes(module: nn.Module, counted: set[int]) -> int:
    """Bytes of the module's direct parameters and buffers, and of all those inside its closed children.

    ``counted`` holds the ids of the tensors of earlier calls: a shared tensor counts once.
    """
    inside = is_closed(module)
    own = [*module.parameters(recurse=inside), *module.buffers(recurse=inside)]
    for child in module.children():
        if is_closed(child):
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
