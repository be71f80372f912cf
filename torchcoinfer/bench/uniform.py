"""The baseline that every planner has to beat: one bit-width for all layers, at the cut of a given plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from torchcoinfer.theory.options import Option, packed_bytes
from torchcoinfer.theory.plan import LayerPlan, Plan

Shapes = Mapping[str, tuple[int, int]]
_COMPRESSIBLE = (nn.Linear, nn.Conv2d, nn.Embedding)


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Layer name -> (N, K) of every weight that can be compressed; tied weights once."""
    shapes: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, _COMPRESSIBLE) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            shapes[name] = (module.weight.shape[0], module.weight[0].numel())
    return shapes


def uniform_option(bits: int) -> Option:
    """Groups of 64, asymmetric, rounded to nearest with clip search."""
    return Option(bits=bits, format="int", group_size=64, algorithm="nearest")


def uniform_bytes(shapes: Shapes, bits: int) -> int:
    """Packed bytes of all layers at one bit-width, scales and zero points counted."""
    return sum(packed_bytes(uniform_option(bits), *shape) for shape in shapes.values())


def uniform_plan(plan: Plan, shapes: Shapes, bits: int, left: tuple[str, ...] = ()) -> Plan:
    """``plan`` with every layer at ``bits``; layers with a word of ``left`` in their name stay float.

    A layer that ``shapes`` does not know keeps what the plan gives it.
    """
    layers = {}
    for name, layer in plan.layers.items():
        option = Option() if any(word in name for word in left) else uniform_option(bits)
        layers[name] = _at(layer, option, shapes[name]) if name in shapes else layer
    return replace(plan, layers=layers, optimality={}, bounds={})


def _at(layer: LayerPlan, option: Option, shape: tuple[int, int]) -> LayerPlan:
    return replace(
        layer,
        bits=option.bits,
        sparsity=option.sparsity,
        format=option.format,
        group_size=option.group_size,
        symmetric=option.symmetric,
        activation_bits=option.activation_bits,
        algorithm=option.algorithm,
        packed_bytes=packed_bytes(option, *shape),
        kept_channels=None,
        channel_group=None,
    )
